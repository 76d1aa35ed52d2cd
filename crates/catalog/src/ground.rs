//! What a disk may be on that keeps its bytes elsewhere than in memory.

use core::fmt;

use crate::virtual_device::VirtualDevice;
use crate::word::number;

/// What a disk may be on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ground {
    /// A disk that another domain serves to ours, as which of our own vbds.
    Vbd(VirtualDevice),
    /// A namespace of an NVMe controller that is passed through to us.
    Namespace(Namespace),
}

/// A namespace of an NVMe controller, called as Linux calls it: `nvme0n1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// The controller's number, from 0 on.
    pub controller: u32,
    /// The namespace's identifier, from 1 on.
    pub nsid: u32,
}

impl Namespace {
    /// Reads its name; `None` where it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (controller, nsid) = text.strip_prefix("nvme")?.split_once('n')?;
        // One name for each.
        let read = |text: &str, min| {
            number(text, min, u32::MAX).ok().filter(|_| text == "0" || !text.starts_with('0'))
        };
        Some(Self { controller: read(controller, 0)?, nsid: read(nsid, 1)? })
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nvme{}n{}", self.controller, self.nsid)
    }
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vbd(device) => device.fmt(f),
            Self::Namespace(namespace) => namespace.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::Namespace;

    #[test]
    fn a_namespace_has_one_name() {
        for (text, controller, nsid) in
            [("nvme0n1", 0, 1), ("nvme12n34", 12, 34), ("nvme4294967295n4294967295", !0, !0)]
        {
            let namespace = Namespace { controller, nsid };
            assert_eq!(Namespace::parse(text), Some(namespace));
            assert_eq!(namespace.to_string(), text);
        }
        for text in [
            "nvme",
            "nvme0",
            "nvme0n",
            "nvmen1",
            "nvme0n0",
            "nvme00n1",
            "nvme0n01",
            "nvme0n+1",
            "nvme0n1p1",
            "nvme0n4294967296",
            "nvme-1n1",
            "xnvme0n1",
            "NVME0n1",
        ] {
            assert_eq!(Namespace::parse(text), None, "{text}");
        }
    }
}
