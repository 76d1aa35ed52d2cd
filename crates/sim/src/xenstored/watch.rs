//! Watches and their events.

use super::tree::{self, is_within};
use super::{Caller, Connection, DOM0, Errno, Perms, Xenstored};
use xen_abi::DomId;

/// Which watches an event goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Match {
    /// Those on this very path.
    Exact,
    /// Those on it or above it.
    Subtree,
}

/// What becomes of an event while the very same one waits to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DuplicateEvents {
    /// It waits as well: oxenstored, and xenstored before 4.17.
    Queue,
    /// It is dropped: xenstored since 4.17.
    Drop,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Watch {
    path: String,
    token: String,
    /// How many bytes of an event's path the watcher does not want to see.
    prefix_len: usize,
}

impl Xenstored {
    /// `WATCH`. The first event is sent by [`Xenstored::fire_first`], after the answer.
    ///
    /// # Errors
    /// EINVAL for a malformed path, EEXIST for the same watch, E2BIG past the quota.
    pub(super) fn watch(&mut self, domid: DomId, wpath: &str, token: &str) -> Result<(), Errno> {
        let path = Self::canonical(domid, wpath, super::ops::Special::Allowed)?;
        let prefix_len = path.len() - wpath.len();
        let watch = Watch { path, token: token.to_owned(), prefix_len };
        let limit = self.quotas.watches;
        let connection = self.connections.get_mut(&domid).ok_or(Errno::Einval)?;
        if connection.watches.iter().any(|w| w.path == watch.path && w.token == watch.token) {
            return Err(Errno::Eexist);
        }
        if domid != DOM0 && connection.watches.len() >= limit {
            return Err(Errno::E2big);
        }
        connection.watches.push(watch);
        Ok(())
    }

    /// Sends the event that every new watch begins with.
    pub(super) fn fire_first(&mut self, domid: DomId, wpath: &str, token: &str) {
        if let Some(connection) = self.connections.get_mut(&domid) {
            connection.send_event(wpath, token, self.duplicates);
        }
    }

    /// `UNWATCH`. Events that wait already are still sent.
    ///
    /// # Errors
    /// EINVAL for a malformed path, ENOENT for no such watch.
    pub(super) fn unwatch(&mut self, domid: DomId, wpath: &str, token: &str) -> Result<(), Errno> {
        let path = Self::canonical(domid, wpath, super::ops::Special::Allowed)?;
        let connection = self.connections.get_mut(&domid).ok_or(Errno::Einval)?;
        let watches = &mut connection.watches;
        let at = watches.iter().position(|w| w.path == path && w.token == token);
        watches.remove(at.ok_or(Errno::Enoent)?);
        Ok(())
    }

    /// `RESET_WATCHES`: the caller's watches and transactions are gone.
    pub(super) fn reset_watches(&mut self, domid: DomId) {
        if let Some(connection) = self.connections.get_mut(&domid) {
            connection.watches.clear();
            connection.transactions.clear();
        }
    }

    /// An event of the caller's: sent now, or when its transaction is committed.
    pub(super) fn fire_by(&mut self, who: Caller, path: &str, matching: Match, perms: &Perms) {
        if !self.postpone(who, path, matching) {
            self.fire(path, matching, Some(perms));
        }
    }

    /// Sends an event to every watch that it concerns and whose owner may read the node, might
    /// before (`perms`), or may read its parent.
    pub(super) fn fire(&mut self, path: &str, matching: Match, perms: Option<&Perms>) {
        let now = self.tree.get(path).map(|node| node.perms.clone());
        let parent = self.tree.get(tree::parent_of(path)).map(|node| node.perms.clone());
        // A node that is gone is judged by what it was, and then by its parent.
        let judges = [perms, now.as_ref(), parent.as_ref()];
        for (&domid, connection) in &mut self.connections {
            if !judges.iter().flatten().any(|perms| perms.of(domid).may_read()) {
                continue;
            }
            let concerned = |watch: &&Watch| match matching {
                Match::Exact => watch.path == path,
                Match::Subtree => is_within(path, &watch.path),
            };
            let watches: Vec<Watch> =
                connection.watches.iter().filter(concerned).cloned().collect();
            for watch in watches {
                connection.send_event(&path[watch.prefix_len..], &watch.token, self.duplicates);
            }
        }
    }
}

impl Connection {
    fn send_event(&mut self, path: &str, token: &str, duplicates: DuplicateEvents) {
        if let Some(wire) = &mut self.wire {
            wire.push_event(path, token, duplicates);
        }
    }
}
