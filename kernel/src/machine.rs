//! What kind of domain an image is for: the type decides what is in the image.

use x86_64::registers::model_specific::Msr;

/// A kind of domain.
pub(crate) trait Machine {
    /// Called first of all: makes up for firmware that did not run.
    fn prepare();
}

/// A domain that has nothing but Xen. libxc has set it up as it is to be.
pub(crate) enum Pvh {}

impl Machine for Pvh {
    fn prepare() {}
}

/// A domain that looks like a PC, and can have PCI devices.
pub(crate) enum Hvm {}

impl Machine for Hvm {
    /// Has memory cached by default, where no firmware did.
    ///
    /// libxc leaves the MTRRs of an HVM domain to hvmloader. As long as they are off all memory is
    /// uncached by definition, and Xen takes that literally on Intel's processors once the domain
    /// may have devices (`epte_get_entry_emt`). On AMD's it does not look at them.
    fn prepare() {
        /// `IA32_MTRR_DEF_TYPE`: the type of memory that no range names, and whether MTRRs count.
        const DEF_TYPE: Msr = Msr::new(0x2ff);
        const ENABLE: u64 = 1 << 11;
        const WRITE_BACK: u64 = 6;
        let mut def_type = DEF_TYPE;
        // SAFETY: an HVM domain has this register. Nothing was kept in a cache as another type.
        unsafe {
            if def_type.read() & ENABLE == 0 {
                def_type.write(ENABLE | WRITE_BACK);
            }
        }
    }
}
