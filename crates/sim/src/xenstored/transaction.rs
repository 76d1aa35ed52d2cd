//! Transactions: a private view of each node touched, checked against the tree at the end.

use super::watch::Match;
use super::{Caller, DOM0, Errno, Node, Perms, Xenstored};

/// A node as a transaction sees it.
#[derive(Debug)]
struct Accessed {
    path: String,
    /// The generation at the first access; `None` where there was no node.
    generation: Option<u64>,
    /// The permissions at the first access.
    perms: Option<Perms>,
    node: Option<Node>,
    modified: bool,
    fire: Option<Match>,
}

#[derive(Debug, Default)]
pub(super) struct Transaction {
    /// In the order of the first access, which is the order of the events of the commit.
    accessed: Vec<Accessed>,
    /// An operation failed half-way; nothing can be committed any more.
    failed: bool,
}

impl Transaction {
    fn find(&mut self, path: &str) -> Option<&mut Accessed> {
        self.accessed.iter_mut().find(|accessed| accessed.path == path)
    }

    /// How many nodes of `owner` the commit would add.
    fn nr_added(&self, owner: xen_abi::DomId) -> isize {
        let owns = |perms: Option<&Perms>| isize::from(perms.is_some_and(|p| p.owner == owner));
        let accessed = self.accessed.iter();
        accessed
            .map(|a| owns(a.node.as_ref().map(|node| &node.perms)) - owns(a.perms.as_ref()))
            .sum()
    }
}

impl Xenstored {
    fn transaction(&mut self, who: Caller) -> &mut Transaction {
        let connection = self.connections.get_mut(&who.domid);
        let found = connection.and_then(|c| c.transactions.get_mut(&who.tx_id));
        found.expect("checked when the request came in")
    }

    /// Whether the caller's transaction is there.
    pub(super) fn check_caller(&self, who: Caller) -> Result<(), Errno> {
        let connection = self.connections.get(&who.domid).ok_or(Errno::Einval)?;
        if who.tx_id == 0 || connection.transactions.contains_key(&who.tx_id) {
            Ok(())
        } else {
            Err(Errno::Enoent)
        }
    }

    /// The node at `path` as the caller sees it, whatever its rights.
    pub(super) fn look(&mut self, who: Caller, path: &str) -> Option<Node> {
        let node = self.tree.get(path).cloned();
        if who.tx_id == 0 {
            return node;
        }
        let transaction = self.transaction(who);
        if let Some(accessed) = transaction.find(path) {
            return accessed.node.clone();
        }
        transaction.accessed.push(Accessed {
            path: path.to_owned(),
            generation: node.as_ref().map(|node| node.generation),
            perms: node.as_ref().map(|node| node.perms.clone()),
            node: node.clone(),
            modified: false,
            fire: None,
        });
        node
    }

    /// Writes (`Some`) or deletes a node that the caller looked at before.
    pub(super) fn put(&mut self, who: Caller, path: &str, node: Option<Node>) {
        if who.tx_id == 0 {
            match node {
                Some(node) => self.tree.insert(path, node),
                None => self.tree.remove(path),
            }
            return;
        }
        let accessed = self.transaction(who).find(path).expect("looked at before");
        accessed.node = node;
        accessed.modified = true;
    }

    /// Keeps an event for the commit. Returns false outside transactions.
    pub(super) fn postpone(&mut self, who: Caller, path: &str, matching: Match) -> bool {
        if who.tx_id == 0 {
            return false;
        }
        let accessed = self.transaction(who).find(path).expect("looked at before");
        if accessed.fire != Some(Match::Subtree) {
            accessed.fire = Some(matching);
        }
        true
    }

    /// An operation failed after it had changed something: in a transaction that cannot be
    /// undone.
    pub(super) fn fail_half_way(&mut self, who: Caller) {
        if who.tx_id != 0 {
            self.transaction(who).failed = true;
        }
    }

    /// How many nodes the caller would own after its transaction.
    pub(super) fn nr_nodes_seen(&mut self, who: Caller) -> usize {
        let owned = self.tree.nr_owned(who.domid);
        if who.tx_id == 0 {
            return owned;
        }
        owned.saturating_add_signed(self.transaction(who).nr_added(who.domid))
    }

    /// `TRANSACTION_START`.
    ///
    /// # Errors
    /// EBUSY within a transaction, ENOSPC past the quota.
    pub fn transaction_start(&mut self, who: Caller) -> Result<u32, Errno> {
        self.check_caller(who)?;
        if who.tx_id != 0 {
            return Err(Errno::Ebusy);
        }
        let limit = self.quotas.transactions;
        let connection = self.connections.get_mut(&who.domid).expect("checked");
        if who.domid != DOM0 && connection.transactions.len() >= limit {
            return Err(Errno::Enospc);
        }
        connection.last_tx_id += 1;
        connection.transactions.insert(connection.last_tx_id, Transaction::default());
        Ok(connection.last_tx_id)
    }

    /// `TRANSACTION_END` with F.
    ///
    /// # Errors
    /// ENOENT: no such transaction.
    pub fn transaction_abort(&mut self, who: Caller) -> Result<(), Errno> {
        self.check_caller(who)?;
        let connection = self.connections.get_mut(&who.domid).expect("checked");
        connection.transactions.remove(&who.tx_id).map(drop).ok_or(Errno::Enoent)
    }

    /// `TRANSACTION_END` with T. The transaction is over whatever the answer.
    ///
    /// # Errors
    /// EAGAIN where a node that it touched changed meanwhile, ENOSPC past the node quota, ENOMEM
    /// where an operation of it had failed half-way, ENOENT: no such transaction.
    pub fn transaction_commit(&mut self, who: Caller) -> Result<(), Errno> {
        self.check_caller(who)?;
        let over_quota = who.domid != DOM0
            && who.tx_id != 0
            && self.transaction(who).nr_added(who.domid) > 0
            && self.nr_nodes_seen(who) > self.quotas.nodes;
        let connection = self.connections.get_mut(&who.domid).expect("checked");
        let transaction = connection.transactions.remove(&who.tx_id).ok_or(Errno::Enoent)?;
        if transaction.failed {
            return Err(Errno::Enomem);
        }
        if over_quota {
            return Err(self.quotas.nodes_errno);
        }
        if let Some(errno) = self.commit_faults.strike() {
            return Err(errno);
        }
        let unchanged = |accessed: &Accessed| {
            self.tree.get(&accessed.path).map(|node| node.generation) == accessed.generation
        };
        if !transaction.accessed.iter().all(unchanged) {
            return Err(Errno::Eagain);
        }
        for accessed in transaction.accessed {
            if accessed.modified {
                self.put(Caller::plain(who.domid), &accessed.path, accessed.node);
            }
            if let Some(matching) = accessed.fire {
                self.fire(&accessed.path, matching, accessed.perms.as_ref());
            }
        }
        Ok(())
    }
}
