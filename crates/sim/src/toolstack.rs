//! What libxl does for a domain and for a disk whose backend is not dom0.

use std::fmt;
use std::task::Poll;
use std::time::Duration;

use xen_abi::{DomId, Instant, XenbusState};

use crate::xenstored::{DOM0, Errno, Perms};
use crate::{Machine, Xs};

/// What a domain is created for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainKind {
    /// A guest.
    Guest,
    /// A backend of others (`driver_domain=1`).
    DriverDomain,
}

/// A domain's directory in xenstore.
#[must_use]
pub fn domain_path(domid: DomId) -> String {
    format!("/local/domain/{domid}")
}

/// Creates a domain with its nodes (`libxl__domain_make()`).
#[must_use]
pub fn create_domain(machine: &Machine, kind: DomainKind) -> DomId {
    let domid = machine.create_domain();
    let path = domain_path(domid);
    let readable = || Perms::readable(DOM0, domid);
    let own = || Perms::private(domid);
    let mut nodes = vec![
        (String::new(), readable()),
        ("/cpu".into(), readable()),
        ("/memory".into(), readable()),
        ("/device".into(), readable()),
        ("/control".into(), readable()),
        ("/control/shutdown".into(), own()),
        ("/control/feature-poweroff".into(), own()),
        ("/control/feature-reboot".into(), own()),
        ("/control/feature-suspend".into(), own()),
        ("/control/sysrq".into(), own()),
        ("/device/suspend/event-channel".into(), own()),
        ("/data".into(), own()),
        ("/drivers".into(), own()),
        ("/feature".into(), own()),
        ("/attr".into(), own()),
        ("/error".into(), own()),
    ];
    if kind == DomainKind::DriverDomain {
        nodes.push(("/libxl".into(), own()));
        nodes.push(("/device-model".into(), own()));
    }
    let made = machine.xs(DOM0).transaction(|xs| {
        for (name, perms) in &nodes {
            xs.mkdir(&format!("{path}{name}"))?;
            xs.set_perms(&format!("{path}{name}"), perms.clone())?;
        }
        xs.write(&format!("{path}/name"), format!("domain-{domid}"))?;
        xs.write(&format!("{path}/domid"), domid.to_string())?;
        xs.mkdir(&format!("/libxl/{domid}/device"))
    });
    made.expect("dom0 may create a domain's nodes");
    domid
}

/// Whether a disk may be written (`access=`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// `access=ro`.
    ReadOnly,
    /// `access=rw`.
    ReadWrite,
}

/// A disk as xl's disk string says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskSpec {
    /// `vdev=`, such as `xvda`.
    pub vdev: String,
    /// `target=`.
    pub target: String,
    /// `access=`.
    pub mode: Mode,
    /// `devtype=`: `disk` or `cdrom`.
    pub device_type: &'static str,
    /// `discard` or `no-discard`; neither by default.
    pub discard_enable: Option<&'static str>,
}

impl DiskSpec {
    /// A writable disk.
    #[must_use]
    pub fn new(vdev: &str, target: &str) -> Self {
        Self {
            vdev: vdev.into(),
            target: target.into(),
            mode: Mode::ReadWrite,
            device_type: "disk",
            discard_enable: None,
        }
    }

    /// The same, not to be written.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { mode: Mode::ReadOnly, ..self }
    }
}

/// The number of a vdev (`libxl__device_disk_dev_number()`): `xvd` and letters, perhaps with a
/// partition.
#[must_use]
pub fn vdev_number(vdev: &str) -> Option<u32> {
    let name = vdev.strip_prefix("xvd")?;
    let letters = name.bytes().take_while(u8::is_ascii_lowercase).count();
    let (letters, partition) = name.split_at(letters);
    let mut disk = 0u32;
    for letter in letters.bytes() {
        disk = disk.checked_mul(26)?.checked_add(u32::from(letter - b'a') + 1)?;
    }
    let disk = disk.checked_sub(1)?;
    let partition: u32 = if partition.is_empty() { 0 } else { partition.parse().ok()? };
    if disk < 16 && partition < 16 {
        Some(202 << 8 | disk << 4 | partition)
    } else if disk < 1 << 20 && partition < 256 {
        Some(1 << 28 | disk << 8 | partition)
    } else {
        None
    }
}

/// A vbd between two domains.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Device {
    /// The backend's domain.
    pub backend: DomId,
    /// The frontend's domain.
    pub frontend: DomId,
    /// The vdev's number.
    pub devid: u32,
}

impl Device {
    /// The backend's directory.
    #[must_use]
    pub fn backend_path(&self) -> String {
        format!("/local/domain/{}/backend/vbd/{}/{}", self.backend, self.frontend, self.devid)
    }

    /// The frontend's directory.
    #[must_use]
    pub fn frontend_path(&self) -> String {
        format!("/local/domain/{}/device/vbd/{}", self.frontend, self.devid)
    }

    fn libxl_path(&self) -> String {
        format!("/libxl/{}/device/vbd/{}", self.frontend, self.devid)
    }

    /// The backend's state as dom0 reads it.
    #[must_use]
    pub fn backend_state(&self, machine: &Machine) -> Option<XenbusState> {
        let state = machine.xs(DOM0).get(&format!("{}/state", self.backend_path()))?;
        XenbusState::parse(state.as_bytes())
    }

    /// Writes all nodes of a new device (`libxl__device_generic_add()`).
    ///
    /// # Errors
    /// What xenstored refused.
    pub fn add(&self, machine: &Machine, spec: &DiskSpec) -> Result<(), Errno> {
        let (be_path, fe_path) = (self.backend_path(), self.frontend_path());
        let mode = match spec.mode {
            Mode::ReadOnly => "r",
            Mode::ReadWrite => "w",
        };
        let frontend_id = self.frontend.to_string();
        let backend_id = self.backend.to_string();
        let devid = self.devid.to_string();
        let removable = if spec.device_type == "cdrom" { "1" } else { "0" };
        let mut back = vec![
            ("params", spec.target.as_str()),
            ("script", "/etc/xen/scripts/block"),
            ("frontend-id", &frontend_id),
            ("online", "1"),
            ("removable", removable),
            ("bootable", "1"),
            ("state", "1"),
            ("dev", &spec.vdev),
            ("type", "phy"),
            ("mode", mode),
            ("device-type", spec.device_type),
            ("specification", "xen"),
        ];
        back.extend(spec.discard_enable.map(|enable| ("discard-enable", enable)));
        let front = [
            ("backend-id", backend_id.as_str()),
            ("state", "1"),
            ("virtual-device", &devid),
            ("device-type", spec.device_type),
            ("trusted", "1"),
        ];
        let be_perms = Perms::readable(self.backend, self.frontend);
        let fe_perms = Perms::readable(self.frontend, self.backend);
        machine.xs(DOM0).transaction(|xs| {
            let libxl_path = self.libxl_path();
            rm_if_there(xs, &libxl_path)?;
            xs.write(&format!("{libxl_path}/frontend"), &fe_path)?;
            xs.write(&format!("{libxl_path}/backend"), &be_path)?;

            rm_if_there(xs, &fe_path)?;
            xs.mkdir(&fe_path)?;
            xs.set_perms(&fe_path, fe_perms.clone())?;
            xs.write(&format!("{fe_path}/backend"), &be_path)?;
            for (key, value) in front {
                xs.write(&format!("{fe_path}/{key}"), value)?;
                xs.set_perms(&format!("{fe_path}/{key}"), fe_perms.clone())?;
            }

            rm_if_there(xs, &be_path)?;
            xs.mkdir(&be_path)?;
            xs.set_perms(&be_path, be_perms.clone())?;
            xs.write(&format!("{be_path}/frontend"), &fe_path)?;
            for (key, value) in &back {
                xs.write(&format!("{be_path}/{key}"), value)?;
            }
            Ok(())
        })
    }

    /// Removes what the toolstack owns of a device (`libxl__device_destroy()`).
    fn destroy(&self, machine: &Machine) -> Result<(), Errno> {
        machine.xs(DOM0).transaction(|xs| {
            for path in [self.frontend_path(), self.libxl_path(), self.backend_path()] {
                path_cleanup(xs, &path)?;
            }
            Ok(())
        })
    }
}

fn rm_if_there(xs: &Xs, path: &str) -> Result<(), Errno> {
    match xs.rm(path) {
        Err(Errno::Enoent) => Ok(()),
        result => result,
    }
}

/// Removes a node, and each ancestor that is empty then (`libxl__xs_path_cleanup()`).
fn path_cleanup(xs: &Xs, path: &str) -> Result<(), Errno> {
    rm_if_there(xs, path)?;
    let mut up = path;
    while let Some((parent, _)) = up.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) {
        match xs.directory(parent) {
            Ok(names) if names.is_empty() => xs.rm(parent)?,
            Ok(_) | Err(Errno::Enoent) => break,
            Err(errno) => return Err(errno),
        }
        up = parent;
    }
    Ok(())
}

/// How an operation of libxl fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ToolstackError {
    /// The backend's state was not the one waited for within 10 s.
    TimedOut {
        /// What was waited for.
        wanted: XenbusState,
        /// What the node said at the end.
        found: Option<XenbusState>,
    },
    /// The state node vanished before it had the value waited for.
    StateRemoved {
        /// What was waited for.
        wanted: XenbusState,
    },
    /// The device's directory was still there 10 s after state 6.
    NotRemoved,
    /// The device exists already (`libxl__device_exists()`).
    Exists,
    /// xenstored refused something.
    Xenstore(Errno),
}

impl fmt::Display for ToolstackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl From<Errno> for ToolstackError {
    fn from(errno: Errno) -> Self {
        Self::Xenstore(errno)
    }
}

/// `LIBXL_INIT_TIMEOUT`, `LIBXL_DESTROY_TIMEOUT`.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    WaitState(XenbusState),
    WaitRemoval,
    Done(Result<(), ToolstackError>),
}

/// Whether the guest has a say in a detach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detach {
    /// `xl block-detach`: the frontend closes first.
    Polite,
    /// `--force`, and what becomes of a destroyed guest's disks: the frontend's directory goes in
    /// the same transaction.
    Forced,
}

/// An attach or detach on its way. It looks at xenstore whenever it is polled, which may be late.
#[derive(Debug)]
pub struct Operation {
    machine: Machine,
    device: Device,
    phase: Phase,
    deadline: Instant,
    /// What becomes of the device where the operation fails.
    detach: Option<Detach>,
}

impl Operation {
    /// `xl block-attach`, or a disk at `xl create`.
    #[must_use]
    pub fn attach(machine: &Machine, device: Device, spec: &DiskSpec) -> Self {
        let phase = if machine.xs(DOM0).exists(&device.libxl_path()) {
            Phase::Done(Err(ToolstackError::Exists))
        } else {
            match device.add(machine, spec) {
                Ok(()) => Phase::WaitState(XenbusState::InitWait),
                Err(errno) => Phase::Done(Err(errno.into())),
            }
        };
        Self::new(machine, device, phase, None)
    }

    /// Takes a device away (`libxl__initiate_device_generic_remove()`).
    #[must_use]
    pub fn detach(machine: &Machine, device: Device, detach: Detach) -> Self {
        let be_path = device.backend_path();
        let started = machine.xs(DOM0).transaction(|xs| {
            if detach == Detach::Forced {
                path_cleanup(xs, &device.frontend_path())?;
            }
            let state = match xs.read(&format!("{be_path}/state")) {
                Err(Errno::Enoent) => return Ok(None),
                state => state?,
            };
            xs.write(&format!("{be_path}/online"), "0")?;
            if state != XenbusState::Closed.to_string() {
                xs.write(&format!("{be_path}/state"), XenbusState::Closing.to_string())?;
            }
            Ok(Some(()))
        });
        let mut operation =
            Self::new(machine, device, Phase::WaitState(XenbusState::Closed), Some(detach));
        match started {
            Ok(Some(())) => {}
            // The backend is gone already: only the frontend is cleaned up.
            Ok(None) => operation.finish(Ok(())),
            Err(errno) => operation.finish(Err(errno.into())),
        }
        operation
    }

    fn new(machine: &Machine, device: Device, phase: Phase, detach: Option<Detach>) -> Self {
        let deadline = machine.now().after(TIMEOUT);
        Self { machine: machine.clone(), device, phase, deadline, detach }
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> Device {
        self.device
    }

    /// When the operation gives up what it waits for.
    #[must_use]
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    fn finish(&mut self, result: Result<(), ToolstackError>) {
        let mut result = result;
        if let Some(detach) = self.detach
            && (result.is_ok() || detach == Detach::Forced)
        {
            let destroyed = self.device.destroy(&self.machine);
            result = result.and(destroyed.map_err(ToolstackError::from));
        }
        self.phase = Phase::Done(result);
    }

    /// Looks at xenstore once.
    pub fn poll(&mut self) -> Poll<Result<(), ToolstackError>> {
        let late = self.machine.now() >= self.deadline;
        match self.phase {
            Phase::Done(result) => return Poll::Ready(result),
            Phase::WaitState(wanted) => {
                let found = self.device.backend_state(&self.machine);
                if found == Some(wanted) {
                    if wanted == XenbusState::Closed {
                        self.phase = Phase::WaitRemoval;
                        self.deadline = self.machine.now().after(TIMEOUT);
                    } else {
                        self.finish(Ok(()));
                    }
                } else if found.is_none() {
                    self.finish(Err(ToolstackError::StateRemoved { wanted }));
                } else if late {
                    self.finish(Err(ToolstackError::TimedOut { wanted, found }));
                }
            }
            Phase::WaitRemoval => {
                if !self.machine.xs(DOM0).exists(&self.device.backend_path()) {
                    self.finish(Ok(()));
                } else if late {
                    self.finish(Err(ToolstackError::NotRemoved));
                }
            }
        }
        match self.phase {
            Phase::Done(result) => Poll::Ready(result),
            _ => Poll::Pending,
        }
    }
}

/// Ends a domain whose devices are gone (`libxl__destroy_domid()`): its nodes and itself.
pub fn destroy_domain(machine: &Machine, domid: DomId) {
    machine.destroy_domain(domid);
    let removed = machine.xs(DOM0).transaction(|xs| {
        rm_if_there(xs, &domain_path(domid))?;
        rm_if_there(xs, &format!("/libxl/{domid}"))
    });
    removed.expect("dom0 may remove a domain's nodes");
}

/// Asks a domain to end (`xl shutdown`).
pub fn shutdown(machine: &Machine, domid: DomId) {
    let path = format!("{}/control/shutdown", domain_path(domid));
    machine.xs(DOM0).write(&path, "poweroff").expect("dom0 may write");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vdevs_have_libxls_numbers() {
        assert_eq!(vdev_number("xvda"), Some(51712));
        assert_eq!(vdev_number("xvdb1"), Some(51729));
        assert_eq!(vdev_number("xvdp"), Some(51952));
        assert_eq!(vdev_number("xvdq"), Some(268_439_552));
        assert_eq!(vdev_number("xvdaa"), Some(268_442_112));
        assert_eq!(vdev_number("xvda16"), Some(1 << 28 | 16));
        for vdev in ["xvd", "sda", "xvda256", "xvdaaaaaaa", "xvd1"] {
            assert_eq!(vdev_number(vdev), None, "{vdev}");
        }
    }

    fn device() -> (Machine, Device) {
        let machine = Machine::new(1);
        let backend = create_domain(&machine, DomainKind::DriverDomain);
        let frontend = create_domain(&machine, DomainKind::Guest);
        (machine, Device { backend, frontend, devid: 51712 })
    }

    fn set_state(machine: &Machine, device: Device, state: &str) {
        let path = format!("{}/state", device.backend_path());
        machine.xs(device.backend).write(&path, state).unwrap();
    }

    #[test]
    fn an_attach_waits_for_state_2_and_the_rights_are_libxls() {
        let (machine, device) = device();
        let spec = DiskSpec::new("xvda", "ram,size=1M");
        let mut attach = Operation::attach(&machine, device, &spec);
        assert_eq!(attach.poll(), Poll::Pending);
        let (be, fe) = (machine.xs(device.backend), machine.xs(device.frontend));
        let be_path = device.backend_path();
        assert_eq!(be.read(&format!("{be_path}/params")), Ok("ram,size=1M".into()));
        assert_eq!(fe.read(&format!("{be_path}/params")), Ok("ram,size=1M".into()));
        assert_eq!(fe.write(&format!("{be_path}/state"), "2"), Err(Errno::Eacces));
        let fe_path = device.frontend_path();
        assert_eq!(be.read(&format!("{fe_path}/state")), Ok("1".into()));
        assert_eq!(be.write(&format!("{fe_path}/state"), "4"), Err(Errno::Eacces));
        // The parents of the backend's directory are dom0's.
        let parent = format!("/local/domain/{}/backend/vbd", device.backend);
        assert_eq!(be.directory(&parent), Ok(vec![device.frontend.to_string()]));
        assert_eq!(be.rm(&parent), Err(Errno::Eacces));
        // 14 nodes of the device, 13 of libxl__domain_make() that are the domain's own.
        assert_eq!(machine.xenstored().nr_nodes(device.backend), 14 + 13);

        set_state(&machine, device, "4");
        assert_eq!(attach.poll(), Poll::Pending, "exactly 2");
        set_state(&machine, device, "2");
        assert_eq!(attach.poll(), Poll::Ready(Ok(())));
        let again = Operation::attach(&machine, device, &spec).poll();
        assert_eq!(again, Poll::Ready(Err(ToolstackError::Exists)));
    }

    #[test]
    fn an_attach_gives_up_after_ten_seconds_and_leaves_all_as_it_is() {
        let (machine, device) = device();
        let mut attach = Operation::attach(&machine, device, &DiskSpec::new("xvda", "none"));
        machine.advance(Duration::from_secs(10));
        let error = ToolstackError::TimedOut {
            wanted: XenbusState::InitWait,
            found: Some(XenbusState::Initialising),
        };
        assert_eq!(attach.poll(), Poll::Ready(Err(error)));
        assert!(machine.xs(DOM0).exists(&device.backend_path()));
    }

    #[test]
    fn a_detach_sees_6_and_then_the_directory_go() {
        let (machine, device) = device();
        device.add(&machine, &DiskSpec::new("xvda", "none")).unwrap();
        let mut detach = Operation::detach(&machine, device, Detach::Polite);
        let be_path = device.backend_path();
        let be = machine.xs(device.backend);
        assert_eq!(be.read(&format!("{be_path}/state")), Ok("5".into()));
        assert_eq!(be.read(&format!("{be_path}/online")), Ok("0".into()));
        assert_eq!(detach.poll(), Poll::Pending);
        set_state(&machine, device, "6");
        assert_eq!(detach.poll(), Poll::Pending);
        assert!(machine.xs(device.frontend).exists(&device.frontend_path()));
        be.rm(&be_path).unwrap();
        assert_eq!(detach.poll(), Poll::Ready(Ok(())));
        assert!(!machine.xs(DOM0).exists(&device.frontend_path()));
        let vbd = format!("/local/domain/{}/backend", device.backend);
        assert!(!machine.xs(DOM0).exists(&vbd), "empty parents go as well");
    }

    #[test]
    fn a_directory_that_goes_before_6_was_seen_fails_the_detach() {
        let (machine, device) = device();
        device.add(&machine, &DiskSpec::new("xvda", "none")).unwrap();
        let mut detach = Operation::detach(&machine, device, Detach::Polite);
        set_state(&machine, device, "6");
        machine.xs(device.backend).rm(&device.backend_path()).unwrap();
        let error = ToolstackError::StateRemoved { wanted: XenbusState::Closed };
        assert_eq!(detach.poll(), Poll::Ready(Err(error)));
    }

    #[test]
    fn a_forced_detach_removes_the_frontends_directory_first() {
        let (machine, device) = device();
        device.add(&machine, &DiskSpec::new("xvda", "none")).unwrap();
        let mut detach = Operation::detach(&machine, device, Detach::Forced);
        assert!(!machine.xs(DOM0).exists(&device.frontend_path()));
        machine.advance(Duration::from_secs(10));
        let error = ToolstackError::TimedOut {
            wanted: XenbusState::Closed,
            found: Some(XenbusState::Closing),
        };
        assert_eq!(detach.poll(), Poll::Ready(Err(error)));
        assert!(!machine.xs(DOM0).exists(&device.backend_path()), "dom0 cleans up");
    }

    #[test]
    fn at_6_already_only_online_is_written() {
        let (machine, device) = device();
        device.add(&machine, &DiskSpec::new("xvda", "none")).unwrap();
        set_state(&machine, device, "6");
        let mut detach = Operation::detach(&machine, device, Detach::Polite);
        assert_eq!(device.backend_state(&machine), Some(XenbusState::Closed));
        assert_eq!(detach.poll(), Poll::Pending, "the directory is still there");
    }
}
