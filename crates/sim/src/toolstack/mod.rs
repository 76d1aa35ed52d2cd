//! What libxl does for a domain and for a disk whose backend is not dom0.

mod device;
mod operation;
#[cfg(test)]
mod tests;

use xen_abi::DomId;

use crate::Machine;
use crate::xenstored::{DOM0, Perms};

pub use device::{Device, DiskSpec, FrontendDir, Mode, vdev_number};
pub use operation::{Detach, Operation, ToolstackError};

use device::rm_if_there;

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
