//! Grant tables (`xen/common/grant_table.c`, version 1 entries), with Xen's status codes.

use std::collections::BTreeMap;

use xen_abi::{DomId, GntStatus, GrantHandle, GrantRef};

use crate::{Fault, Page, Rng};

/// What a grant allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GrantAccess {
    /// Reading alone (`GTF_readonly`).
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// The first grant reference that a domain hands out itself (`GNTTAB_NR_RESERVED_ENTRIES`).
const NR_RESERVED: u32 = 8;

/// What the granting domain wrote into its table.
#[derive(Clone, Debug)]
struct Shared {
    to: DomId,
    access: GrantAccess,
    page: Page,
}

/// What Xen keeps of a grant in use (`struct active_grant_entry`).
#[derive(Clone, Debug)]
struct Active {
    by: DomId,
    page: Page,
    nr_readers: u32,
    nr_writers: u32,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    shared: Option<Shared>,
    active: Option<Active>,
}

/// What a grant is pinned for: Xen's answers differ where the granting domain dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Map,
    Copy,
}

#[derive(Debug, Default)]
struct Table {
    entries: Vec<Entry>,
    free: Vec<u32>,
    dying: bool,
}

#[derive(Clone, Copy, Debug)]
struct Tracked {
    peer: DomId,
    gref: GrantRef,
    access: GrantAccess,
}

/// Every domain's grant table and the mappings of all of them.
#[derive(Debug)]
pub struct GrantTables {
    tables: BTreeMap<DomId, Table>,
    maptrack: BTreeMap<DomId, BTreeMap<GrantHandle, Tracked>>,
    last_handle: u32,
    /// How many handles a domain can have (`max_maptrack_frames`).
    pub max_handles: usize,
    /// Failures of `GNTTABOP_map_grant_ref`.
    pub map_faults: Fault<GntStatus>,
    /// Failures of `GNTTABOP_unmap_grant_ref`.
    pub unmap_faults: Fault<GntStatus>,
    /// Failures of `GNTTABOP_copy`.
    pub copy_faults: Fault<GntStatus>,
}

/// The grant is mapped or being copied from: its entry stays (Linux's "still in use").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StillInUse(pub GrantRef);

impl GrantTables {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        Self {
            tables: BTreeMap::new(),
            maptrack: BTreeMap::new(),
            last_handle: 0,
            max_handles: usize::MAX,
            map_faults: Fault::new(rng.fork()),
            unmap_faults: Fault::new(rng.fork()),
            copy_faults: Fault::new(rng.fork()),
        }
    }

    /// A domain appears.
    pub fn add_domain(&mut self, domid: DomId) {
        self.tables.entry(domid).or_default();
    }

    /// A domain is destroyed: its grants are void, its own mappings go, and its table goes when
    /// nobody has one of its pages mapped any more.
    pub fn destroy_domain(&mut self, domid: DomId) {
        for handle in self.maptrack.remove(&domid).unwrap_or_default().into_values() {
            self.release(handle.peer, handle.gref, handle.access);
        }
        if let Some(table) = self.tables.get_mut(&domid) {
            table.dying = true;
            for entry in &mut table.entries {
                entry.shared = None;
            }
        }
        self.bury(domid);
    }

    fn bury(&mut self, domid: DomId) {
        let done = self.tables.get(&domid).is_some_and(|table| {
            table.dying && table.entries.iter().all(|entry| entry.active.is_none())
        });
        if done {
            self.tables.remove(&domid);
        }
    }

    /// Whether a destroyed domain is still there, because pages of it are mapped.
    #[must_use]
    pub fn is_zombie(&self, domid: DomId) -> bool {
        self.tables.get(&domid).is_some_and(|table| table.dying)
    }

    /// Grants `page` of `domid` to the domain `to` (`gnttab_grant_foreign_access`).
    pub fn grant(&mut self, domid: DomId, to: DomId, page: &Page, access: GrantAccess) -> GrantRef {
        let table = self.tables.get_mut(&domid).expect("no such domain");
        assert!(!table.dying, "{domid:?} is being destroyed");
        let gref = table.free.pop().unwrap_or_else(|| {
            let next = table.entries.len().max(NR_RESERVED as usize);
            table.entries.resize(next + 1, Entry::default());
            u32::try_from(next).expect("a table of that size")
        });
        table.entries[gref as usize].shared = Some(Shared { to, access, page: page.clone() });
        GrantRef(gref)
    }

    /// Ends a grant (`gnttab_try_end_foreign_access`).
    ///
    /// # Errors
    /// It is in use, and stays.
    pub fn end_access(&mut self, domid: DomId, gref: GrantRef) -> Result<(), StillInUse> {
        let Some(table) = self.tables.get_mut(&domid) else { return Ok(()) };
        let entry = table.entries.get_mut(gref.0 as usize).expect("a grant of this domain");
        if entry.active.is_some() {
            return Err(StillInUse(gref));
        }
        if entry.shared.take().is_some() {
            table.free.push(gref.0);
        }
        Ok(())
    }

    /// Clears a grant's entry whether it is in use or not, as a hostile guest may: mappings that
    /// exist stay. The reference is not handed out again.
    pub fn revoke(&mut self, domid: DomId, gref: GrantRef) {
        if let Some(table) = self.tables.get_mut(&domid)
            && let Some(entry) = table.entries.get_mut(gref.0 as usize)
        {
            entry.shared = None;
        }
    }

    /// How many of a domain's grants are in use by others.
    #[must_use]
    pub fn nr_active(&self, domid: DomId) -> usize {
        let entries = self.tables.get(&domid).map_or(&[][..], |table| &table.entries);
        entries.iter().filter(|entry| entry.active.is_some()).count()
    }

    /// How many grants a domain has given.
    #[must_use]
    pub fn nr_grants(&self, domid: DomId) -> usize {
        let entries = self.tables.get(&domid).map_or(&[][..], |table| &table.entries);
        entries.iter().filter(|entry| entry.shared.is_some()).count()
    }

    /// How many grants of others a domain has mapped.
    #[must_use]
    pub fn nr_handles(&self, domid: DomId) -> usize {
        self.maptrack.get(&domid).map_or(0, BTreeMap::len)
    }

    /// Pins a grant of `peer` for `by`, with the checks of `map_grant_ref()` and
    /// `acquire_grant_for_copy()`, which are the same ones for these entries.
    fn acquire(
        &mut self,
        by: DomId,
        peer: DomId,
        gref: GrantRef,
        access: GrantAccess,
        purpose: Purpose,
    ) -> Result<Page, GntStatus> {
        let table = self.tables.get_mut(&peer).ok_or(GntStatus::BAD_DOMAIN)?;
        let dying = table.dying;
        let entry = table.entries.get_mut(gref.0 as usize).ok_or(GntStatus::BAD_GNTREF)?;
        if entry.active.as_ref().is_some_and(|active| active.by != by) {
            return Err(GntStatus::GENERAL_ERROR);
        }
        let write = access == GrantAccess::ReadWrite;
        let pinned_enough =
            entry.active.as_ref().is_some_and(|active| !write || active.nr_writers > 0);
        // Nobody can take a reference to a page of a dying domain any more.
        match (dying, pinned_enough, purpose) {
            (false, _, _) => {}
            (true, false, _) => return Err(GntStatus::BAD_PAGE),
            (true, true, Purpose::Map) => return Err(GntStatus::GENERAL_ERROR),
            (true, true, Purpose::Copy) => return Err(GntStatus::BAD_DOMAIN),
        }
        if !pinned_enough {
            let shared = entry.shared.as_ref().ok_or(GntStatus::GENERAL_ERROR)?;
            if entry.active.is_none() && shared.to != by {
                return Err(GntStatus::GENERAL_ERROR);
            }
            if write && shared.access == GrantAccess::ReadOnly {
                return Err(GntStatus::GENERAL_ERROR);
            }
        }
        let Entry { shared, active } = entry;
        let active = active.get_or_insert_with(|| {
            let page = shared.as_ref().expect("checked above").page.clone();
            Active { by, page, nr_readers: 0, nr_writers: 0 }
        });
        *(if write { &mut active.nr_writers } else { &mut active.nr_readers }) += 1;
        Ok(active.page.clone())
    }

    fn release(&mut self, peer: DomId, gref: GrantRef, access: GrantAccess) {
        let table = self.tables.get_mut(&peer).expect("a pinned page keeps its domain");
        let entry = &mut table.entries[gref.0 as usize];
        let active = entry.active.as_mut().expect("pinned");
        let pins = match access {
            GrantAccess::ReadOnly => &mut active.nr_readers,
            GrantAccess::ReadWrite => &mut active.nr_writers,
        };
        *pins -= 1;
        if active.nr_readers == 0 && active.nr_writers == 0 {
            entry.active = None;
            self.bury(peer);
        }
    }

    /// Maps a grant of `peer` for `by` (`GNTTABOP_map_grant_ref`).
    ///
    /// # Errors
    /// Xen's status: no space for a handle, no such domain, a reference past the table, or -1 for
    /// everything else that the grant does not allow.
    pub fn map(
        &mut self,
        by: DomId,
        peer: DomId,
        gref: GrantRef,
        access: GrantAccess,
    ) -> Result<(GrantHandle, Page), GntStatus> {
        if let Some(status) = self.map_faults.strike() {
            return Err(status);
        }
        if !self.tables.contains_key(&peer) {
            return Err(GntStatus::BAD_DOMAIN);
        }
        if self.nr_handles(by) >= self.max_handles {
            return Err(GntStatus::NO_SPACE);
        }
        let page = self.acquire(by, peer, gref, access, Purpose::Map)?;
        self.last_handle += 1;
        let handle = GrantHandle(self.last_handle);
        let tracked = Tracked { peer, gref, access };
        self.maptrack.entry(by).or_default().insert(handle, tracked);
        Ok((handle, page))
    }

    /// Unmaps a grant (`GNTTABOP_unmap_grant_ref`).
    ///
    /// # Errors
    /// Xen's status: no such handle.
    pub fn unmap(&mut self, by: DomId, handle: GrantHandle) -> Result<(), GntStatus> {
        let handles = self.maptrack.entry(by).or_default();
        if !handles.contains_key(&handle) {
            return Err(GntStatus::BAD_HANDLE);
        }
        if let Some(status) = self.unmap_faults.strike() {
            return Err(status);
        }
        let tracked = handles.remove(&handle).expect("looked up");
        self.release(tracked.peer, tracked.gref, tracked.access);
        Ok(())
    }

    /// Takes a grant's page for the length of one copy.
    ///
    /// # Errors
    /// As [`GrantTables::map`] says.
    pub fn for_copy(
        &mut self,
        by: DomId,
        peer: DomId,
        gref: GrantRef,
        access: GrantAccess,
    ) -> Result<Page, GntStatus> {
        let page = self.acquire(by, peer, gref, access, Purpose::Copy)?;
        self.release(peer, gref, access);
        Ok(page)
    }

    /// Whether Xen knows the domain.
    #[must_use]
    pub fn knows(&self, domid: DomId) -> bool {
        self.tables.contains_key(&domid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACK: DomId = DomId(1);
    const FRONT: DomId = DomId(5);
    const OTHER: DomId = DomId(6);
    use GrantAccess::{ReadOnly, ReadWrite};

    fn tables() -> GrantTables {
        let mut grants = GrantTables::new(&mut Rng::new(1));
        for domid in [BACK, FRONT, OTHER] {
            grants.add_domain(domid);
        }
        grants
    }

    fn status<T>(result: Result<T, GntStatus>) -> GntStatus {
        result.err().unwrap_or(GntStatus::OKAY)
    }

    #[test]
    fn a_mapping_is_the_granted_page_until_it_is_unmapped() {
        let mut grants = tables();
        let page = Page::new();
        let gref = grants.grant(FRONT, BACK, &page, ReadWrite);
        assert_eq!(gref, GrantRef(8));
        let (handle, mapped) = grants.map(BACK, FRONT, gref, ReadWrite).expect("maps");
        assert!(mapped.is(&page));
        assert_eq!((grants.nr_handles(BACK), grants.nr_active(FRONT)), (1, 1));
        assert_eq!(grants.end_access(FRONT, gref), Err(StillInUse(gref)));
        assert_eq!(grants.unmap(BACK, handle), Ok(()));
        assert_eq!(grants.unmap(BACK, handle), Err(GntStatus::BAD_HANDLE));
        assert_eq!(grants.end_access(FRONT, gref), Ok(()));
        assert_eq!((grants.nr_handles(BACK), grants.nr_grants(FRONT)), (0, 0));
        assert_eq!(grants.grant(FRONT, BACK, &page, ReadWrite), gref, "references are reused");
    }

    #[test]
    fn what_is_not_granted_has_xens_status() {
        let mut grants = tables();
        let page = Page::new();
        let gref = grants.grant(FRONT, BACK, &page, ReadOnly);
        let to_other = grants.grant(FRONT, OTHER, &page, ReadWrite);
        let mut map = |peer, gref, access| status(grants.map(BACK, peer, gref, access));
        assert_eq!(map(DomId(99), gref, ReadOnly), GntStatus::BAD_DOMAIN);
        assert_eq!(map(FRONT, GrantRef(4000), ReadOnly), GntStatus::BAD_GNTREF);
        assert_eq!(map(FRONT, GrantRef(0), ReadOnly), GntStatus::GENERAL_ERROR);
        assert_eq!(map(FRONT, to_other, ReadOnly), GntStatus::GENERAL_ERROR);
        assert_eq!(map(FRONT, gref, ReadWrite), GntStatus::GENERAL_ERROR);
        assert_eq!(map(FRONT, gref, ReadOnly), GntStatus::OKAY);
        assert_eq!(map(FRONT, gref, ReadWrite), GntStatus::GENERAL_ERROR, "read pin only");
        assert_eq!(status(grants.for_copy(BACK, FRONT, gref, ReadWrite)), GntStatus::GENERAL_ERROR);
        assert_eq!(status(grants.for_copy(BACK, FRONT, gref, ReadOnly)), GntStatus::OKAY);
    }

    #[test]
    fn a_revoked_grant_stays_mapped_and_can_be_mapped_again_only_while_it_is() {
        let mut grants = tables();
        let gref = grants.grant(FRONT, BACK, &Page::new(), ReadWrite);
        let (first, _) = grants.map(BACK, FRONT, gref, ReadWrite).expect("maps");
        grants.revoke(FRONT, gref);
        let (second, _) = grants.map(BACK, FRONT, gref, ReadWrite).expect("still pinned");
        grants.unmap(BACK, first).expect("unmaps");
        grants.unmap(BACK, second).expect("unmaps");
        assert_eq!(status(grants.map(BACK, FRONT, gref, ReadWrite)), GntStatus::GENERAL_ERROR);
    }

    #[test]
    fn a_destroyed_domain_is_a_zombie_until_its_last_page_is_unmapped() {
        let mut grants = tables();
        let gref = grants.grant(FRONT, BACK, &Page::new(), ReadWrite);
        let other = grants.grant(FRONT, BACK, &Page::new(), ReadWrite);
        let (handle, _) = grants.map(BACK, FRONT, gref, ReadWrite).expect("maps");
        grants.destroy_domain(FRONT);
        assert!(grants.is_zombie(FRONT));
        let mut map = |gref| status(grants.map(BACK, FRONT, gref, ReadWrite));
        assert_eq!([map(other), map(gref)], [GntStatus::BAD_PAGE, GntStatus::GENERAL_ERROR]);
        assert_eq!(status(grants.for_copy(BACK, FRONT, gref, ReadWrite)), GntStatus::BAD_DOMAIN);
        grants.unmap(BACK, handle).expect("unmaps");
        assert!(!grants.is_zombie(FRONT) && !grants.knows(FRONT));
        assert_eq!(status(grants.map(BACK, FRONT, gref, ReadWrite)), GntStatus::BAD_DOMAIN);
    }

    #[test]
    fn a_destroyed_domains_own_mappings_go() {
        let mut grants = tables();
        let gref = grants.grant(FRONT, BACK, &Page::new(), ReadWrite);
        grants.map(BACK, FRONT, gref, ReadWrite).expect("maps");
        grants.destroy_domain(BACK);
        assert_eq!(grants.nr_active(FRONT), 0);
        assert_eq!(grants.end_access(FRONT, gref), Ok(()));
    }

    #[test]
    fn faults_strike_the_operation_they_name() {
        let mut grants = tables();
        let gref = grants.grant(FRONT, BACK, &Page::new(), ReadWrite);
        grants.map_faults.fail_nth(2, GntStatus::EAGAIN);
        let mut map = || status(grants.map(BACK, FRONT, gref, ReadWrite));
        assert_eq!([map(), map(), map()], [GntStatus::OKAY, GntStatus::EAGAIN, GntStatus::OKAY]);
        assert_eq!((grants.nr_handles(BACK), grants.map_faults.nr_failed()), (2, 1));
        grants.max_handles = 2;
        assert_eq!(status(grants.map(BACK, FRONT, gref, ReadWrite)), GntStatus::NO_SPACE);
        grants.unmap_faults.fail_nth(1, GntStatus::GENERAL_ERROR);
        assert_eq!(grants.unmap(BACK, GrantHandle(1)), Err(GntStatus::GENERAL_ERROR));
        assert_eq!(grants.nr_handles(BACK), 2, "a failed unmap leaves its handle");
    }
}
