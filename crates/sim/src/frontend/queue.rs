//! One queue of a frontend: its ring, what is in flight, and the check of each answer.

use std::collections::VecDeque;

use blkif::{
    Abi, FinalCheck, FrontRing, Indirect, IndirectOp, MAX_INDIRECT_PAGES, MAX_SEGMENTS,
    MaxIndirectSegments, Notify, OpCode, Operation, Request, RequestId, Response,
    SEGMENTS_PER_INDIRECT_PAGE, Sector, Segment, Segments, Slot, Status, Transfer,
};
use xen_abi::{DomId, EvtchnPort, GrantRef};

use super::buffers::{Buffers, CANARY, Granted};
use super::model::{Model, SECTOR};
use super::work::{Kind, Plan};
use crate::{GrantAccess, GrantUse, Machine, Page, Region};

/// A piece of a request's buffer.
#[derive(Debug)]
struct Piece {
    granted: Granted,
    first_sect: u8,
    last_sect: u8,
}

impl Piece {
    fn range(&self) -> std::ops::Range<usize> {
        usize::from(self.first_sect) * SECTOR..(usize::from(self.last_sect) + 1) * SECTOR
    }

    fn segment(&self) -> Segment {
        Segment { gref: self.granted.gref, first_sect: self.first_sect, last_sect: self.last_sect }
    }
}

#[derive(Debug)]
struct InFlight {
    id: RequestId,
    kind: Kind,
    sector: u64,
    nr_sectors: u64,
    pieces: Vec<Piece>,
    tables: Vec<Granted>,
    /// What a write writes.
    data: Vec<u8>,
}

/// What the backend may answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// Every request succeeds.
    Success,
    /// A request may fail, since something is made to; the disk is then as it was.
    Failures,
}

/// Requests answered, by outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Answers {
    /// Done.
    pub okay: u64,
    /// Failed, where that was expected.
    pub failed: u64,
}

/// One queue.
pub struct Queue {
    machine: Machine,
    owner: DomId,
    abi: Abi,
    ring: FrontRing<Region>,
    pages: Vec<Page>,
    grefs: Vec<GrantRef>,
    port: EvtchnPort,
    awake: bool,
    buffers: Buffers,
    in_flight: VecDeque<InFlight>,
    last_id: u64,
    answers: Answers,
}

impl Queue {
    pub(super) fn new(
        machine: &Machine,
        owner: DomId,
        peer: DomId,
        abi: Abi,
        nr_pages: u32,
        grant_use: GrantUse,
    ) -> Self {
        let pages: Vec<Page> = (0..nr_pages).map(|_| Page::new()).collect();
        let grant = |page| machine.grants().grant(owner, peer, page, GrantAccess::ReadWrite);
        let grefs = pages.iter().map(grant).collect();
        let ring = FrontRing::init(Region::owned(pages.clone()), abi).expect("a power of two");
        let port = machine.events().alloc_unbound(owner, peer).expect("a port is left");
        Self {
            machine: machine.clone(),
            owner,
            abi,
            ring,
            pages,
            grefs,
            port,
            awake: false,
            buffers: Buffers::new(machine, owner, peer, grant_use),
            in_flight: VecDeque::new(),
            last_id: machine.rng().next_u64(),
            answers: Answers::default(),
        }
    }

    /// The references of the ring's pages.
    #[must_use]
    pub fn grefs(&self) -> &[GrantRef] {
        &self.grefs
    }

    /// The ring's pages: to count fetches, to set hooks, to write what one likes.
    #[must_use]
    pub fn pages(&self) -> &[Page] {
        &self.pages
    }

    /// The frontend's end of the event channel.
    #[must_use]
    pub const fn port(&self) -> EvtchnPort {
        self.port
    }

    /// Requests that are not answered.
    #[must_use]
    pub fn nr_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Requests answered.
    #[must_use]
    pub const fn answers(&self) -> Answers {
        self.answers
    }

    /// Requests that the ring has room for.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.ring.free()
    }

    /// Writes a slot as it is; [`Queue::publish`] shows it.
    ///
    /// # Panics
    /// Where the ring is full.
    pub fn push_slot(&mut self, slot: &Slot) {
        self.ring.push_slot(slot).expect("room in the ring");
    }

    /// Writes a request; [`Queue::publish`] shows it.
    ///
    /// # Panics
    /// Where the ring is full.
    pub fn push(&mut self, request: &Request) {
        self.push_slot(&request.encode(self.abi));
    }

    /// Shows what was pushed, and notifies if the backend asked for it.
    pub fn publish(&mut self) {
        if self.ring.publish() == Notify::Needed {
            self.notify();
        }
    }

    /// Notifies the backend.
    pub fn notify(&self) {
        self.machine.events().send(self.owner, self.port).expect("our port");
    }

    /// Takes all responses there are, asked for by an event or not.
    ///
    /// # Panics
    /// Where the backend produced more responses than there are requests.
    pub fn responses(&mut self) -> Vec<Response> {
        let mut responses = Vec::new();
        loop {
            let check = self.ring.final_check().expect("no more responses than requests");
            if check == FinalCheck::Idle {
                return responses;
            }
            responses.extend(std::iter::from_fn(|| self.ring.consume()));
        }
    }

    /// Whether `range` of the disk may be used together with what is in flight.
    pub(super) fn leaves(&self, plan: &Plan) -> bool {
        let end = plan.sector + plan.nr_sectors();
        self.in_flight.iter().all(|other| {
            let apart = end <= other.sector || other.sector + other.nr_sectors <= plan.sector;
            apart || !(plan.kind.changes() || other.kind.changes())
        })
    }

    /// Pushes the request that a plan means.
    pub(super) fn submit(&mut self, plan: &Plan, max_indirect: MaxIndirectSegments) {
        // Any id will do as long as it is one in flight; a backend must not read a meaning into it.
        self.last_id = self.last_id.wrapping_add(0x1_0000_0001);
        let id = RequestId(self.last_id);
        let access =
            if plan.kind.reads_pages() { GrantAccess::ReadOnly } else { GrantAccess::ReadWrite };
        let mut data = Vec::new();
        let mut pieces = Vec::new();
        for &(first_sect, last_sect) in &plan.pieces {
            let piece = Piece { granted: self.buffers.take(access), first_sect, last_sect };
            let range = piece.range();
            if plan.kind.reads_pages() {
                let start = data.len();
                data.resize(start + range.len(), 0);
                self.machine.rng().fill(&mut data[start..]);
                piece.granted.page.write(range.start, &data[start..]);
            } else {
                piece.granted.page.fill(CANARY);
            }
            pieces.push(piece);
        }
        let segments: Vec<Segment> = pieces.iter().map(Piece::segment).collect();
        let sector = Sector(plan.sector);
        let mut tables = Vec::new();
        let op = if segments.len() > MAX_SEGMENTS || plan.indirect {
            for segments in segments.chunks(SEGMENTS_PER_INDIRECT_PAGE) {
                let table = self.buffers.take(GrantAccess::ReadOnly);
                let bytes: Vec<u8> = segments.iter().flat_map(Segment::encode).collect();
                table.page.write(0, &bytes);
                tables.push(table);
            }
            let mut grefs = [GrantRef(0); MAX_INDIRECT_PAGES];
            for (gref, table) in grefs.iter_mut().zip(&tables) {
                *gref = table.gref;
            }
            let op = match plan.kind {
                Kind::Read => IndirectOp::Read,
                Kind::Write => IndirectOp::Write,
                kind => panic!("{kind:?} is never indirect"),
            };
            let nr_segments = u16::try_from(segments.len()).expect("at most 4096");
            let indirect = Indirect::new(op, sector, nr_segments, grefs, max_indirect);
            Operation::Indirect(indirect.expect("within the limit"))
        } else {
            let segments = Segments::new(&segments).expect("at most 11");
            let transfer = Transfer { sector, segments };
            match plan.kind {
                Kind::Read => Operation::Read(transfer),
                Kind::Write => Operation::Write(transfer),
                Kind::Barrier => Operation::Barrier(transfer),
                Kind::Flush => Operation::Flush(transfer),
                Kind::Discard => {
                    Operation::Discard { sector, nr_sectors: plan.discarded, secure: false }
                }
            }
        };
        self.push(&Request { id, handle: 0, op });
        self.in_flight.push_back(InFlight {
            id,
            kind: plan.kind,
            sector: plan.sector,
            nr_sectors: plan.nr_sectors(),
            pieces,
            tables,
            data,
        });
    }

    /// Consumes responses if an event asked for it: all, or as many as `limit`. Returns whether
    /// there was anything to do.
    pub(super) fn consume(&mut self, limit: usize, model: &mut Model, expect: Expect) -> bool {
        self.awake |= self.machine.events().take_port(self.owner, self.port);
        if !self.awake {
            return false;
        }
        let mut taken = 0;
        loop {
            if let Some(response) = self.ring.consume() {
                self.check(response, model, expect);
                taken += 1;
                if taken == limit {
                    return true;
                }
            } else if self.ring.final_check().expect("no more responses than requests")
                == FinalCheck::Idle
            {
                self.awake = false;
                return true;
            }
        }
    }

    fn check(&mut self, response: Response, model: &mut Model, expect: Expect) {
        let Some(request) = self.in_flight.pop_front() else {
            panic!("{response:?} answers nothing");
        };
        assert_eq!(response.id, request.id, "the id of the oldest request ({:?})", request.kind);
        assert_eq!(response.operation, request.kind.code(), "the operation of {request:?}");
        let okay = response.status == Status::OKAY;
        assert!(
            okay || (expect == Expect::Failures && response.status == Status::ERROR),
            "{:?} for {:?} of {} sectors at {}",
            response.status,
            request.kind,
            request.nr_sectors,
            request.sector
        );
        let mut at = request.sector;
        let mut written = 0;
        for piece in &request.pieces {
            let range = piece.range();
            let page = &piece.granted.page;
            let bytes = page.bytes(range.clone());
            if request.kind.reads_pages() {
                assert_eq!(bytes, &request.data[written..][..range.len()], "a write's page");
                written += range.len();
            } else {
                let outside = page.bytes(0..range.start).into_iter();
                let mut outside = outside.chain(page.bytes(range.end..xen_abi::PAGE_SIZE));
                assert!(outside.all(|byte| byte == CANARY), "bytes outside a segment changed");
                if okay && let Err(sector) = model.check(at, &bytes) {
                    panic!("sector {sector} holds what it should not, read at {at}");
                }
            }
            at += (range.len() / SECTOR) as u64;
        }
        if okay {
            match request.kind {
                Kind::Write | Kind::Barrier => model.write(request.sector, &request.data),
                Kind::Discard => model.discard(request.sector, request.nr_sectors),
                Kind::Read | Kind::Flush => {}
            }
            self.answers.okay += 1;
        } else {
            self.answers.failed += 1;
        }
        let granted = request.pieces.into_iter().map(|piece| piece.granted);
        for granted in granted.chain(request.tables) {
            self.buffers.give_back(granted);
        }
    }

    /// Grants a page to the backend, for requests made by hand.
    #[must_use]
    pub fn grant_page(&mut self, access: GrantAccess) -> (Page, GrantRef) {
        let granted = self.buffers.take(access);
        (granted.page, granted.gref)
    }

    /// The backend is gone: ends all grants and closes the port.
    pub(super) fn close(mut self) -> Answers {
        self.buffers.end();
        let unanswered = std::mem::take(&mut self.in_flight).into_iter();
        let lost = unanswered
            .flat_map(|request| {
                let pieces = request.pieces.into_iter().map(|piece| piece.granted);
                pieces.chain(request.tables).map(|granted| granted.gref)
            })
            .chain(self.grefs.drain(..));
        for gref in lost {
            let ended = self.machine.grants().end_access(self.owner, gref);
            ended.unwrap_or_else(|error| panic!("a closed backend still has a page: {error:?}"));
        }
        self.machine.events().close(self.owner, self.port).expect("our port");
        self.answers
    }
}

impl Kind {
    const fn code(self) -> OpCode {
        match self {
            Self::Read => OpCode::READ,
            Self::Write => OpCode::WRITE,
            Self::Barrier => OpCode::BARRIER,
            Self::Flush => OpCode::FLUSH,
            Self::Discard => OpCode::DISCARD,
        }
    }
}
