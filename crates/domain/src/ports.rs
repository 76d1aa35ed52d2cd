//! Whose each of our ports is.

use alloc::vec::Vec;

use catalog::VirtualDevice;
use xen_abi::EvtchnPort;

use crate::vbd::VbdKey;

/// Whose events arrive at a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PortUser {
    /// Those of a vbd's frontend, for that of its rings.
    Ring(VbdKey, usize),
    /// Those of the backend of one of our own vbds.
    Upstream(VirtualDevice),
}

/// Our ports but xenstore's, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Ports(Vec<Option<PortUser>>);

impl Ports {
    pub(crate) fn user(&self, port: EvtchnPort) -> Option<PortUser> {
        *self.0.get(port.0 as usize)?
    }

    pub(crate) fn assign(&mut self, port: EvtchnPort, user: PortUser) {
        let at = port.0 as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, None);
        }
        self.0[at] = Some(user);
    }

    pub(crate) fn release(&mut self, port: EvtchnPort) {
        if let Some(place) = self.0.get_mut(port.0 as usize) {
            *place = None;
        }
    }
}
