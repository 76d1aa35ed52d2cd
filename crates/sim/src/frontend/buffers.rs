//! A frontend's granted pages.

use xen_abi::{DomId, GrantRef};

use crate::{GrantAccess, Machine, Page};

/// How a frontend grants its data pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GrantUse {
    /// Each page for one request, and no more than the request needs.
    PerRequest,
    /// Each page once and for ever, for reading and writing, as `feature-persistent` says.
    Persistent,
}

/// What a page that the backend writes holds before: bytes outside the segment must stay.
pub(super) const CANARY: u8 = 0x5c;

/// A page that the backend can reach.
#[derive(Clone, Debug)]
pub(super) struct Granted {
    pub(super) page: Page,
    pub(super) gref: GrantRef,
}

/// The pages of one queue.
#[derive(Debug)]
pub(super) struct Buffers {
    machine: Machine,
    owner: DomId,
    peer: DomId,
    grant_use: GrantUse,
    pages: Vec<Page>,
    granted: Vec<Granted>,
}

impl Buffers {
    pub(super) fn new(machine: &Machine, owner: DomId, peer: DomId, grant_use: GrantUse) -> Self {
        Self {
            machine: machine.clone(),
            owner,
            peer,
            grant_use,
            pages: Vec::new(),
            granted: Vec::new(),
        }
    }

    /// A page for a request that lets the backend do `access`.
    pub(super) fn take(&mut self, access: GrantAccess) -> Granted {
        if self.grant_use == GrantUse::Persistent
            && let Some(granted) = self.granted.pop()
        {
            return granted;
        }
        let access = match self.grant_use {
            GrantUse::PerRequest => access,
            GrantUse::Persistent => GrantAccess::ReadWrite,
        };
        let page = self.pages.pop().unwrap_or_default();
        let gref = self.machine.grants().grant(self.owner, self.peer, &page, access);
        Granted { page, gref }
    }

    /// The request is answered: the backend has no business with the page any more.
    pub(super) fn give_back(&mut self, granted: Granted) {
        match self.grant_use {
            GrantUse::Persistent => self.granted.push(granted),
            GrantUse::PerRequest => {
                let ended = self.machine.grants().end_access(self.owner, granted.gref);
                ended.unwrap_or_else(|error| {
                    panic!("the backend still has a page of an answered request: {error:?}")
                });
                self.pages.push(granted.page);
            }
        }
    }

    /// The backend is gone.
    pub(super) fn end(&mut self) {
        for granted in self.granted.drain(..) {
            let ended = self.machine.grants().end_access(self.owner, granted.gref);
            ended.unwrap_or_else(|error| panic!("a closed backend still has a page: {error:?}"));
        }
    }
}
