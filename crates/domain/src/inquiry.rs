//! Several nodes read at once: an inquiry is over when the last of its answers is there.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use blkback::{RingKeys, Terms};
use blkfront::Disk;
use blkif::keys;

/// What an inquiry is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Subject {
    /// What the toolstack wants of this device.
    Identity,
    /// Where both sides stand.
    Look(Own),
    /// What the frontend has chosen.
    Terms,
    /// A ring of the frontend; those before it are known.
    Ring(Terms, Vec<RingKeys>),
    /// One of our own vbds: the frontend's side is ours.
    Upstream(About),
}

/// What is asked about one of our own vbds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum About {
    /// Who serves it.
    Peer,
    /// Where both sides stand.
    State(Own),
    /// How large a ring may be.
    Order,
    /// The disk.
    Disk,
    /// The disk's size.
    Size,
}

/// What our own `state` node says when it is read, if it is still ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Own {
    /// 1, as the toolstack wrote it.
    New,
    /// What we have written: where it is 1, another directory has come in the place of ours.
    Written,
}

impl Own {
    pub(crate) const fn of(is_new: bool) -> Self {
        if is_new { Self::New } else { Self::Written }
    }

    /// Whether a state that was read is another directory's.
    pub(crate) fn is_another(self, state: Option<&[u8]>) -> bool {
        self == Self::Written && state == Some(b"1")
    }
}

/// Whose directory a node is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// The backend's: ours, but for one of our own vbds.
    Backend,
    /// The frontend's.
    Frontend,
}

pub(crate) const STATE: &str = "state";
pub(crate) const ONLINE: &str = "online";
pub(crate) const FRONTEND: &str = "frontend";
pub(crate) const FRONTEND_ID: &str = "frontend-id";
const BACKEND: &str = "backend";
const BACKEND_ID: &str = "backend-id";
pub(crate) const REMOVABLE: &str = "removable";

impl Subject {
    /// Whose directory the peer writes; the toolstack alone writes the other one, and we.
    const fn peer(&self) -> Side {
        match self {
            Self::Upstream(_) => Side::Backend,
            _ => Side::Frontend,
        }
    }

    /// The nodes, in the order of the answers.
    pub(crate) fn nodes(&self) -> Vec<(Side, String)> {
        let nodes = |nodes: &[(Side, &str)]| {
            nodes.iter().map(|&(side, name)| (side, name.into())).collect()
        };
        match self {
            Self::Identity => nodes(&[
                (Side::Backend, STATE),
                (Side::Backend, ONLINE),
                (Side::Backend, FRONTEND),
                (Side::Backend, FRONTEND_ID),
                (Side::Backend, keys::PARAMS),
                (Side::Backend, keys::MODE),
                (Side::Backend, keys::DEVICE_TYPE),
                (Side::Backend, REMOVABLE),
                (Side::Backend, keys::DISCARD_ENABLE),
            ]),
            Self::Look(_) => nodes(&[
                (Side::Backend, STATE),
                (Side::Backend, ONLINE),
                (Side::Frontend, STATE),
                (Side::Backend, keys::PARAMS),
            ]),
            Self::Terms => nodes(&Terms::KEYS.map(|name| (Side::Frontend, name))),
            Self::Ring(terms, known) => {
                // As many rings as a frontend may have.
                let queue = u32::try_from(known.len()).unwrap_or(u32::MAX);
                terms.ring_keys(queue).into_iter().map(|key| (Side::Frontend, key)).collect()
            }
            Self::Upstream(About::Peer) => nodes(&[
                (Side::Frontend, BACKEND),
                (Side::Frontend, BACKEND_ID),
                (Side::Frontend, STATE),
            ]),
            Self::Upstream(About::State(_)) => {
                nodes(&[(Side::Frontend, STATE), (Side::Frontend, BACKEND), (Side::Backend, STATE)])
            }
            Self::Upstream(About::Order) => nodes(&[(Side::Backend, keys::MAX_RING_PAGE_ORDER)]),
            Self::Upstream(About::Disk) => nodes(&Disk::KEYS.map(|name| (Side::Backend, name))),
            Self::Upstream(About::Size) => nodes(&[(Side::Backend, keys::SECTORS)]),
        }
    }
}

/// Bytes that are kept of what a peer has written: no value of its that means something is longer.
const MAX_FOREIGN: usize = 32;

/// What takes the place of the rest. No value that means something ends with it.
const CUT: &[u8] = b"...";

/// An inquiry under way.
#[derive(Debug)]
pub(crate) struct Inquiry {
    pub(crate) subject: Subject,
    /// Tells its answers from those of others.
    pub(crate) number: u32,
    nr_unanswered: usize,
    /// In whose directory each node is, and what it says.
    values: Vec<(Side, Option<Box<[u8]>>)>,
}

impl Inquiry {
    /// About the [`nodes`](Subject::nodes) of a subject.
    pub(crate) fn new(subject: Subject, number: u32, nodes: &[(Side, String)]) -> Self {
        let values = nodes.iter().map(|&(side, _)| (side, None)).collect();
        Self { subject, number, nr_unanswered: nodes.len(), values }
    }

    /// Takes the answer for node number `n`; `None` where it cannot be read. Whether it was the
    /// last. Of what a peer has written no more is kept than may mean something: the heap of a small
    /// domain has no room for all that a node can hold.
    pub(crate) fn answer(&mut self, n: usize, value: Option<&[u8]>) -> bool {
        let peer = self.subject.peer();
        if let Some((side, place)) = self.values.get_mut(n) {
            *place = value.map(|value| match value.get(..MAX_FOREIGN) {
                Some(begin) if *side == peer && value.len() > MAX_FOREIGN => {
                    [begin, CUT].concat().into()
                }
                _ => value.into(),
            });
        }
        self.nr_unanswered = self.nr_unanswered.saturating_sub(1);
        self.is_over()
    }

    /// Whether the last answer is there.
    pub(crate) const fn is_over(&self) -> bool {
        self.nr_unanswered == 0
    }

    /// The value of node number `n`.
    pub(crate) fn value(&self, n: usize) -> Option<&[u8]> {
        self.values.get(n)?.1.as_deref()
    }

    /// The first `N` values.
    pub(crate) fn first<const N: usize>(&self) -> [Option<&[u8]>; N] {
        core::array::from_fn(|n| self.value(n))
    }

    /// All values.
    pub(crate) fn values(&self) -> impl Iterator<Item = Option<&[u8]>> {
        self.values.iter().map(|(_, value)| value.as_deref())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{About, Inquiry, Own, Subject};
    use blkback::{Persistence, Terms};
    use blkif::{Abi, RingOrder};
    use std::vec::Vec;

    /// What is kept of values of that many bytes each.
    fn kept(subject: Subject, len_bytes: usize) -> Vec<usize> {
        let nodes = subject.nodes();
        let mut inquiry = Inquiry::new(subject, 1, &nodes);
        let value = std::vec![b'0'; len_bytes];
        for n in 0..nodes.len() {
            assert_eq!(inquiry.answer(n, Some(&value)), n + 1 == nodes.len());
        }
        let values = inquiry.values().map(Option::unwrap);
        values
            .inspect(|kept| assert!(*kept == value || kept.ends_with(b"0..."), "{kept:?}"))
            .map(<[u8]>::len)
            .collect()
    }

    #[test]
    fn of_what_a_peer_writes_no_more_is_kept_than_may_mean_something() {
        let terms = Terms {
            abi: Abi::X86_64,
            ring_order: RingOrder::MAX,
            nr_queues: 1,
            persistence: Persistence::PerRequest,
        };
        assert_eq!(kept(Subject::Ring(terms, Vec::new()), 2048), [35; 33]);
        assert_eq!(kept(Subject::Ring(terms, Vec::new()), 32), [32; 33]);
        assert_eq!(kept(Subject::Terms, 33), [35; 5]);
        assert_eq!(kept(Subject::Upstream(About::Disk), 2048), [35; 12]);
        // What is not the peer's own is whole.
        assert_eq!(kept(Subject::Look(Own::New), 2048), [2048, 2048, 35, 2048]);
        assert_eq!(kept(Subject::Identity, 2048), [2048; 9]);
        assert_eq!(kept(Subject::Upstream(About::Peer), 2048), [2048; 3]);
        assert_eq!(kept(Subject::Upstream(About::State(Own::New)), 2048), [2048, 2048, 35]);
    }
}
