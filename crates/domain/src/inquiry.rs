//! Several nodes read at once: an inquiry is over when the last of its answers is there.

use alloc::boxed::Box;
use alloc::vec::Vec;

use blkif::keys;

/// What an inquiry is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Subject {
    /// What the toolstack wants of this device.
    Identity,
    /// Where both sides stand.
    Look,
    /// The frontend's ring.
    Ring,
}

/// A node to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Node {
    /// One of ours.
    Backend(&'static str),
    /// One of the frontend's.
    Frontend(&'static str),
}

pub(crate) const STATE: &str = "state";
pub(crate) const ONLINE: &str = "online";
pub(crate) const FRONTEND: &str = "frontend";
pub(crate) const FRONTEND_ID: &str = "frontend-id";

impl Subject {
    /// The nodes, in the order of the answers.
    pub(crate) const fn nodes(self) -> &'static [Node] {
        match self {
            Self::Identity => &[
                Node::Backend(STATE),
                Node::Backend(FRONTEND),
                Node::Backend(FRONTEND_ID),
                Node::Backend(keys::PARAMS),
                Node::Backend(keys::MODE),
            ],
            Self::Look => &[Node::Backend(STATE), Node::Backend(ONLINE), Node::Frontend(STATE)],
            Self::Ring => &[
                Node::Frontend(keys::RING_REF),
                Node::Frontend(keys::EVENT_CHANNEL),
                Node::Frontend(keys::PROTOCOL),
            ],
        }
    }
}

/// An inquiry under way.
#[derive(Debug)]
pub(crate) struct Inquiry {
    pub(crate) subject: Subject,
    /// Tells its answers from those of others.
    pub(crate) number: u32,
    nr_unanswered: usize,
    values: Vec<Option<Box<[u8]>>>,
}

impl Inquiry {
    pub(crate) fn new(subject: Subject, number: u32) -> Self {
        let nr = subject.nodes().len();
        Self { subject, number, nr_unanswered: nr, values: alloc::vec![None; nr] }
    }

    /// Takes the answer for node number `n`; `None` where it cannot be read. Whether it was the
    /// last.
    pub(crate) fn answer(&mut self, n: usize, value: Option<&[u8]>) -> bool {
        if let Some(place) = self.values.get_mut(n) {
            *place = value.map(Into::into);
        }
        self.nr_unanswered = self.nr_unanswered.saturating_sub(1);
        self.nr_unanswered == 0
    }

    /// The value of node number `n`.
    pub(crate) fn value(&self, n: usize) -> Option<&[u8]> {
        self.values.get(n)?.as_deref()
    }
}
