//! An attach or a detach, with all that libxl waits for.

use std::fmt;
use std::task::Poll;
use std::time::Duration;

use xen_abi::{Instant, XenbusState};

use super::device::path_cleanup;
use super::{Device, DiskSpec};
use crate::Machine;
use crate::xenstored::{DOM0, Errno};

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
