//! A backend that answers anything, and writes the ring between any two accesses of its frontend.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use blkfront::{Disk, Frontend, KeyError, Retired, Ring};
use blkif::{Abi, OpCode, RequestId, Response, Status, keys, layout};
use sim::{GrantAccess, Machine, OwnGrants, Page, Region};
use store::{Buffer, Completion, Device, Failure, Refused, Request, Tag};
use xen_abi::{DomId, Gfn, GrantHandle, GrantRef, PAGE_SIZE};

use crate::input::Input;

const RING: Gfn = Gfn(100);
/// The first frame for data.
const FIRST: Gfn = Gfn(101);
const NR_FRAMES: u64 = 40;
const NR_ENTRIES: u32 = 32;

/// Acts that a backend gets at most.
const MAX_STEPS: u32 = 512;

/// First what the disk is said to be, then what its backend does.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match disk(&mut input) {
        Ok(disk) => {
            let mut lab = Lab::new(input, disk);
            for _ in 0..MAX_STEPS {
                if lab.input.borrow().is_empty() {
                    break;
                }
                lab.step();
            }
            lab.end();
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{text:?}");
            assert!(text.len() < 300, "{text}");
        }
    }
}

/// What stands in a backend's directory: mostly what makes sense.
fn disk(input: &mut Input) -> Result<Disk, KeyError> {
    let values = Disk::KEYS.map(|key| {
        let choice = input.u8();
        let usual: &[&str] = match key {
            keys::SECTORS => &["4096", "800"],
            keys::SECTOR_SIZE => &["512", "4096"],
            keys::INFO => &["0", "0", "0", "4"],
            keys::MODE => &["w", "w", "w", "r"],
            keys::FEATURE_MAX_INDIRECT_SEGMENTS => &["0", "13", "32", "256"],
            keys::PHYSICAL_SECTOR_SIZE | keys::DISCARD_GRANULARITY => &["4096"],
            keys::DISCARD_ALIGNMENT => &["0"],
            _ => &["1", "1", "0"],
        };
        match choice {
            0..=219 => Some(usual[usize::from(choice) % usual.len()].as_bytes().to_vec()),
            220..=229 => None,
            _ => Some(input.take(usize::from(choice - 230))),
        }
    });
    let disk = Disk::parse(values.each_ref().map(|value| value.as_deref()))?;
    assert!((1..=1 << 54).contains(&disk.nr_sectors));
    assert!(disk.nr_sectors.is_multiple_of(disk.logical.sectors()));
    assert!(disk.physical_bytes.is_multiple_of(disk.logical.bytes()));
    assert!((11..=256).contains(&disk.max_segments));
    Ok(disk)
}

/// A request that was taken, and the frames that it has.
struct Open {
    frames: Vec<Gfn>,
    transfer: bool,
}

struct Lab {
    input: Rc<RefCell<Input>>,
    machine: Machine,
    us: DomId,
    backend: DomId,
    grants: OwnGrants,
    retired: Retired,
    frontend: Frontend<Region>,
    ring: Page,
    handle: GrantHandle,
    nr_accesses: Rc<Cell<u64>>,
    open: BTreeMap<u64, Open>,
    last_tag: u64,
    /// Frames that are reserved, or were when the ring broke.
    held: BTreeSet<Gfn>,
    req_cons: u32,
    rsp_prod: u32,
    /// What the backend found in the ring and has not answered: id and operation to echo.
    known: Vec<(u64, u8)>,
}

impl Lab {
    fn new(input: Input, disk: Disk) -> Self {
        let machine = Machine::new(1);
        let (us, backend) = (machine.create_domain(), machine.create_domain());
        let mut grants = OwnGrants::new(&machine, us, RING, NR_FRAMES + 1);
        let mut retired = Retired::new();
        let port = machine.events().alloc_unbound(us, backend).expect("a port is left");
        let ring = Ring::grant(&[RING], backend, port, &mut grants, &mut retired).ok();
        let ring = ring.expect("one page");
        let gref = ring.announcement().into_iter().find(|node| node.0 == keys::RING_REF);
        let gref = gref.and_then(|node| node.1?.parse().ok()).expect("a reference");
        let mapped = machine.grants().map(backend, us, GrantRef(gref), GrantAccess::ReadWrite);
        let (handle, page) = mapped.expect("granted");
        let frames: Vec<Gfn> = (0..NR_FRAMES).map(|n| Gfn(FIRST.0 + n)).collect();
        let frontend = Frontend::connect(ring, disk, &frames, backend, &mut grants, &mut retired);
        let input = Rc::new(RefCell::new(input));
        let nr_accesses = Rc::new(Cell::new(0));
        let (count, bytes) = (nr_accesses.clone(), input.clone());
        page.set_hook(move |page, _| {
            count.set(count.get() + 1);
            scribble(page, &bytes);
        });
        Self {
            input,
            machine,
            us,
            backend,
            grants,
            retired,
            frontend: frontend.expect("granted"),
            ring: page,
            handle,
            nr_accesses,
            open: BTreeMap::new(),
            last_tag: 0,
            held: BTreeSet::new(),
            req_cons: 0,
            rsp_prod: 0,
            known: Vec::new(),
        }
    }

    fn step(&mut self) {
        let was_broken = self.frontend.broken();
        let nr_accesses = self.nr_accesses.get();
        let choice = self.input.borrow_mut().below(16);
        match choice {
            0..=3 => self.ask(),
            4..=6 => {
                if let Some(port) = self.frontend.publish() {
                    self.machine.events().send(self.us, port).expect("our port");
                }
                self.learn();
            }
            7..=10 => self.answer(),
            11 => scribble(&self.ring, &self.input),
            12 => {
                let jump = u32::from(self.input.borrow_mut().u8());
                self.ring.store_u32(layout::RSP_PROD, self.rsp_prod.wrapping_add(jump));
            }
            _ => self.complete(),
        }
        if let Some(broken) = was_broken {
            assert_eq!(self.frontend.broken(), Some(broken), "what broke it is told");
            assert_eq!(self.nr_accesses.get(), nr_accesses, "a dead ring is used");
        }
        assert_eq!(self.frontend.nr_in_flight(), self.open.len());
    }

    fn ask(&mut self) {
        let (kind, sector, nr_sectors) = {
            let mut input = self.input.borrow_mut();
            (input.below(8), u64::from(input.u16()), u32::from(input.u16()) % 400)
        };
        let sector = if sector > 60_000 { u64::MAX - sector } else { sector };
        let mut frames = Vec::new();
        let mut buffer = || {
            let buffer = self.frontend.reserve(nr_sectors)?;
            assert_eq!(buffer.nr_sectors(), nr_sectors);
            self.frontend.frames(&buffer, &mut |frame| frames.push(frame));
            assert_eq!(frames.len(), nr_sectors.div_ceil(8) as usize);
            for &frame in &frames {
                assert!((FIRST.0..FIRST.0 + NR_FRAMES).contains(&frame.0), "{frame} is no frame");
                assert!(self.held.insert(frame), "{frame} is in use");
            }
            Some(buffer)
        };
        let request = match kind {
            0..=2 => buffer().map(|buffer| Request::Read { sector, buffer }),
            3..=5 => buffer().map(|buffer| Request::Write { sector, buffer }),
            6 => Some(Request::Flush),
            _ => Some(Request::Discard { sector, nr_sectors: nr_sectors.into() }),
        };
        let Some(request) = request else { return };
        self.last_tag += 1;
        match self.frontend.submit(Tag(self.last_tag), request) {
            Ok(()) => {
                assert_eq!(self.frontend.broken(), None);
                self.open.insert(self.last_tag, Open { transfer: !frames.is_empty(), frames });
            }
            Err(Refused { request, .. }) => {
                if let Some(buffer) = request.into_buffer() {
                    self.give_back(buffer);
                }
            }
        }
    }

    fn give_back(&mut self, buffer: Buffer) {
        self.frontend.frames(&buffer, &mut |frame| assert!(self.held.remove(&frame)));
        self.frontend.give_back(buffer);
    }

    /// The backend looks at the ring, which it may have spoilt itself.
    fn learn(&mut self) {
        let produced = self.ring.load_u32(layout::REQ_PROD);
        for _ in 0..produced.wrapping_sub(self.req_cons).min(NR_ENTRIES) {
            let slot = self.slot(self.req_cons);
            let id = self.ring.bytes(slot + 8..slot + 16);
            let op = self.ring.bytes(slot..slot + 2);
            let id = u64::from_le_bytes(id.try_into().expect("8 bytes"));
            let echoed = if OpCode(op[0]) == OpCode::INDIRECT { op[1] } else { op[0] };
            self.known.push((id, echoed));
            self.req_cons = self.req_cons.wrapping_add(1);
        }
    }

    fn slot(&self, index: u32) -> usize {
        let len_bytes = Abi::X86_64.layout().entry_len_bytes;
        layout::RING + (index % NR_ENTRIES) as usize * len_bytes
    }

    fn answer(&mut self) {
        let mut input = self.input.borrow_mut();
        if self.known.is_empty() {
            return;
        }
        let nth = input.below(self.known.len());
        let (mut id, mut operation) = self.known[nth];
        let mut status = [0, 0, 0, -1, -2][input.below(5)];
        match input.u8() {
            // It answers, and may do so again.
            240..=244 => {}
            245..=247 => id ^= 1 << (input.u8() % 64),
            248..=250 => operation ^= 1 << (input.u8() % 8),
            251..=253 => status = i16::from_le_bytes(input.u16().to_le_bytes()),
            _ => {
                self.known.swap_remove(nth);
            }
        }
        drop(input);
        let response =
            Response { id: RequestId(id), operation: OpCode(operation), status: Status(status) };
        self.ring.write(self.slot(self.rsp_prod), &response.encode());
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
        self.ring.store_u32(layout::RSP_PROD, self.rsp_prod);
    }

    /// Takes all that is over.
    fn complete(&mut self) {
        while let Some(Completion { tag, result, buffer }) = self.frontend.complete() {
            let Some(open) = self.open.remove(&tag.0) else { panic!("{tag:?} is over twice") };
            if let Some(buffer) = buffer {
                let mut frames = Vec::new();
                self.frontend.frames(&buffer, &mut |frame| frames.push(frame));
                assert_eq!(frames, open.frames);
                self.give_back(buffer);
            } else {
                let is_gone = self.frontend.broken().is_some() && result.is_err();
                assert!(is_gone || !open.transfer, "frames are lost");
            }
            assert!(result != Err(Failure::Gone) || self.frontend.broken().is_some());
        }
    }

    /// It keeps still; what was asked for is over, and all frames come back once it lets go.
    fn end(mut self) {
        self.input.borrow_mut().take(usize::MAX);
        self.complete();
        let accesses = self.nr_accesses.get();
        self.frontend.abandon();
        while let Some(Completion { tag, result, buffer }) = self.frontend.complete() {
            assert!(self.open.remove(&tag.0).is_some(), "{tag:?} is over twice");
            assert!(result.is_err() && buffer.is_none());
        }
        assert!(self.open.is_empty(), "requests are never over");
        assert_eq!(self.nr_accesses.get(), accesses, "a dead ring is used");
        let mut back = BTreeSet::new();
        self.frontend.retire(&mut self.retired);
        let mut reclaim =
            || self.retired.reclaim(&mut self.grants, |gfn| assert!(back.insert(gfn)));
        assert_eq!(reclaim(), 1, "the ring is mapped");
        self.machine.grants().unmap(self.backend, self.handle).expect("mapped");
        assert_eq!(reclaim(), 0);
        assert_eq!(back.len() as u64, NR_FRAMES + 1);
        assert_eq!(self.machine.grants().nr_grants(self.us), 0);
    }
}

/// Writes up to 7 bytes anywhere in the ring, or mostly nothing.
fn scribble(page: &Page, input: &Rc<RefCell<Input>>) {
    let Ok(mut input) = input.try_borrow_mut() else { return };
    if input.is_empty() {
        return;
    }
    let choice = input.u8();
    if choice < 248 {
        return;
    }
    let at = usize::from(input.u16()) % (PAGE_SIZE - 8);
    page.write(at, &input.take(usize::from(choice & 7)));
}
