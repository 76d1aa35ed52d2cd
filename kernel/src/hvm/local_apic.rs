//! The vCPU's local APIC: how devices interrupt it where event channels do not.
//!
//! Its interrupts are used as upcalls are: they end a wait. Interrupts are on during a wait alone, and
//! the handler is the upcall's, which refuses the wait that is about to begin.

use core::arch::x86_64::__cpuid;

use x86_64::registers::model_specific::Msr;

/// The vector of devices, and that of interrupts that went away before they were taken.
pub(crate) const DEVICE_VECTOR: u8 = 0x30;
pub(crate) const SPURIOUS_VECTOR: u8 = 0xff;

/// `IA32_APIC_BASE`, and in it that the APIC is on, and that its registers are MSRs.
const BASE: u32 = 0x1b;
const ENABLED: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;

// Its registers, as MSRs.
const ID: u32 = 0x802;
const TASK_PRIORITY: u32 = 0x808;
const EOI: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;
const SOFTWARE_ENABLED: u64 = 1 << 8;

/// The local APIC, in x2APIC mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LocalApic {
    id: u8,
}

impl LocalApic {
    /// Turns it on. `None` where it has no such mode, or an id that a message has no room for.
    pub(crate) fn enable() -> Option<Self> {
        /// CPUID leaf 1, ECX.
        const HAS_X2APIC: u32 = 1 << 21;
        if __cpuid(1).ecx & HAS_X2APIC == 0 {
            return None;
        }
        let mut base = Msr::new(BASE);
        // SAFETY: CPUID has the mode. Its interrupts wait until interrupts are on, which they are
        // during a wait alone, and have a handler that is good for those.
        let id = unsafe {
            let enabled = base.read() | ENABLED;
            base.write(enabled);
            base.write(enabled | X2APIC);
            Msr::new(TASK_PRIORITY).write(0);
            Msr::new(SPURIOUS).write(SOFTWARE_ENABLED | u64::from(SPURIOUS_VECTOR));
            Msr::new(ID).read()
        };
        u8::try_from(id).ok().map(|id| Self { id })
    }

    pub(crate) const fn id(self) -> u8 {
        self.id
    }

    /// Lets the next interrupt come, if one has.
    pub(crate) fn end_of_interrupt(self) {
        // SAFETY: it is in x2APIC mode. Where no interrupt is in service this has no effect.
        unsafe { Msr::new(EOI).write(0) };
    }
}
