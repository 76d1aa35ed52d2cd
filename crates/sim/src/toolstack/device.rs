//! A disk between two domains, as libxl writes it into xenstore.

use xen_abi::{DomId, XenbusState};

use crate::xenstored::{DOM0, Errno, Perms};
use crate::{Machine, Xs};

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
    /// `direct-io-safe`; not by default.
    pub direct_io_safe: Option<&'static str>,
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
            direct_io_safe: None,
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

/// Where a frontend's directory lies: the backend's `frontend` node says it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum FrontendDir {
    /// In `device/vbd` of its domain, as libxl has it.
    #[default]
    DeviceVbd,
    /// Below this directory.
    Below(&'static str),
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
    /// Where its frontend's directory lies.
    pub frontend_dir: FrontendDir,
}

impl Device {
    /// A vbd as libxl has it.
    #[must_use]
    pub const fn new(backend: DomId, frontend: DomId, devid: u32) -> Self {
        Self { backend, frontend, devid, frontend_dir: FrontendDir::DeviceVbd }
    }

    /// The backend's directory.
    #[must_use]
    pub fn backend_path(&self) -> String {
        format!("/local/domain/{}/backend/vbd/{}/{}", self.backend, self.frontend, self.devid)
    }

    /// The frontend's directory.
    #[must_use]
    pub fn frontend_path(&self) -> String {
        match self.frontend_dir {
            FrontendDir::DeviceVbd => {
                format!("/local/domain/{}/device/vbd/{}", self.frontend, self.devid)
            }
            FrontendDir::Below(dir) => format!("{dir}/{}", self.devid),
        }
    }

    pub(super) fn libxl_path(&self) -> String {
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
        back.extend(spec.direct_io_safe.map(|safe| ("direct-io-safe", safe)));
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
    pub(super) fn destroy(&self, machine: &Machine) -> Result<(), Errno> {
        machine.xs(DOM0).transaction(|xs| {
            for path in [self.frontend_path(), self.libxl_path(), self.backend_path()] {
                path_cleanup(xs, &path)?;
            }
            Ok(())
        })
    }
}

pub(super) fn rm_if_there(xs: &Xs, path: &str) -> Result<(), Errno> {
    match xs.rm(path) {
        Err(Errno::Enoent) => Ok(()),
        result => result,
    }
}

/// Removes a node, and each ancestor that is empty then (`libxl__xs_path_cleanup()`).
pub(super) fn path_cleanup(xs: &Xs, path: &str) -> Result<(), Errno> {
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
