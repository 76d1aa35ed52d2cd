//! Pages of guests that a device reaches by itself.

use alloc::rc::Rc;

use xen_abi::Gfn;

/// Says how long something lent is in use: whoever uses it has a clone.
#[derive(Clone, Default, Debug)]
pub struct Lease(Rc<()>);

impl Lease {
    /// How many use it.
    #[must_use]
    pub fn nr_users(&self) -> usize {
        Rc::strong_count(&self.0) - 1
    }

    /// Whether nobody uses it any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.nr_users() == 0
    }
}

/// Pages that are lent for one request. They stay where they are for as long as the lease is not over.
#[derive(Clone, Copy, Debug)]
pub struct Lent<'a> {
    /// Where a device reaches them, in the order of the request's bytes: 8 sectors each, the last
    /// maybe fewer.
    pub frames: &'a [Gfn],
    /// Cloned once, for as long as a device may access them.
    pub lease: &'a Lease,
}

/// Which way data goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the disk.
    Read,
    /// To the disk.
    Write,
}
