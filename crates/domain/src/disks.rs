//! The disks there are, and who holds them.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use catalog::{Ground, Handover};
use store::{Access, Disk};

use crate::refusal::Refusal;
use crate::vbd::VbdKey;

/// Which disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DiskId(usize);

/// A disk and who holds it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) disk: Disk,
    /// What it is called; `None` where it goes with the one vbd that holds it.
    pub(crate) name: Option<String>,
    /// The image that it is an overlay of.
    pub(crate) image: Option<String>,
    /// What it is on, where that is a disk that another domain serves, or a namespace.
    pub(crate) extent: Option<Extent>,
    /// What takes longer than a step.
    pub(crate) work: Option<Work>,
    holders: Vec<Holder>,
}

/// The part of an upstream disk that a disk is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub(crate) device: Ground,
    /// Its first sector.
    pub(crate) first: u64,
    /// How many there are; `None` for all up to the end, wherever that comes to be.
    pub(crate) nr_sectors: Option<u64>,
    pub(crate) role: Role,
}

/// What a disk does with what it is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Its holders read and write it.
    Itself,
    /// It is only read, for as long as there is the disk: what is written is kept apart.
    Base,
}

impl Extent {
    const fn overlaps(&self, other: &Self) -> bool {
        const fn end(extent: &Extent) -> u64 {
            match extent.nr_sectors {
                Some(nr) => extent.first.saturating_add(nr),
                None => u64::MAX,
            }
        }
        self.first < end(other) && other.first < end(self)
    }
}

/// What is being done to a disk, a part in each step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Work {
    /// Its pages are given back. It may be used meanwhile.
    Empty,
    /// It becomes as small as so many sectors.
    Shrink(u64),
}

/// A vbd that has a disk open.
#[derive(Debug)]
struct Holder {
    key: VbdKey,
    access: Access,
    link: Link,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    /// Its frontend has no ring.
    None,
    /// It has one, or is about to.
    Connected,
}

/// The vbd that stands in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("vbd {0} holds it")]
pub(crate) struct HeldBy(pub(crate) VbdKey);

impl Entry {
    /// A disk that nobody holds.
    pub(crate) const fn new(disk: Disk, name: Option<String>, image: Option<String>) -> Self {
        Self { disk, name, image, extent: None, work: None, holders: Vec::new() }
    }

    /// What it does with an upstream disk: nothing, where nobody holds it.
    fn use_of(&self, extent: &Extent) -> Option<Access> {
        let holders = || self.holders.iter();
        match extent.role {
            Role::Base => Some(Access::ReadOnly),
            Role::Itself if holders().any(|h| h.access == Access::ReadWrite) => {
                Some(Access::ReadWrite)
            }
            Role::Itself => holders().next().map(|holder| holder.access),
        }
    }

    /// The vbds that hold it.
    pub(crate) fn holders(&self) -> impl Iterator<Item = VbdKey> {
        self.holders.iter().map(|holder| holder.key)
    }

    /// What a person is told that it is: a name, or what it is on.
    pub(crate) fn title(&self) -> String {
        match (&self.name, &self.extent) {
            (Some(name), _) => name.clone(),
            (None, Some(extent)) => format!("upstream {}", extent.device),
            (None, None) => String::new(),
        }
    }

    /// Whether nobody holds it and nothing is being done to it.
    pub(crate) fn check_idle(&self) -> Result<(), Refusal> {
        let name = || self.name.clone().unwrap_or_default();
        match (self.holders().next(), self.work) {
            (Some(key), _) => Err(Refusal::Held { name: name(), by: HeldBy(key) }),
            (None, Some(_)) => Err(Refusal::AtWork(name())),
            (None, None) => Ok(()),
        }
    }

    /// What keeps `key` from connecting.
    fn connected_against(&self, key: VbdKey) -> Option<HeldBy> {
        let own = self.holders.iter().find(|holder| holder.key == key)?;
        let mut others = self.holders.iter().filter(|holder| holder.key != key);
        let other = others.find(|other| other.link == Link::Connected && own.excludes(other))?;
        Some(HeldBy(other.key))
    }
}

impl Holder {
    /// Whether the two may not be connected at once: a writer is alone.
    fn excludes(&self, other: &Self) -> bool {
        self.access == Access::ReadWrite || other.access == Access::ReadWrite
    }
}

/// All disks.
#[derive(Debug)]
pub(crate) struct Disks {
    slots: Vec<Option<Entry>>,
    max: usize,
}

impl Disks {
    /// Room for so many disks, but not for more than a few hundred.
    pub(crate) fn new(max: usize) -> Self {
        Self { slots: Vec::new(), max: max.min(512) }
    }

    /// Whether there is room for one more.
    pub(crate) fn check_room(&self) -> Result<(), Refusal> {
        if self.iter().count() < self.max { Ok(()) } else { Err(Refusal::TooMany(self.max)) }
    }

    /// Adds a disk.
    pub(crate) fn add(&mut self, entry: Entry) -> Result<DiskId, Refusal> {
        self.check_room()?;
        let free = self.slots.iter().position(Option::is_none);
        let at = free.unwrap_or(self.slots.len());
        match self.slots.get_mut(at) {
            Some(slot) => *slot = Some(entry),
            None => self.slots.push(Some(entry)),
        }
        Ok(DiskId(at))
    }

    /// A disk. It is there as long as a vbd holds it.
    pub(crate) fn get(&self, id: DiskId) -> Option<&Entry> {
        self.slots.get(id.0)?.as_ref()
    }

    /// A disk.
    pub(crate) fn get_mut(&mut self, id: DiskId) -> Option<&mut Entry> {
        self.slots.get_mut(id.0)?.as_mut()
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().flatten()
    }

    /// The disk that is called so.
    pub(crate) fn find(&self, name: &str) -> Option<DiskId> {
        let called =
            |slot: &Option<Entry>| slot.as_ref().is_some_and(|e| e.name.as_deref() == Some(name));
        self.slots.iter().position(called).map(DiskId)
    }

    /// The disks on something.
    pub(crate) fn on(&self, device: Ground) -> impl Iterator<Item = DiskId> {
        let is_on = move |slot: &Option<Entry>| {
            let extent = slot.as_ref().and_then(|entry| entry.extent);
            extent.is_some_and(|extent| extent.device == device)
        };
        (0..).zip(&self.slots).filter(move |(_, slot)| is_on(slot)).map(|(n, _)| DiskId(n))
    }

    /// Whether what a disk is on may be used so beside what the others on it do: who writes is alone
    /// there, too.
    pub(crate) fn check_extent(
        &self,
        own: Option<DiskId>,
        extent: &Extent,
        access: Access,
    ) -> Result<(), Refusal> {
        for id in self.on(extent.device).filter(|id| Some(*id) != own) {
            let Some((entry, other)) = self.get(id).and_then(|e| Some((e, e.extent?))) else {
                continue;
            };
            let Some(other_access) = entry.use_of(&other).filter(|_| extent.overlaps(&other))
            else {
                continue;
            };
            if access == Access::ReadWrite || other_access == Access::ReadWrite {
                let device = extent.device;
                return Err(match entry.holders().next() {
                    Some(key) => Refusal::UpstreamHeld { device, by: HeldBy(key) },
                    None => {
                        let name = entry.name.clone().unwrap_or_default();
                        Refusal::UpstreamBase { device, name }
                    }
                });
            }
        }
        Ok(())
    }

    /// Takes a disk out.
    pub(crate) fn remove(&mut self, id: DiskId) -> Option<Entry> {
        self.slots.get_mut(id.0)?.take()
    }

    /// Opens a disk for a vbd. One that waits for a handover may come beside those that it
    /// excludes; it connects when they have closed.
    pub(crate) fn hold(
        &mut self,
        id: DiskId,
        key: VbdKey,
        access: Access,
        handover: Handover,
    ) -> Result<(), HeldBy> {
        let Some(entry) = self.get_mut(id) else { return Ok(()) };
        let holder = Holder { key, access, link: Link::None };
        let other = entry.holders.iter().find(|other| holder.excludes(other));
        match other {
            Some(other) if handover == Handover::Refused => Err(HeldBy(other.key)),
            _ => {
                entry.holders.push(holder);
                Ok(())
            }
        }
    }

    /// Closes a disk for a vbd. Gives the disk where that was the end of it.
    pub(crate) fn release(&mut self, id: DiskId, key: VbdKey) -> Option<Disk> {
        let entry = self.get_mut(id)?;
        entry.holders.retain(|holder| holder.key != key);
        if entry.name.is_some() || !entry.holders.is_empty() {
            return None;
        }
        Some(self.remove(id)?.disk)
    }

    /// Marks a vbd as connected, unless another one that it excludes is.
    pub(crate) fn connect(&mut self, id: DiskId, key: VbdKey) -> Result<(), HeldBy> {
        let Some(entry) = self.get_mut(id) else { return Ok(()) };
        if let Some(held) = entry.connected_against(key) {
            return Err(held);
        }
        entry.set_link(key, Link::Connected);
        Ok(())
    }

    /// Marks a vbd as not connected.
    pub(crate) fn disconnect(&mut self, id: DiskId, key: VbdKey) {
        if let Some(entry) = self.get_mut(id) {
            entry.set_link(key, Link::None);
        }
    }
}

impl Entry {
    fn set_link(&mut self, key: VbdKey, link: Link) {
        for holder in self.holders.iter_mut().filter(|holder| holder.key == key) {
            holder.link = link;
        }
    }
}
