//! What a vbd offers to its frontend.

use alloc::string::ToString;
use alloc::vec::Vec;

use blkback::Discards;
use blkif::keys;
use catalog::{GrantUse, Ground};
use store::{Access, BlockStore, Flushing, SecureDiscard};
use xen_abi::XenbusState;
use xenstore::Change;

use crate::actions::Outcome;
use crate::disks::Entry;
use crate::domain::Domain;
use crate::inbox::Tag;
use crate::inquiry::STATE;
use crate::platform::Platform;
use crate::upstream::{Upstream, find_namespace, max_segments};
use crate::vbd::{Device, Identity, VbdKey};

/// A key, its value, and the protocol's default; `None` where it has none.
type Offered = (&'static str, u64, Option<u64>);

impl<P: Platform> Domain<P> {
    /// Writes what a vbd offers, and that it waits for its frontend. Keys whose value is the
    /// protocol's default are left out: xenstore counts our nodes.
    pub(crate) fn publish(&mut self, platform: &mut P, key: VbdKey) -> Outcome {
        let Some(vbd) = self.vbds.get(&key) else { return Outcome::Done };
        let Identity::Open(device) = &vbd.identity else { return Outcome::Done };
        let Some(entry) = self.disks.get(device.disk) else { return Outcome::Done };
        // Another directory may have come in the place of the one that was read: its disk is another.
        let mode = match device.mode {
            Access::ReadOnly => "r",
            Access::ReadWrite => "w",
        };
        let read = [(keys::PARAMS, &device.params[..]), (keys::MODE, mode.as_bytes())];
        let mut changes: Vec<Change> =
            read.map(|(name, value)| Change::Expect(vbd.node(name), value.into())).into();
        for (name, value, default) in self.offered(device, entry) {
            if Some(value) != default {
                changes.push(Change::Write(vbd.node(name), value.to_string().into_bytes()));
            }
        }
        let state = XenbusState::InitWait.to_string();
        changes.push(Change::Write(vbd.node(STATE), state.into_bytes()));
        let nr_sectors = BlockStore::<P::Memory>::geometry(&entry.disk).nr_sectors;
        let result = self.xenstore.client.transact(changes, Tag::Published(vbd.id));
        if result.is_ok()
            && let Some(vbd) = self.vbds.get_mut(&key)
            && let Identity::Open(device) = &mut vbd.identity
        {
            device.published = Some(nr_sectors);
        }
        self.queued(platform, key, result)
    }

    fn offered(&self, device: &Device, entry: &Entry) -> [Offered; 14] {
        let geometry = BlockStore::<P::Memory>::geometry(&entry.disk);
        let flushing = BlockStore::<P::Memory>::flushing(&entry.disk);
        let flushes = u64::from(flushing == Flushing::Offered);
        let persistent = device.grants == GrantUse::Persistent && self.settings.max_persistent > 0;
        let logical_bytes = geometry.logical.bytes();
        let discard = geometry.discard.filter(|_| device.discards == Discards::Offered);
        let secure = discard.is_some_and(|limits| limits.secure == SecureDiscard::Offered);
        [
            (keys::SECTORS, geometry.nr_sectors, None),
            (keys::SECTOR_SIZE, logical_bytes.into(), None),
            (
                keys::PHYSICAL_SECTOR_SIZE,
                geometry.physical_bytes.into(),
                Some(logical_bytes.into()),
            ),
            (keys::INFO, device.info.bits().into(), None),
            (keys::FEATURE_FLUSH_CACHE, flushes, Some(0)),
            (keys::FEATURE_BARRIER, flushes, Some(0)),
            (keys::FEATURE_DISCARD, discard.is_some().into(), Some(0)),
            (
                keys::DISCARD_GRANULARITY,
                discard.map_or(logical_bytes, |limits| limits.granularity_bytes).into(),
                Some(logical_bytes.into()),
            ),
            (keys::DISCARD_SECURE, secure.into(), Some(0)),
            (keys::FEATURE_PERSISTENT, persistent.into(), Some(0)),
            (keys::FEATURE_MAX_INDIRECT_SEGMENTS, self.max_indirect(entry), Some(0)),
            (keys::MAX_RING_PAGE_ORDER, self.offer.max_ring_order.get().into(), Some(0)),
            (keys::MAX_RING_PAGES, self.offer.max_ring_order.nr_pages().into(), Some(1)),
            (keys::MULTI_QUEUE_MAX_QUEUES, self.offer.max_queues.into(), Some(1)),
        ]
    }

    /// Most segments of an indirect request. One for a device is no longer than its buffers.
    fn max_indirect(&self, entry: &Entry) -> u64 {
        let of_device = entry.extent.and_then(|extent| match extent.device {
            Ground::Vbd(device) => self.upstreams.get(device).map(Upstream::max_segments),
            Ground::Namespace(name) => {
                find_namespace(&self.namespaces, name).map(|shared| max_segments(shared))
            }
        });
        of_device.unwrap_or(u64::MAX).min(self.engine.max_indirect().get().into())
    }
}
