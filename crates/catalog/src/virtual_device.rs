//! Numbers of virtual devices.

use core::fmt;

use crate::word::{Expected, Problem, number};

/// A vbd's number in its frontend's domain: the name of its directory in `device/vbd`, and its
/// `virtual-device`. 0 to 2^31 - 1 (`docs/man/xen-vbd-interface`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VirtualDevice(u32);

/// `202 << 8 | disk << 4 | partition`: both up to 15.
const SMALL: u32 = 202 << 8;
/// `1 << 28 | disk << 8 | partition`: disks below 2^20, partitions up to 255.
const LARGE: u32 = 1 << 28;
const MAX_DISK: u32 = (1 << 20) - 1;

impl VirtualDevice {
    /// Reads what `vdev=` in a disk's line is: `xvda`, `xvdb3`, … or a decimal number.
    #[doc(alias = "libxl__device_disk_dev_number")]
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        const NONE: Problem =
            Problem::Value(Expected(&["a name such as xvdb", "a number below 2^31"]));
        let device = match text.strip_prefix("xvd") {
            Some(name) => disk_and_partition(name),
            None => number(text, 0, u32::MAX >> 1).ok(),
        };
        device.map(Self).ok_or(NONE)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// The number of a disk by its letters, in the manner of columns of a table, and by the partition that
/// may follow.
fn disk_and_partition(name: &str) -> Option<u32> {
    let partition = name.trim_start_matches(|c: char| c.is_ascii_lowercase());
    let letters = name.strip_suffix(partition)?;
    let mut next = 0u32;
    for letter in letters.bytes() {
        next = next.checked_mul(26)?.checked_add(u32::from(letter - b'a') + 1)?;
    }
    let disk = next.checked_sub(1).filter(|disk| *disk <= MAX_DISK)?;
    let partition = match partition {
        "" => 0,
        // libxl permits no leading zeroes.
        text if text.starts_with('0') => return None,
        text => number(text, 1, 255).ok()?,
    };
    Some(if disk < 16 && partition < 16 {
        SMALL | disk << 4 | partition
    } else {
        LARGE | disk << 8 | partition
    })
}

/// As `dev=` has it: its name if it is a whole disk with a letter, else its number.
impl fmt::Display for VirtualDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.checked_sub(SMALL) {
            Some(disk) if disk < 256 && disk.is_multiple_of(16) => {
                let letter = b"abcdefghijklmnop"[disk as usize >> 4];
                write!(f, "xvd{}", char::from(letter))
            }
            _ => self.0.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::VirtualDevice;
    use crate::{Expected, Problem};
    use std::string::ToString;

    fn number(text: &str) -> Result<u32, Problem> {
        VirtualDevice::parse(text).map(VirtualDevice::number)
    }

    /// What `libxl__device_disk_dev_number()` makes of them.
    #[test]
    fn names_are_numbers_as_libxl_has_them() {
        for (text, expected) in [
            ("xvda", 51712),
            ("xvdb", 51728),
            ("xvdb2", 51730),
            ("xvdp15", 51967),
            ("xvda16", 1 << 28 | 16),
            ("xvdq", 1 << 28 | 16 << 8),
            ("xvdz255", 1 << 28 | 25 << 8 | 255),
            ("xvdaa", 1 << 28 | 26 << 8),
            ("xvdtq37", 1 << 28 | 536 << 8 | 37),
            ("xvdbgqcv", 1 << 28 | ((1 << 20) - 1) << 8),
            ("0", 0),
            ("51712", 51712),
            ("2147483647", i32::MAX.cast_unsigned()),
        ] {
            assert_eq!(number(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_device() {
        let none = Problem::Value(Expected(&["a name such as xvdb", "a number below 2^31"]));
        for text in [
            "",
            "xvd",
            "xvd1",
            "xvda0",
            "xvda01",
            "xvda256",
            "xvdA",
            "xvda1b",
            "xvdbgqcw",
            "xvda-",
            "xvdzzzzzzzzzzzzzzzz",
            "hda",
            "sda",
            "2147483648",
            "-1",
            "0xca00",
            "xvdä",
            " xvda",
        ] {
            assert_eq!(number(text), Err(none), "{text:?}");
        }
    }

    #[test]
    fn it_is_called_by_its_name() {
        for (text, name) in [
            ("xvda", "xvda"),
            ("51952", "xvdp"),
            ("xvda1", "51713"),
            ("xvdq", "268439552"),
            ("0", "0"),
            ("51968", "51968"),
        ] {
            assert_eq!(VirtualDevice::parse(text).unwrap().to_string(), name);
        }
    }
}
