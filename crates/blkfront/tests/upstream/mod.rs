//! A frontend, and a backend that a test speaks for.

#![allow(dead_code, reason = "each test file uses what it needs")]

use blkfront::{Disk, Flush, Frontend, Retired, Ring};
use blkif::{
    Abi, BackRing, MaxIndirectSegments, Operation, Request as Wire, Response, Segment, Status,
};
use sim::{GrantAccess, Machine, OwnGrants, Page, Region};
use store::{Access, BlockSize, Buffer, Completion, Device, Failure, Request, Tag};
use xen_abi::{DomId, EvtchnPort, Gfn, GrantHandle, GrantRef};

pub const FIRST: Gfn = Gfn(100);

pub const DISK: Disk = Disk {
    nr_sectors: 1 << 20,
    logical: BlockSize::B512,
    physical_bytes: 512,
    access: Access::ReadWrite,
    flush: Flush::Cache,
    discard: None,
    max_segments: 11,
};

pub struct Upstream {
    pub machine: Machine,
    pub us: DomId,
    pub backend: DomId,
    pub grants: OwnGrants,
    pub retired: Retired,
    pub frontend: Frontend<Region>,
    pub ring_page: Page,
    pub ring: BackRing<Region>,
    pub port: EvtchnPort,
    pub handles: Vec<GrantHandle>,
}

/// Frames of the pool.
pub fn frames(nr_frames: u64) -> Vec<Gfn> {
    (1..=nr_frames).map(|n| Gfn(FIRST.0 + n)).collect()
}

impl Upstream {
    pub fn new(disk: Disk, nr_frames: u64) -> Self {
        let machine = Machine::new(1);
        let (us, backend) = (machine.create_domain(), machine.create_domain());
        let mut grants = OwnGrants::new(&machine, us, FIRST, nr_frames + 1);
        let mut retired = Retired::new();
        let port = machine.events().alloc_unbound(us, backend).unwrap();
        let ring = Ring::grant(&[FIRST], backend, port, &mut grants, &mut retired).unwrap();
        let key = |name| {
            let nodes = ring.announcement();
            let node = nodes.into_iter().find(|node| node.0 == name).unwrap();
            node.1.unwrap().parse().unwrap()
        };
        let mut handles = Vec::new();
        let gref = GrantRef(key("ring-ref"));
        let (handle, page) =
            machine.grants().map(backend, us, gref, GrantAccess::ReadWrite).unwrap();
        handles.push(handle);
        let back = machine.events().bind_interdomain(backend, us, EvtchnPort(key("event-channel")));
        let back = back.unwrap();
        // What is pending from the start.
        machine.events().take_port(backend, back);
        let memory = Region::owned(vec![page.clone()]);
        let attached = BackRing::attach(memory, Abi::X86_64, MaxIndirectSegments::MAX).unwrap();
        let pool = frames(nr_frames);
        let frontend =
            Frontend::connect(ring, disk, &pool, backend, &mut grants, &mut retired).unwrap();
        Self {
            machine,
            us,
            backend,
            grants,
            retired,
            frontend,
            ring_page: page,
            ring: attached,
            port: back,
            handles,
        }
    }

    pub fn read(&mut self, tag: u64, sector: u64, nr_sectors: u32) {
        let buffer = self.frontend.reserve(nr_sectors).unwrap();
        self.submit(tag, Request::Read { sector, buffer });
    }

    pub fn submit(&mut self, tag: u64, request: Request<Buffer>) {
        self.frontend.submit(Tag(tag), request).unwrap();
    }

    pub fn publish(&mut self) {
        if let Some(port) = self.frontend.publish() {
            self.machine.events().send(self.us, port).unwrap();
        }
    }

    /// What the backend finds in the ring.
    pub fn requests(&mut self) -> Vec<Wire> {
        self.publish();
        self.ring.unconsumed().unwrap();
        std::iter::from_fn(|| self.ring.consume()).map(Result::unwrap).collect()
    }

    /// The backend answers; `status` is also an answer that no backend may give.
    pub fn answer(&mut self, request: &Wire, status: Status) {
        self.respond(&request.response(status));
    }

    pub fn respond(&mut self, response: &Response) {
        self.ring.push(response).unwrap();
        let _ = self.ring.publish();
    }

    pub fn completions(&mut self) -> Vec<Completion<Buffer>> {
        std::iter::from_fn(|| self.frontend.complete()).collect()
    }

    /// The frames of a buffer.
    pub fn frames(&self, buffer: &Buffer) -> Vec<Gfn> {
        let mut frames = Vec::new();
        self.frontend.frames(buffer, &mut |frame| frames.push(frame));
        frames
    }

    /// What is completed: tag and result. Buffers are given back.
    pub fn results(&mut self) -> Vec<(u64, Result<(), Failure>)> {
        let mut results = Vec::new();
        for Completion { tag, result, buffer } in self.completions() {
            if let Some(buffer) = buffer {
                self.frontend.give_back(buffer);
            }
            results.push((tag.0, result));
        }
        results
    }

    /// The backend takes the page of a grant.
    pub fn map(&mut self, gref: GrantRef) -> Page {
        let mapped = self.machine.grants().map(self.backend, self.us, gref, GrantAccess::ReadWrite);
        let (handle, page) = mapped.unwrap();
        self.handles.push(handle);
        page
    }

    pub fn unmap_all(&mut self) {
        for handle in self.handles.drain(..) {
            self.machine.grants().unmap(self.backend, handle).unwrap();
        }
    }

    /// The segments of a request, wherever they lie.
    pub fn segments(&mut self, request: &Wire) -> Vec<Segment> {
        match &request.op {
            Operation::Read(transfer) | Operation::Write(transfer) => {
                transfer.segments.as_slice().to_vec()
            }
            Operation::Indirect(indirect) => {
                let [gref] = indirect.grefs() else { panic!("{indirect:?}") };
                let page = self.map(*gref);
                let nr = usize::from(indirect.nr_segments());
                let bytes = page.bytes(0..nr * Segment::LEN_BYTES);
                bytes.as_chunks().0.iter().map(|bytes| Segment::parse(*bytes)).collect()
            }
            op => panic!("{op:?} has none"),
        }
    }
}
