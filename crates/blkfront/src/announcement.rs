//! What we tell the backend of our ring.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

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
    let mut put = |key: String, value: String| nodes.push((key, Some(value)));
    put(keys::EVENT_CHANNEL.into(), port.to_string());
    put(keys::PROTOCOL.into(), Abi::NATIVE.protocol().into());
    put(keys::FEATURE_PERSISTENT.into(), "1".into());
    if let [gref] = refs {
        put(keys::RING_REF.into(), gref.to_string());
        nodes.push((keys::RING_PAGE_ORDER.into(), None));
    } else {
        for (page, gref) in (0..).zip(refs) {
            put(format!("{}", keys::RingRef(page)), gref.to_string());
        }
        put(keys::RING_PAGE_ORDER.into(), refs.len().ilog2().to_string());
        nodes.push((keys::RING_REF.into(), None));
    }
    nodes
}
