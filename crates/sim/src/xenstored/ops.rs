//! The operations on nodes.

use xen_abi::DomId;

use super::tree::{base_name, child_path, is_within, parent_of};
use super::watch::Match;
use super::{Caller, DOM0, Errno, Node, Perms, Xenstored};

const ABS_PATH_MAX: usize = 3072;
const REL_PATH_MAX: usize = 2048;
/// The most that one message carries (`XENSTORE_PAYLOAD_MAX`).
pub(super) const PAYLOAD_MAX: usize = 4096;

/// Whether a path may name a special event such as `@releaseDomain`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Special {
    Allowed,
    Forbidden,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Read,
    Write,
    Own,
}

impl Need {
    fn met_by(self, perms: &Perms, domid: DomId) -> bool {
        match self {
            Self::Read => perms.of(domid).may_read(),
            Self::Write => perms.of(domid).may_write(),
            Self::Own => domid == DOM0 || perms.owner == domid,
        }
    }
}

impl Xenstored {
    /// The absolute path that a request's path means.
    pub(super) fn canonical(domid: DomId, path: &str, special: Special) -> Result<String, Errno> {
        let valid = |b: u8| b.is_ascii_alphanumeric() || b"-/_@".contains(&b);
        let is_special = path.starts_with('@');
        if path.is_empty()
            || !path.bytes().all(valid)
            || (is_special && special == Special::Forbidden)
        {
            return Err(Errno::Einval);
        }
        let base = format!("/local/domain/{domid}/");
        let absolute = if path.starts_with('/') || is_special {
            path.to_owned()
        } else {
            format!("{base}{path}")
        };
        let own_len = absolute.strip_prefix(&base).map_or(0, str::len);
        if (absolute.ends_with('/') && absolute != "/")
            || absolute.contains("//")
            || absolute.len() > ABS_PATH_MAX
            || own_len > REL_PATH_MAX
        {
            return Err(Errno::Einval);
        }
        Ok(absolute)
    }

    /// The node at `path`, for a caller that needs this of it. What is missing or forbidden is
    /// told apart only where the nearest ancestor allows the caller as much.
    fn get(&mut self, who: Caller, path: &str, need: Need) -> Result<Node, Errno> {
        let errno = match self.look(who, path) {
            Some(node) if need.met_by(&node.perms, who.domid) => return Ok(node),
            Some(_) => Errno::Eacces,
            None => Errno::Enoent,
        };
        let mut up = path;
        loop {
            up = parent_of(up);
            if let Some(parent) = self.look(who, up) {
                let told = need.met_by(&parent.perms, who.domid);
                return Err(if told { errno } else { Errno::Eacces });
            }
        }
    }

    fn enter(&self, who: Caller, path: &str) -> Result<String, Errno> {
        self.check_caller(who)?;
        Self::canonical(who.domid, path, Special::Forbidden)
    }

    /// `READ`.
    ///
    /// # Errors
    /// EINVAL, EACCES or ENOENT as xenstored has them.
    pub fn read(&mut self, who: Caller, path: &str) -> Result<Vec<u8>, Errno> {
        let path = self.enter(who, path)?;
        Ok(self.get(who, &path, Need::Read)?.value)
    }

    /// `DIRECTORY`: the names of the children.
    ///
    /// # Errors
    /// As [`Xenstored::read`]; E2BIG where they do not fit a message.
    pub fn directory(&mut self, who: Caller, path: &str) -> Result<Vec<String>, Errno> {
        let path = self.enter(who, path)?;
        let children = self.get(who, &path, Need::Read)?.children;
        if children.iter().map(|name| name.len() + 1).sum::<usize>() > PAYLOAD_MAX {
            return Err(Errno::E2big);
        }
        Ok(children)
    }

    /// `DIRECTORY_PART`: the node's generation and the list of its children's names, each with
    /// its nul.
    pub(super) fn children_list(
        &mut self,
        who: Caller,
        path: &str,
    ) -> Result<(u64, Vec<u8>), Errno> {
        let path = self.enter(who, path)?;
        let node = self.get(who, &path, Need::Read)?;
        let list = node.children.iter().flat_map(|name| name.bytes().chain([0])).collect();
        Ok((node.generation, list))
    }

    /// `GET_PERMS`.
    ///
    /// # Errors
    /// As [`Xenstored::read`].
    pub fn get_perms(&mut self, who: Caller, path: &str) -> Result<Perms, Errno> {
        let path = self.enter(who, path)?;
        Ok(self.get(who, &path, Need::Read)?.perms)
    }

    fn size_fits(&self, who: Caller, node: &Node) -> bool {
        who.domid == DOM0 || node.size_bytes() < self.quotas.node_bytes
    }

    /// `WRITE`: creates missing ancestors, which as the node belong to an unprivileged caller.
    ///
    /// # Errors
    /// EINVAL or EACCES as xenstored has them, ENOSPC past a quota.
    pub fn write(&mut self, who: Caller, path: &str, value: &[u8]) -> Result<(), Errno> {
        let path = self.enter(who, path)?;
        match self.get(who, &path, Need::Write) {
            Ok(mut node) => {
                node.value = value.to_vec();
                if !self.size_fits(who, &node) {
                    self.fail_half_way(who);
                    return Err(Errno::Enospc);
                }
                let perms = node.perms.clone();
                self.put(who, &path, Some(node));
                self.fire_by(who, &path, Match::Subtree, &perms);
                Ok(())
            }
            Err(Errno::Enoent) => self.create(who, &path, value),
            Err(errno) => Err(errno),
        }
    }

    /// `MKDIR`: a node that exists stays as it is.
    ///
    /// # Errors
    /// As [`Xenstored::write`].
    pub fn mkdir(&mut self, who: Caller, path: &str) -> Result<(), Errno> {
        let path = self.enter(who, path)?;
        match self.get(who, &path, Need::Write) {
            Err(Errno::Enoent) => self.create(who, &path, b""),
            found => found.map(drop),
        }
    }

    fn create(&mut self, who: Caller, path: &str, value: &[u8]) -> Result<(), Errno> {
        let mut missing = vec![path.to_owned()];
        let mut ancestor_path = parent_of(path);
        let mut ancestor = loop {
            if let Some(node) = self.look(who, ancestor_path) {
                break node;
            }
            missing.push(ancestor_path.to_owned());
            ancestor_path = parent_of(ancestor_path);
        };
        let mut perms = ancestor.perms.clone();
        if who.domid != DOM0 {
            perms.owner = who.domid;
        }

        // Deepest first, as xenstored writes them: a quota met on the way spoils a transaction.
        let mut new = Vec::new();
        let mut room = self.quotas.nodes.saturating_sub(self.nr_nodes_seen(who));
        let mut child = None;
        for path in &missing {
            let mut node = Node::new(perms.clone(), Vec::new());
            node.value = if child.is_none() { value.to_vec() } else { Vec::new() };
            node.children.extend(child);
            if who.domid != DOM0 && room == 0 {
                if !new.is_empty() {
                    self.fail_half_way(who);
                }
                return Err(self.quotas.nodes_errno);
            }
            if !self.size_fits(who, &node) {
                self.fail_half_way(who);
                return Err(Errno::Enospc);
            }
            room = room.saturating_sub(1);
            child = Some(base_name(path).to_owned());
            new.push(node);
        }
        ancestor.children.extend(child);
        if !self.size_fits(who, &ancestor) {
            self.fail_half_way(who);
            return Err(Errno::Enospc);
        }
        for (path, node) in missing.iter().zip(new) {
            self.put(who, path, Some(node));
        }
        self.put(who, ancestor_path, Some(ancestor));
        self.fire_by(who, path, Match::Subtree, &perms);
        Ok(())
    }

    /// `RM`: the node and all below it. No node is no error where its parent is there.
    ///
    /// # Errors
    /// EINVAL for a malformed path or the root, EACCES, ENOENT where the parent is missing too.
    pub fn rm(&mut self, who: Caller, path: &str) -> Result<(), Errno> {
        let path = self.enter(who, path)?;
        match self.get(who, &path, Need::Write) {
            Ok(_) if path == "/" => Err(Errno::Einval),
            Ok(_) => {
                self.remove_tree(who, &path);
                Ok(())
            }
            Err(Errno::Enoent) => self.look(who, parent_of(&path)).map(drop).ok_or(Errno::Enoent),
            Err(errno) => Err(errno),
        }
    }

    /// Removes a node that exists with all below it; events come for the children first.
    pub(super) fn remove_tree(&mut self, who: Caller, path: &str) {
        self.remove_below(who, path, path);
        let parent_path = parent_of(path);
        let mut parent = self.look(who, parent_path).expect("a node's parent exists");
        parent.children.retain(|name| name != base_name(path));
        self.put(who, parent_path, Some(parent));
    }

    fn remove_below(&mut self, who: Caller, path: &str, root: &str) {
        let Some(node) = self.look(who, path) else { return };
        debug_assert!(is_within(path, root));
        for name in &node.children {
            self.remove_below(who, &child_path(path, name), root);
        }
        self.put(who, path, None);
        let matching = if path == root { Match::Subtree } else { Match::Exact };
        self.fire_by(who, path, matching, &node.perms);
    }

    /// `SET_PERMS`.
    ///
    /// # Errors
    /// As [`Xenstored::write`]; EPERM where an unprivileged caller names another owner, ENOSPC
    /// past the number of entries.
    pub fn set_perms(&mut self, who: Caller, path: &str, perms: Perms) -> Result<(), Errno> {
        let path = self.enter(who, path)?;
        if who.domid != DOM0 && perms.len() > self.quotas.perms {
            return Err(Errno::Enospc);
        }
        let mut node = self.get(who, &path, Need::Own)?;
        if who.domid != DOM0 && perms.owner != node.perms.owner {
            return Err(Errno::Eperm);
        }
        let old = std::mem::replace(&mut node.perms, perms);
        self.put(who, &path, Some(node));
        self.fire_by(who, &path, Match::Subtree, &old);
        Ok(())
    }
}
