//! What we tell the backend of our ring.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;

use blkif::{Abi, keys};
use xen_abi::{EvtchnPort, GrantRef};

/// The nodes of our directory, to be written in one transaction with `state` = 3; those that have no
/// value are removed, if they are there: an earlier ring of another size may have left them.
///
/// `refs` are the ring's pages, `port` is ours and unbound. `feature-persistent` is always said: our
/// pages are granted once, and it is no condition on the backend (`io/blkif.h`, note 9 to the
/// frontend's `feature-persistent`).
#[must_use]
pub fn announcement(refs: &[GrantRef], port: EvtchnPort) -> Vec<(String, Option<String>)> {
    let mut nodes: Vec<(String, Option<String>)> = Vec::new();
    let mut put = |key: &dyn Display, value: &dyn Display| {
        nodes.push((key.to_string(), Some(value.to_string())));
    };
    put(&keys::EVENT_CHANNEL, &port);
    put(&keys::PROTOCOL, &Abi::NATIVE.protocol());
    put(&keys::FEATURE_PERSISTENT, &1);
    let stale = if let [gref] = refs {
        put(&keys::RING_REF, gref);
        keys::RING_PAGE_ORDER
    } else {
        for (page, gref) in (0..).zip(refs) {
            put(&keys::RingRef(page), gref);
        }
        put(&keys::RING_PAGE_ORDER, &refs.len().ilog2());
        keys::RING_REF
    };
    nodes.push((stale.into(), None));
    nodes
}
