//! A driver domain of the host's.

use domain::{Domain, Next};
use xen_abi::Gfn;

use crate::toolstack::{self, DomainKind};
use crate::{Machine, OwnDisk, SimPlatform};

/// A driver domain, and when it is to be called.
pub(super) struct Driver {
    pub(super) platform: SimPlatform,
    /// `None` once it has ended.
    pub(super) domain: Option<Domain<SimPlatform>>,
    pub(super) next: Next,
    pub(super) nr_steps: u64,
    /// Of its own controllers, which step it when they have done something.
    namespaces: Vec<OwnDisk>,
}

impl Driver {
    pub(super) const fn new(
        platform: SimPlatform,
        domain: Domain<SimPlatform>,
        namespaces: Vec<OwnDisk>,
    ) -> Self {
        Self { platform, domain: Some(domain), next: Next::Now, nr_steps: 0, namespaces }
    }

    /// A domain that has so many frames and no modules, in a domain of Xen's that is new.
    pub(super) fn create(machine: &Machine, command_line: &str, memory_pages: u64) -> Self {
        let domid = toolstack::create_domain(machine, DomainKind::DriverDomain);
        let runs = [(Gfn(0x100), memory_pages)];
        let mut platform = SimPlatform::new(machine, domid, &runs);
        platform.console_prefix = format!("{domid}: ");
        let domain = Domain::new(platform.resources(&runs, command_line.as_bytes()), &mut platform);
        Self::new(platform, domain.unwrap_or_else(|error| panic!("{error}")), Vec::new())
    }

    /// Calls the domain if an event arrived for it, or it is the time that it named. Whether there was
    /// anything to do.
    pub(super) fn step(&mut self, machine: &Machine) -> bool {
        let (now, domid) = (machine.now(), self.platform.domid());
        let is_told = self.namespaces.iter().any(OwnDisk::is_at_work);
        let due = match self.next {
            Next::At(_) | Next::Idle if is_told => true,
            Next::Now => true,
            Next::At(at) => at <= now || machine.events().is_pending(domid),
            Next::Idle => machine.events().is_pending(domid),
            Next::Shutdown(_) => false,
        };
        let Some(domain) = self.domain.as_mut().filter(|_| due) else { return false };
        self.next = domain.step(&mut self.platform);
        self.nr_steps += 1;
        if let Next::Shutdown(_) = self.next {
            self.domain = None;
        }
        true
    }
}
