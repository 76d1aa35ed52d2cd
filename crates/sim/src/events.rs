//! Event channels (`xen/common/event_channel.c`).

use std::collections::BTreeMap;

use domain::HypercallError;
use xen_abi::{DomId, EvtchnPort};

use crate::Rng;

const ESRCH: HypercallError = HypercallError(-3);
const EINVAL: HypercallError = HypercallError(-22);
const ENOSPC: HypercallError = HypercallError(-28);

#[derive(Clone, Copy, Debug)]
struct Channel {
    state: State,
    pending: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Unbound { remote: DomId },
    Interdomain { remote: DomId, port: EvtchnPort },
}

#[derive(Debug, Default)]
struct Ports {
    channels: BTreeMap<EvtchnPort, Channel>,
    /// Every pending port once, in no order that anyone may rely on.
    pending: Vec<EvtchnPort>,
    last: u32,
}

/// The ports of every domain.
#[derive(Debug)]
pub struct EventChannels {
    domains: BTreeMap<DomId, Ports>,
    /// How many ports a domain can have (`d->max_evtchns`).
    pub max_ports: usize,
    /// A guest that spends a CPU on sending events.
    pub storm: Option<Storm>,
}

/// Sends an event again whenever its peer has taken it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Storm {
    /// The sender's domain.
    pub domid: DomId,
    /// The sender's port.
    pub port: EvtchnPort,
    /// How many events it still sends.
    pub left: u64,
}

impl Default for EventChannels {
    fn default() -> Self {
        Self { domains: BTreeMap::new(), max_ports: 4096, storm: None }
    }
}

impl EventChannels {
    /// A domain appears.
    pub fn add_domain(&mut self, domid: DomId) {
        self.domains.entry(domid).or_default();
    }

    /// A domain goes: all its ports are closed.
    pub fn remove_domain(&mut self, domid: DomId) {
        let ports: Vec<EvtchnPort> = self.ports_of(domid).collect();
        for port in ports {
            self.close(domid, port).expect("the port is open");
        }
        self.domains.remove(&domid);
    }

    fn ports_of(&self, domid: DomId) -> impl Iterator<Item = EvtchnPort> {
        self.domains.get(&domid).into_iter().flat_map(|ports| ports.channels.keys().copied())
    }

    /// How many ports a domain has open.
    #[must_use]
    pub fn nr_ports(&self, domid: DomId) -> usize {
        self.ports_of(domid).count()
    }

    fn open(&mut self, domid: DomId, state: State) -> Result<EvtchnPort, HypercallError> {
        let max_ports = self.max_ports;
        let ports = self.domains.get_mut(&domid).ok_or(ESRCH)?;
        if ports.channels.len() >= max_ports {
            return Err(ENOSPC);
        }
        // Xen takes the lowest free port; going on instead makes a stale port show.
        ports.last += 1;
        let port = EvtchnPort(ports.last);
        ports.channels.insert(port, Channel { state, pending: false });
        Ok(port)
    }

    fn channel(&mut self, domid: DomId, port: EvtchnPort) -> Result<&mut Channel, HypercallError> {
        let ports = self.domains.get_mut(&domid).ok_or(ESRCH)?;
        ports.channels.get_mut(&port).ok_or(EINVAL)
    }

    /// Opens a port that `remote` may bind to (`EVTCHNOP_alloc_unbound`).
    ///
    /// # Errors
    /// -ESRCH: no such domain. -ENOSPC: no port is left.
    pub fn alloc_unbound(
        &mut self,
        domid: DomId,
        remote: DomId,
    ) -> Result<EvtchnPort, HypercallError> {
        self.open(domid, State::Unbound { remote })
    }

    /// Binds a new port of `domid` to an unbound one (`EVTCHNOP_bind_interdomain`). The new port
    /// is pending at once, since events may have come before.
    ///
    /// # Errors
    /// -ESRCH: no such domain. -EINVAL: no such port, one that is bound, or is open for another
    /// domain. -ENOSPC: no port is left.
    pub fn bind_interdomain(
        &mut self,
        domid: DomId,
        remote: DomId,
        remote_port: EvtchnPort,
    ) -> Result<EvtchnPort, HypercallError> {
        if self.channel(remote, remote_port)?.state != (State::Unbound { remote: domid }) {
            return Err(EINVAL);
        }
        let port = self.open(domid, State::Interdomain { remote, port: remote_port })?;
        let theirs = self.channel(remote, remote_port).expect("was there");
        theirs.state = State::Interdomain { remote: domid, port };
        self.set_pending(domid, port);
        Ok(port)
    }

    /// Closes a port (`EVTCHNOP_close`); the other end becomes unbound.
    ///
    /// # Errors
    /// -EINVAL: no such port. -ESRCH: no such domain.
    pub fn close(&mut self, domid: DomId, port: EvtchnPort) -> Result<(), HypercallError> {
        let state = self.channel(domid, port)?.state;
        if let State::Interdomain { remote, port: remote_port } = state
            && let Ok(theirs) = self.channel(remote, remote_port)
        {
            theirs.state = State::Unbound { remote: domid };
        }
        let ports = self.domains.get_mut(&domid).expect("was there");
        ports.channels.remove(&port);
        ports.pending.retain(|&other| other != port);
        Ok(())
    }

    /// Sends an event (`EVTCHNOP_send`): the other end becomes pending. An unbound port's is
    /// dropped.
    ///
    /// # Errors
    /// -EINVAL: no such port. -ESRCH: no such domain.
    pub fn send(&mut self, domid: DomId, port: EvtchnPort) -> Result<(), HypercallError> {
        if let State::Interdomain { remote, port } = self.channel(domid, port)?.state {
            self.set_pending(remote, port);
        }
        Ok(())
    }

    fn set_pending(&mut self, domid: DomId, port: EvtchnPort) {
        let Some(ports) = self.domains.get_mut(&domid) else { return };
        let Some(channel) = ports.channels.get_mut(&port) else { return };
        if !channel.pending {
            channel.pending = true;
            ports.pending.push(port);
        }
    }

    /// Takes any one pending port of a domain.
    pub fn take(&mut self, domid: DomId, rng: &mut Rng) -> Option<EvtchnPort> {
        let ports = self.domains.get_mut(&domid)?;
        if ports.pending.is_empty() {
            return None;
        }
        let port = ports.pending.swap_remove(rng.index(ports.pending.len()));
        let channel = ports.channels.get_mut(&port).expect("only open ports are pending");
        channel.pending = false;
        if let State::Interdomain { remote, port: sender } = channel.state
            && let Some(storm) = &mut self.storm
            && (storm.domid, storm.port) == (remote, sender)
            && storm.left > 0
        {
            storm.left -= 1;
            self.set_pending(domid, port);
        }
        Some(port)
    }

    /// Takes the event of one port, if it is pending.
    pub fn take_port(&mut self, domid: DomId, port: EvtchnPort) -> bool {
        let Ok(channel) = self.channel(domid, port) else { return false };
        let was_pending = std::mem::take(&mut channel.pending);
        if was_pending {
            let ports = self.domains.get_mut(&domid).expect("was there");
            ports.pending.retain(|&other| other != port);
        }
        was_pending
    }

    /// Whether any port of a domain is pending.
    #[must_use]
    pub fn is_pending(&self, domid: DomId) -> bool {
        self.domains.get(&domid).is_some_and(|ports| !ports.pending.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: DomId = DomId(1);
    const B: DomId = DomId(2);

    fn two_domains() -> (EventChannels, Rng) {
        let mut events = EventChannels::default();
        events.add_domain(A);
        events.add_domain(B);
        (events, Rng::new(1))
    }

    #[test]
    fn events_coalesce_and_none_is_lost_both_ways() {
        let (mut events, mut rng) = two_domains();
        let at_a = events.alloc_unbound(A, B).expect("opens");
        let at_b = events.bind_interdomain(B, A, at_a).expect("binds");
        assert_eq!(events.take(B, &mut rng), Some(at_b), "pending at once after a bind");
        assert_eq!(events.take(B, &mut rng), None);

        events.send(A, at_a).expect("sends");
        events.send(A, at_a).expect("sends");
        assert_eq!(events.take(B, &mut rng), Some(at_b));
        assert_eq!(events.take(B, &mut rng), None, "two coalesced");

        events.send(B, at_b).expect("sends");
        assert!(events.is_pending(A));
        assert!(events.take_port(A, at_a));
        assert!(!events.take_port(A, at_a));
    }

    #[test]
    fn binding_needs_a_port_that_is_open_for_us() {
        let (mut events, _) = two_domains();
        events.add_domain(DomId(3));
        let at_a = events.alloc_unbound(A, B).expect("opens");
        assert_eq!(events.bind_interdomain(DomId(3), A, at_a), Err(EINVAL));
        assert_eq!(events.bind_interdomain(B, DomId(9), at_a), Err(ESRCH));
        assert_eq!(events.bind_interdomain(B, A, EvtchnPort(77)), Err(EINVAL));
        events.bind_interdomain(B, A, at_a).expect("binds");
        assert_eq!(events.bind_interdomain(B, A, at_a), Err(EINVAL), "is bound");
    }

    #[test]
    fn a_closed_end_leaves_the_other_unbound_for_the_same_domain() {
        let (mut events, mut rng) = two_domains();
        let at_a = events.alloc_unbound(A, B).expect("opens");
        let at_b = events.bind_interdomain(B, A, at_a).expect("binds");
        events.close(B, at_b).expect("closes");
        assert_eq!(events.take(B, &mut rng), None, "its pending bit went with it");
        assert_eq!(events.send(B, at_b), Err(EINVAL));
        assert_eq!(events.send(A, at_a), Ok(()), "an unbound port drops events");
        let again = events.bind_interdomain(B, A, at_a).expect("binds again");
        assert_ne!(again, at_b);
    }

    #[test]
    fn a_domain_that_goes_closes_its_ports() {
        let (mut events, _) = two_domains();
        let at_a = events.alloc_unbound(A, B).expect("opens");
        let at_b = events.bind_interdomain(B, A, at_a).expect("binds");
        events.remove_domain(A);
        assert_eq!(events.nr_ports(A), 0);
        assert_eq!(events.send(B, at_b), Ok(()));
        assert_eq!(events.bind_interdomain(B, A, at_a), Err(ESRCH));
    }

    #[test]
    fn ports_run_out() {
        let (mut events, _) = two_domains();
        events.max_ports = 2;
        events.alloc_unbound(A, B).expect("opens");
        events.alloc_unbound(A, B).expect("opens");
        assert_eq!(events.alloc_unbound(A, B), Err(ENOSPC));
    }
}
