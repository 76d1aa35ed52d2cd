//! Xen's system time.

/// Ticks from one reading of the TSC to another.
///
/// Modulo 2⁶⁴, since the earlier one may come from before the TSC began: a domain's TSC starts at 0,
/// and Xen's last update may be older. 0 where the later one was read before the earlier.
pub(crate) fn ticks_between(earlier: u64, later: u64) -> u64 {
    let ticks = later.wrapping_sub(earlier);
    if ticks > u64::MAX / 2 { 0 } else { ticks }
}

/// Nanoseconds that `ticks` of the TSC take (`vcpu_time_info`, `xen.h`).
pub(crate) fn ticks_to_ns(ticks: u64, mul: u32, shift: i8) -> u64 {
    let amount = u32::from(shift.unsigned_abs());
    let shifted = if shift < 0 {
        u128::from(ticks).checked_shr(amount)
    } else {
        u128::from(ticks).checked_shl(amount)
    };
    let ns = shifted.unwrap_or(0).saturating_mul(u128::from(mul)) >> 32;
    u64::try_from(ns).unwrap_or(u64::MAX)
}

#[cfg(target_os = "none")]
mod clock {
    use core::arch::asm;
    use core::ptr::NonNull;
    use core::sync::atomic::{Ordering, fence};

    use volatile::VolatilePtr;
    use volatile::access::ReadOnly;
    use volatile::map_field;
    use xen_abi::Instant;

    use super::{ticks_between, ticks_to_ns};
    use crate::abi::{SharedInfo, VcpuTimeInfo};

    /// Reads system time out of the shared page.
    #[derive(Clone, Copy)]
    pub(crate) struct Clock {
        shared: &'static SharedInfo,
    }

    impl Clock {
        pub(crate) const fn new(shared: &'static SharedInfo) -> Self {
            Self { shared }
        }

        pub(crate) fn now(self) -> Instant {
            loop {
                let (time, ticks) = self.read();
                // Odd, or another one than before: Xen wrote meanwhile.
                let Some(time) = time else { continue };
                let elapsed = ticks_between(time.tsc_timestamp, ticks);
                let ns = ticks_to_ns(elapsed, time.tsc_to_system_mul, time.tsc_shift);
                return Instant::from_ns(time.system_time.saturating_add(ns));
            }
        }

        /// How many nanoseconds ago the TSC stood at `earlier`, of [`ticks`].
        pub(crate) fn ns_since(self, earlier: u64) -> u64 {
            loop {
                let (time, ticks) = self.read();
                let Some(time) = time else { continue };
                let elapsed = ticks_between(earlier, ticks);
                return ticks_to_ns(elapsed, time.tsc_to_system_mul, time.tsc_shift);
            }
        }

        fn read(self) -> (Option<VcpuTimeInfo>, u64) {
            let time = NonNull::from(&self.shared.vcpu_info[0].time).cast::<VcpuTimeInfo>();
            // SAFETY: the cell is there for good, and only Xen writes it; a torn copy is thrown
            // away by its version.
            let time = unsafe { VolatilePtr::new_restricted(ReadOnly, time) };
            let version = map_field!(time.version);
            let before = version.read();
            fence(Ordering::Acquire);
            let copy = time.read();
            let ticks = ticks();
            fence(Ordering::Acquire);
            let whole = before.is_multiple_of(2) && before == version.read();
            (whole.then_some(copy), ticks)
        }
    }

    /// The vCPU's TSC, read after all that comes before it.
    pub(crate) fn ticks() -> u64 {
        let (high, low): (u32, u32);
        // SAFETY: reads a counter.
        unsafe {
            asm!("lfence", "rdtsc", out("edx") high, out("eax") low, options(nostack, nomem));
        }
        u64::from(high) << 32 | u64::from(low)
    }
}

#[cfg(target_os = "none")]
pub(crate) use clock::{Clock, ticks};

#[cfg(test)]
mod tests {
    use super::{ticks_between, ticks_to_ns};

    #[test]
    fn the_last_update_may_be_older_than_the_tsc() {
        assert_eq!(ticks_between(100, 250), 150);
        assert_eq!(ticks_between(18_446_744_072_267_036_032, 571_163_552), 2_013_679_136);
    }

    #[test]
    fn a_tsc_behind_the_last_update_is_no_time() {
        assert_eq!(ticks_between(250, 100), 0);
        assert_eq!(ticks_between(5, u64::MAX), 0);
    }

    #[test]
    fn ticks_are_shifted_and_scaled() {
        // 2 GHz: half a nanosecond a tick.
        assert_eq!(ticks_to_ns(2_000_000_000, 0x8000_0000, 0), 1_000_000_000);
        assert_eq!(ticks_to_ns(10, 0x8000_0000, 1), 10);
        assert_eq!(ticks_to_ns(10, 0x8000_0000, -1), 2);
        assert_eq!(ticks_to_ns(u64::MAX, u32::MAX, 0), 0xffff_ffff_0000_0000 - 1);
    }

    #[test]
    fn what_cannot_be_told_stays_at_the_end() {
        assert_eq!(ticks_to_ns(u64::MAX, u32::MAX, 60), u64::MAX);
        assert_eq!(ticks_to_ns(u64::MAX, u32::MAX, -128), 0);
    }
}
