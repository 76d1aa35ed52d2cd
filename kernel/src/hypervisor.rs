//! Finding Xen under us (`arch-x86/cpuid.h`).

use core::arch::x86_64::{__cpuid, CpuidResult};
use core::fmt;

/// Where hypervisors' CPUID leaves may begin: the first, the end and the distance.
const FIRST_LEAF: u32 = 0x4000_0000;
const END_LEAF: u32 = 0x4001_0000;
const LEAF_STEP: usize = 0x100;

/// `XEN_CPUID_SIGNATURE_EBX`, `_ECX` and `_EDX`: "XenVMMXenVMM".
const SIGNATURE: [u32; 3] = [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e];

/// The leaf of what only HVM and PVH domains have, and a bit of its EAX.
const FEATURES_LEAF: u32 = 4;
const IOMMU_MAPPINGS: u32 = 1 << 2;

/// Xen, as its CPUID leaves tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hypervisor {
    /// Its version.
    pub(crate) version: Version,
    /// The MSR that makes the hypercall page.
    pub(crate) hypercall_msr: u32,
    /// Whether devices of ours reach what is mapped of other domains
    /// (`XEN_HVM_CPUID_IOMMU_MAPPINGS`).
    pub(crate) has_iommu_mappings: bool,
}

/// Xen's version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Hypervisor {
    /// Looks for Xen; `None` where this is no domain of Xen's.
    pub(crate) fn detect() -> Option<Self> {
        let base = (FIRST_LEAF..END_LEAF).step_by(LEAF_STEP).find(|&leaf| is_xen(__cpuid(leaf)))?;
        let version = __cpuid(base + 1).eax;
        let version = Version { major: version >> 16, minor: version & 0xffff };
        let has_features = __cpuid(base).eax >= base + FEATURES_LEAF;
        let features = if has_features { __cpuid(base + FEATURES_LEAF).eax } else { 0 };
        Some(Self {
            version,
            hypercall_msr: __cpuid(base + 2).ebx,
            has_iommu_mappings: features & IOMMU_MAPPINGS != 0,
        })
    }
}

fn is_xen(leaf: CpuidResult) -> bool {
    [leaf.ebx, leaf.ecx, leaf.edx] == SIGNATURE
}
