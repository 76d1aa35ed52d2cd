//! A host before it is started.

use std::collections::BTreeMap;

use domain::{Domain, Namespace, Resources};
use store::{FrameAddr, FrameMemory, ImageFile};
use xen_abi::{DomId, Gfn, PAGE_SIZE};

use super::Lab;
use super::driver::Driver;
use crate::toolstack::{self, DomainKind};
use crate::{Iommu, Machine, OwnDisk, OwnPages, SimPlatform};

/// Frames of the buffers that namespaces share.
const BUFFERS: (Gfn, u64) = (Gfn(0x20_0000), 48);

/// A host to be started.
#[derive(Clone, Debug)]
pub struct LabBuilder {
    seed: u64,
    memory_pages: u64,
    command_line: String,
    modules: Vec<Vec<u8>>,
    namespaces: Vec<OwnDisk>,
    iommu: Option<Iommu>,
}

impl LabBuilder {
    /// A host whose driver domain has 16 MiB, no module and no command line.
    pub(super) const fn new(seed: u64) -> Self {
        Self {
            seed,
            memory_pages: 4096,
            command_line: String::new(),
            modules: Vec::new(),
            namespaces: Vec::new(),
            iommu: None,
        }
    }

    /// How many frames the driver domain's pool and engine have.
    #[must_use]
    pub fn memory_pages(self, memory_pages: u64) -> Self {
        Self { memory_pages, ..self }
    }

    /// The driver domain's `cmdline=`.
    #[must_use]
    pub fn cmdline(self, command_line: &str) -> Self {
        Self { command_line: command_line.into(), ..self }
    }

    /// Adds a boot module (`ramdisk=`), which lies somewhere in its first frame.
    #[must_use]
    pub fn module(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.modules.push(bytes.into());
        self
    }

    /// Adds a namespace of the domain's own first controller: `nvme0n1`, `nvme0n2`, …
    #[must_use]
    pub fn namespace(mut self, disk: &OwnDisk) -> Self {
        self.namespaces.push(disk.clone());
        self
    }

    /// Has the driver domain's devices reach what it maps of guests.
    #[must_use]
    pub fn iommu(self) -> Self {
        Self { iommu: Some(Iommu::default()), ..self }
    }

    /// Creates the driver domain, and lets it settle.
    ///
    /// # Panics
    /// Where the domain cannot begin.
    #[must_use]
    pub fn start(self) -> Lab {
        self.start_after(|_, _| {})
    }

    /// As [`start`](Self::start), but the toolstack does something between the creation of the
    /// driver domain and its first step.
    ///
    /// # Panics
    /// Where the domain cannot begin.
    #[must_use]
    pub fn start_after(self, prepare: impl FnOnce(&Machine, DomId)) -> Lab {
        let machine = Machine::new(self.seed);
        let domid = toolstack::create_domain(&machine, DomainKind::DriverDomain);
        prepare(&machine, domid);
        // Two runs with a hole, as a memory map has them.
        let low = self.memory_pages / 2;
        let runs = [(Gfn(0x100), low), (Gfn(0x100 + low + 0x40), self.memory_pages - low)];
        let modules = self.place_modules();
        let mut all_runs = Vec::from(runs);
        all_runs.extend(modules.iter().map(|file| {
            let len_bytes = file.len_bytes + u64::from(file.at.offset());
            (file.at.gfn(), len_bytes.div_ceil(PAGE_SIZE as u64))
        }));
        all_runs.push(BUFFERS);
        let mut platform = SimPlatform::new(&machine, domid, &all_runs);
        platform.iommu = self.iommu.clone();
        for (file, bytes) in modules.iter().zip(&self.modules) {
            platform.frames().clone().write(file.at, bytes);
        }
        let resources = platform.resources(&runs, self.command_line.as_bytes());
        let (Gfn(first), nr) = BUFFERS;
        let pages = OwnPages::new((first..first + nr).map(Gfn));
        let namespaces = (1..).zip(&self.namespaces).map(|(nsid, disk)| {
            let device = disk.device(platform.frames(), &pages, self.iommu.clone());
            (Namespace { controller: 0, nsid }, device)
        });
        let namespaces = namespaces.collect();
        let resources = Resources { modules: &modules, namespaces, ..resources };
        let domain = Domain::new(resources, &mut platform);
        let domain = domain.unwrap_or_else(|error| panic!("{error}"));
        let rng = machine.rng().fork();
        let mut lab = Lab {
            machine,
            ours: Driver::new(platform, domain, self.namespaces),
            servers: BTreeMap::new(),
            frontends: BTreeMap::new(),
            hostiles: BTreeMap::new(),
            operations: Vec::new(),
            rng,
            nodes_at_start: Vec::new(),
            watches_at_start: 0,
        };
        lab.settle();
        lab.nodes_at_start = lab.machine.xenstored().nodes_of(domid);
        lab.watches_at_start = lab.machine.xenstored().nr_watches(domid);
        lab
    }

    /// Where the modules lie: each in frames of its own, not at their start.
    fn place_modules(&self) -> Vec<ImageFile> {
        let mut first = Gfn(0x10_0000);
        let mut place = |bytes: &Vec<u8>| {
            let file =
                ImageFile { at: FrameAddr::new(first, 0x123), len_bytes: bytes.len() as u64 };
            first = Gfn(file.at.after(bytes.len()).gfn().0 + 2);
            file
        };
        self.modules.iter().map(&mut place).collect()
    }
}
