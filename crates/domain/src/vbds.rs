//! The vbds there are.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::vbd::{Vbd, VbdKey};

/// All vbds, in the order of their keys. A few hundred at most: a new one moves as many pointers.
#[expect(clippy::vec_box, reason = "a vbd is large, and others come and go")]
pub(crate) struct Vbds<M>(Vec<Box<Vbd<M>>>);

impl<M> Vbds<M> {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn get(&self, key: &VbdKey) -> Option<&Vbd<M>> {
        Some(&self.0[self.find(key).ok()?])
    }

    /// The one at that place in their order.
    pub(crate) fn nth(&self, n: usize) -> Option<&Vbd<M>> {
        self.0.get(n).map(Box::as_ref)
    }

    pub(crate) fn get_mut(&mut self, key: &VbdKey) -> Option<&mut Vbd<M>> {
        let at = self.find(key).ok()?;
        Some(&mut self.0[at])
    }

    /// The vbd of a key, made by `new` where there is none.
    pub(crate) fn get_or_insert_with(
        &mut self,
        key: &VbdKey,
        new: impl FnOnce() -> Vbd<M>,
    ) -> &mut Vbd<M> {
        let at = self.find(key).unwrap_or_else(|at| {
            self.0.insert(at, Box::new(new()));
            at
        });
        &mut self.0[at]
    }

    pub(crate) fn remove(&mut self, key: &VbdKey) -> Option<Box<Vbd<M>>> {
        let at = self.find(key).ok()?;
        Some(self.0.remove(at))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = VbdKey> {
        self.iter().map(|vbd| vbd.id.key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Vbd<M>> {
        self.0.iter().map(Box::as_ref)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Vbd<M>> {
        self.0.iter_mut().map(Box::as_mut)
    }

    /// Where a vbd is, or where it would have to be.
    fn find(&self, key: &VbdKey) -> Result<usize, usize> {
        self.0.binary_search_by_key(key, |vbd| vbd.id.key)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::Vbds;
    use crate::vbd::{Vbd, VbdId, VbdKey};
    use std::vec::Vec;
    use xen_abi::DomId;

    const fn key(frontend: u16, devid: u32) -> VbdKey {
        VbdKey { frontend: DomId(frontend), devid }
    }

    #[test]
    fn vbds_stand_in_the_order_of_their_keys() {
        let mut vbds = Vbds::<()>::new();
        for (life, key) in (1..).zip([key(2, 51712), key(1, 51728), key(2, 0), key(1, 51712)]) {
            vbds.get_or_insert_with(&key, || Vbd::new(VbdId { key, life }));
        }
        let found = vbds.get_or_insert_with(&key(2, 0), || panic!("it is there"));
        assert_eq!(found.id.life, 3);
        let keys: Vec<_> = vbds.keys().collect();
        assert_eq!(keys, [key(1, 51712), key(1, 51728), key(2, 0), key(2, 51712)]);
        assert_eq!(vbds.get(&key(1, 51728)).map(|vbd| vbd.id.life), Some(2));
        assert_eq!(vbds.remove(&key(1, 51728)).map(|vbd| vbd.id.life), Some(2));
        assert!(vbds.remove(&key(1, 51728)).is_none() && vbds.get_mut(&key(3, 0)).is_none());
        assert_eq!(vbds.len(), 3);
    }
}
