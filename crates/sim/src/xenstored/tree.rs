//! Nodes, who may do what with them, and who pays for them.

use std::collections::BTreeMap;
use std::fmt;

use xen_abi::DomId;

/// What a permission entry allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeAccess {
    /// Nothing: `n`.
    None,
    /// Reading: `r`.
    Read,
    /// Writing: `w`.
    Write,
    /// Both: `b`.
    Both,
}

impl NodeAccess {
    pub(super) const fn may_read(self) -> bool {
        matches!(self, Self::Read | Self::Both)
    }

    pub(super) const fn may_write(self) -> bool {
        matches!(self, Self::Write | Self::Both)
    }

    const fn letter(self) -> char {
        match self {
            Self::None => 'n',
            Self::Read => 'r',
            Self::Write => 'w',
            Self::Both => 'b',
        }
    }
}

/// A node's permissions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Perms {
    /// The owner, who may do everything and whose quota the node counts against.
    pub owner: DomId,
    /// What every domain may do that has no entry of its own.
    pub others: NodeAccess,
    /// Entries of single domains.
    pub entries: Vec<(DomId, NodeAccess)>,
}

impl Perms {
    /// The owner's alone.
    #[must_use]
    pub const fn private(owner: DomId) -> Self {
        Self { owner, others: NodeAccess::None, entries: Vec::new() }
    }

    /// The owner's, and `reader` may read.
    #[must_use]
    pub fn readable(owner: DomId, reader: DomId) -> Self {
        let entries = vec![(reader, NodeAccess::Read)];
        Self { owner, others: NodeAccess::None, entries }
    }

    pub(super) fn of(&self, domid: DomId) -> NodeAccess {
        if domid == super::DOM0 || domid == self.owner {
            return NodeAccess::Both;
        }
        let entry = self.entries.iter().find(|(whose, _)| *whose == domid);
        entry.map_or(self.others, |(_, access)| *access)
    }

    pub(super) fn len(&self) -> usize {
        1 + self.entries.len()
    }

    /// Reads the texts of `SET_PERMS`.
    pub(super) fn parse<'a>(mut texts: impl Iterator<Item = &'a str>) -> Option<Self> {
        let (owner, others) = parse_entry(texts.next()?)?;
        let entries = texts.map(parse_entry).collect::<Option<_>>()?;
        Some(Self { owner, others, entries })
    }
}

fn parse_entry(text: &str) -> Option<(DomId, NodeAccess)> {
    let access = match text.chars().next()? {
        'n' => NodeAccess::None,
        'r' => NodeAccess::Read,
        'w' => NodeAccess::Write,
        'b' => NodeAccess::Both,
        _ => return None,
    };
    Some((DomId(text[1..].parse().ok()?), access))
}

/// As `GET_PERMS` answers, each entry with its nul.
impl fmt::Display for Perms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}\0", self.others.letter(), self.owner)?;
        self.entries
            .iter()
            .try_for_each(|(domid, access)| write!(f, "{}{domid}\0", access.letter()))
    }
}

/// One node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Node {
    pub(super) value: Vec<u8>,
    pub(super) perms: Perms,
    /// Names of the children, oldest first.
    pub(super) children: Vec<String>,
    /// Changes with every change of the node.
    pub(super) generation: u64,
}

impl Node {
    pub(super) fn new(perms: Perms, value: Vec<u8>) -> Self {
        Self { value, perms, children: Vec::new(), generation: 0 }
    }

    /// What counts against the node size quota: header, permissions, value, children's names.
    pub(super) fn size_bytes(&self) -> usize {
        const HEADER_BYTES: usize = 24;
        const PERM_BYTES: usize = 8;
        let names: usize = self.children.iter().map(|name| name.len() + 1).sum();
        HEADER_BYTES + PERM_BYTES * self.perms.len() + self.value.len() + names
    }
}

/// All nodes by their path.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
    owned: BTreeMap<DomId, usize>,
    generation: u64,
}

impl Tree {
    pub(super) fn new() -> Self {
        let mut tree = Self { nodes: BTreeMap::new(), owned: BTreeMap::new(), generation: 0 };
        tree.insert("/", Node::new(Perms::private(super::DOM0), Vec::new()));
        tree
    }

    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    pub(super) fn insert(&mut self, path: &str, mut node: Node) {
        self.generation += 1;
        node.generation = self.generation;
        *self.owned.entry(node.perms.owner).or_default() += 1;
        if let Some(old) = self.nodes.insert(path.to_owned(), node) {
            self.disown(old.perms.owner);
        }
    }

    pub(super) fn remove(&mut self, path: &str) {
        self.generation += 1;
        if let Some(old) = self.nodes.remove(path) {
            self.disown(old.perms.owner);
        }
    }

    fn disown(&mut self, owner: DomId) {
        *self.owned.get_mut(&owner).expect("counted when it was inserted") -= 1;
    }

    pub(super) fn nr_owned(&self, owner: DomId) -> usize {
        self.owned.get(&owner).copied().unwrap_or(0)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }
}

/// The path of a node's parent; the root is its own.
pub(super) fn parent_of(path: &str) -> &str {
    match path.rfind('/') {
        None | Some(0) => "/",
        Some(slash) => &path[..slash],
    }
}

/// The last part of a path.
pub(super) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The path of a child.
pub(super) fn child_path(path: &str, name: &str) -> String {
    if path == "/" { format!("/{name}") } else { format!("{path}/{name}") }
}

/// Whether `path` is `ancestor` or below it.
pub(super) fn is_within(path: &str, ancestor: &str) -> bool {
    ancestor == "/"
        || path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
