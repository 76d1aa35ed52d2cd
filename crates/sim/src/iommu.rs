//! What the driver domain's own devices reach of other domains' pages.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use xen_abi::Gfn;

use crate::Page;

/// The first frame at which a grant is mapped; none is used twice, so that whoever is late is seen.
const FIRST: u64 = 1 << 32;

/// An IOMMU that knows the grants that are mapped.
#[derive(Clone, Default, Debug)]
pub struct Iommu(Rc<RefCell<Mapped>>);

#[derive(Default, Debug)]
struct Mapped {
    pages: BTreeMap<Gfn, Page>,
    nr_ever: u64,
}

impl Iommu {
    pub(crate) fn map(&self, page: Page) -> Gfn {
        let mut mapped = self.0.borrow_mut();
        let frame = Gfn(FIRST + mapped.nr_ever);
        mapped.nr_ever += 1;
        mapped.pages.insert(frame, page);
        frame
    }

    pub(crate) fn unmap(&self, frame: Gfn) {
        self.0.borrow_mut().pages.remove(&frame);
    }

    /// Whether a frame is one at which grants are mapped, now or ever.
    #[must_use]
    pub const fn is_foreign(frame: Gfn) -> bool {
        frame.0 >= FIRST
    }

    /// What a device accesses.
    ///
    /// # Panics
    /// Where nothing is mapped there, or not any more.
    #[must_use]
    pub fn page(&self, frame: Gfn) -> Page {
        let page = self.0.borrow().pages.get(&frame).cloned();
        page.unwrap_or_else(|| panic!("IOMMU fault: a device accesses {frame}"))
    }
}
