//! A model of xenstored (`tools/xenstored`).
//!
//! The same checks and the same order of events as the C daemon: permissions, transactions that
//! conflict, watches with their first event, quotas. Domains with a ring page speak the wire
//! protocol through it ([`Xenstored::receive`], [`Xenstored::send`]); the toolstack and the guests of a test call the
//! operations directly, with the rights of the domain they name.

mod errno;
mod ops;
mod transaction;
mod tree;
mod watch;
mod wire;

use std::collections::BTreeMap;

use xen_abi::DomId;

use crate::{Fault, Rng};

pub use errno::Errno;
use transaction::Transaction;
use tree::{Node, Tree};
pub use tree::{NodeAccess, Perms};
pub use watch::DuplicateEvents;
use watch::Watch;
pub use wire::Broken;
use wire::Wire;

/// The privileged domain: no permission and no quota binds it.
pub(crate) const DOM0: DomId = DomId(0);

/// A request's sender, and the transaction it belongs to; 0 for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// The sender.
    pub domid: DomId,
    /// Its transaction.
    pub tx_id: u32,
}

impl Caller {
    /// A request outside transactions.
    #[must_use]
    pub const fn plain(domid: DomId) -> Self {
        Self { domid, tx_id: 0 }
    }
}

/// What an unprivileged domain may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quotas {
    /// Nodes that it owns.
    pub nodes: usize,
    /// Watches.
    pub watches: usize,
    /// Transactions at once.
    pub transactions: usize,
    /// Size of a node in bytes: header, permissions, value and children's names.
    pub node_bytes: usize,
    /// Permission entries of a node.
    pub perms: usize,
    /// What a creation past the node quota is told: ENOSPC, or EQUOTA by oxenstored.
    pub nodes_errno: Errno,
}

impl Default for Quotas {
    /// xenstored's own.
    fn default() -> Self {
        Self {
            nodes: 1000,
            watches: 128,
            transactions: 10,
            node_bytes: 2048,
            perms: 5,
            nodes_errno: Errno::Enospc,
        }
    }
}

#[derive(Debug, Default)]
struct Connection {
    watches: Vec<Watch>,
    transactions: BTreeMap<u32, Transaction>,
    last_tx_id: u32,
    wire: Option<Wire>,
}

/// The daemon.
#[derive(Debug)]
pub struct Xenstored {
    tree: Tree,
    connections: BTreeMap<DomId, Connection>,
    /// What unprivileged domains may use.
    pub quotas: Quotas,
    /// What becomes of an event that already waits to be sent.
    pub duplicates: DuplicateEvents,
    /// Failures of commits, besides those that conflict.
    pub commit_faults: Fault<Errno>,
    /// Failures of requests that come through a ring.
    pub request_faults: Fault<Errno>,
}

impl Xenstored {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let mut xenstored = Self {
            tree: Tree::new(),
            connections: BTreeMap::new(),
            quotas: Quotas::default(),
            duplicates: DuplicateEvents::Queue,
            commit_faults: Fault::new(rng.fork()),
            request_faults: Fault::new(rng.fork()),
        };
        xenstored.introduce(DOM0);
        xenstored
    }

    /// A domain appears (`XS_INTRODUCE`).
    pub fn introduce(&mut self, domid: DomId) {
        self.connections.entry(domid).or_default();
    }

    /// A domain is gone: its connection ends, and the nodes that it owned go with all below them.
    pub fn release(&mut self, domid: DomId) {
        self.connections.remove(&domid);
        let owned =
            |(path, node): (&str, &Node)| (node.perms.owner == domid).then(|| path.to_owned());
        let paths: Vec<String> = self.tree.paths().filter_map(owned).collect();
        for path in paths {
            if self.tree.get(&path).is_some() {
                self.remove_tree(Caller::plain(DOM0), &path);
            }
        }
    }

    /// A number that is another one after every change of the tree.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.tree.generation()
    }

    /// How many nodes a domain owns: what counts against [`Quotas::nodes`].
    #[must_use]
    pub fn nr_nodes(&self, domid: DomId) -> usize {
        self.tree.nr_owned(domid)
    }

    /// The paths of the nodes that a domain owns.
    #[must_use]
    pub fn nodes_of(&self, domid: DomId) -> Vec<String> {
        let owned = self.tree.paths().filter(|(_, node)| node.perms.owner == domid);
        owned.map(|(path, _)| path.to_owned()).collect()
    }

    /// How many watches a domain has.
    #[must_use]
    pub fn nr_watches(&self, domid: DomId) -> usize {
        self.connections.get(&domid).map_or(0, |connection| connection.watches.len())
    }

    /// How many transactions a domain has open.
    #[must_use]
    pub fn nr_transactions(&self, domid: DomId) -> usize {
        self.connections.get(&domid).map_or(0, |connection| connection.transactions.len())
    }

    /// Every node below `path` and itself, as dom0 sees them, for a test's message or comparison.
    #[must_use]
    pub fn dump(&self, path: &str) -> Vec<(String, String)> {
        let within = self.tree.paths().filter(|(other, _)| tree::is_within(other, path));
        within
            .map(|(path, node)| {
                (path.to_owned(), String::from_utf8_lossy(&node.value).into_owned())
            })
            .collect()
    }
}
