//! A namespace as a device.

use alloc::rc::Rc;
use core::cell::RefCell;

use store::{Buffer, Completion, Device, Flushing, Geometry, Refused, Request, Tag};
use xen_abi::{Gfn, SharedMemory};

use crate::{Controller, NamespaceId, Registers};

/// A namespace of a controller that serves others, too, from the same pages: who was refused a buffer
/// has one before the others do, and is to ask until then.
#[derive(Debug)]
pub struct NamespaceDevice<R, M> {
    controller: Rc<RefCell<Controller<R, M>>>,
    nsid: NamespaceId,
    geometry: Geometry,
    flushing: Flushing,
}

impl<R: Registers, M: SharedMemory> NamespaceDevice<R, M> {
    /// The namespace of this identifier; `None` where there is none that can be used.
    #[must_use]
    pub fn new(controller: Rc<RefCell<Controller<R, M>>>, nsid: NamespaceId) -> Option<Self> {
        let disk = controller.borrow().disk(nsid)?;
        Some(Self { controller, nsid, geometry: disk.geometry, flushing: disk.flushing })
    }
}

impl<R: Registers, M: SharedMemory> Device for NamespaceDevice<R, M> {
    type Buffer = Buffer;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn flushing(&self) -> Flushing {
        self.flushing
    }

    fn max_sectors(&self) -> u64 {
        let controller = self.controller.borrow();
        controller.disk(self.nsid).map_or(0, |_| controller.max_sectors())
    }

    fn reserve(&mut self, nr_sectors: u32) -> Option<Buffer> {
        self.controller.borrow_mut().reserve_for(self.nsid, nr_sectors)
    }

    fn lend(&mut self, frames: &[Gfn], nr_sectors: u32) -> Option<Buffer> {
        self.controller.borrow_mut().lend_for(self.nsid, frames, nr_sectors)
    }

    fn give_back(&mut self, buffer: Buffer) {
        self.controller.borrow_mut().give_back(buffer);
    }

    fn frames(&self, buffer: &Buffer, each: &mut dyn FnMut(Gfn)) {
        self.controller.borrow().frames(buffer).for_each(each);
    }

    fn submit(&mut self, tag: Tag, request: Request<Buffer>) -> Result<(), Refused<Buffer>> {
        self.controller.borrow_mut().submit(self.nsid, tag, request)
    }

    fn complete(&mut self) -> Option<Completion<Buffer>> {
        self.controller.borrow_mut().complete(self.nsid)
    }
}
