//! Requests: one parse from a slot's bytes to a typed request.

use thiserror::Error;
use xen_abi::GrantRef;

use crate::layout::{
    DISCARD_FLAG, HANDLE, INDIRECT_NR_SEGMENTS, INDIRECT_OP, Layout, NR_SEGMENTS, OPERATION,
};
use crate::{
    Abi, MAX_INDIRECT_PAGES, MAX_SEGMENTS, Response, SEGMENTS_PER_INDIRECT_PAGE, Segment, Segments,
    Slot, Status,
};

/// A frontend's own name for a request, echoed in its response. It need not be unique.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RequestId(pub u64);

/// A place on the disk, in sectors of 512 bytes. As the frontend gave it: possibly past the end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Sector(pub u64);

/// The operation byte of a request or response (`BLKIF_OP_*`); any value may come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OpCode(pub u8);

impl OpCode {
    /// `BLKIF_OP_READ`.
    #[doc(alias = "BLKIF_OP_READ")]
    pub const READ: Self = Self(0);
    /// `BLKIF_OP_WRITE`.
    #[doc(alias = "BLKIF_OP_WRITE")]
    pub const WRITE: Self = Self(1);
    /// `BLKIF_OP_WRITE_BARRIER`.
    #[doc(alias = "BLKIF_OP_WRITE_BARRIER")]
    pub const BARRIER: Self = Self(2);
    /// `BLKIF_OP_FLUSH_DISKCACHE`.
    #[doc(alias = "BLKIF_OP_FLUSH_DISKCACHE")]
    pub const FLUSH: Self = Self(3);
    /// `BLKIF_OP_DISCARD`.
    #[doc(alias = "BLKIF_OP_DISCARD")]
    pub const DISCARD: Self = Self(5);
    /// `BLKIF_OP_INDIRECT`. No response carries it: those echo the inner operation.
    #[doc(alias = "BLKIF_OP_INDIRECT")]
    pub const INDIRECT: Self = Self(6);
}

const DISCARD_SECURE: u8 = 1 << 0;

/// How many segments an indirect request may have: what `feature-max-indirect-segments` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MaxIndirectSegments(u16);

impl MaxIndirectSegments {
    /// Indirect requests are not offered: each one is malformed.
    pub const NONE: Self = Self(0);
    /// What 8 pages hold: 4096 segments, 16 MiB.
    #[expect(clippy::cast_possible_truncation, reason = "4096")]
    pub const MAX: Self = Self((MAX_INDIRECT_PAGES * SEGMENTS_PER_INDIRECT_PAGE) as u16);

    /// A limit of 0 to 4096 segments; `None` past that.
    #[must_use]
    pub const fn new(nr_segments: u16) -> Option<Self> {
        if nr_segments > Self::MAX.0 { None } else { Some(Self(nr_segments)) }
    }

    /// The limit, 0 to 4096.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// One request (`struct blkif_request` and its kin), checked for its own form only: whether it
/// fits a disk is the backend's question.
#[doc(alias = "blkif_request")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Echoed in the response.
    pub id: RequestId,
    /// The vdev as the frontend numbers it (`blkif_vdev_t`). The ring says which disk is meant;
    /// nothing depends on this.
    pub handle: u16,
    /// What to do.
    pub op: Operation,
}

/// What a [`Request`] asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Disk to segments; 1 to 11 of them.
    Read(Transfer),
    /// Segments to disk; 1 to 11 of them.
    Write(Transfer),
    /// A write, 0 to 11 segments, that begins when all earlier writes are done and before any later
    /// one. Linux sends an empty one for a flush where both barrier and flush are offered.
    Barrier(Transfer),
    /// Everything written so far to stable storage. Usually without segments; Linux' backend
    /// writes those it finds, after the flush.
    Flush(Transfer),
    /// These sectors are no longer in use.
    Discard {
        /// First sector.
        sector: Sector,
        /// How many sectors of 512 bytes; any value.
        nr_sectors: u64,
        /// Their contents must be gone for good (`BLKIF_DISCARD_SECURE`). To be ignored where
        /// `discard-secure` is not offered.
        secure: bool,
    },
    /// A read or write whose segments lie in granted pages.
    Indirect(Indirect),
    /// Anything else; to be answered [`Status::EOPNOTSUPP`].
    Unknown {
        /// As it came.
        code: OpCode,
    },
}

/// Where a direct request reads or writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// The disk's first sector.
    pub sector: Sector,
    /// The buffers, in the order of the disk's sectors.
    pub segments: Segments,
}

/// What an indirect request may do. The header allows no other operation, and neither does
/// Linux' backend: flushes and barriers are always direct.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IndirectOp {
    /// Disk to segments.
    Read,
    /// Segments to disk.
    Write,
}

impl IndirectOp {
    /// As it stands in `indirect_op`.
    #[must_use]
    pub const fn code(self) -> OpCode {
        match self {
            Self::Read => OpCode::READ,
            Self::Write => OpCode::WRITE,
        }
    }
}

/// A read or write whose segments lie in granted pages (`struct blkif_request_indirect`). Its
/// count is within the advertised limit; the segments are not read yet.
#[doc(alias = "blkif_request_indirect")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Indirect {
    op: IndirectOp,
    sector: Sector,
    nr_segments: u16,
    // Entries past the pages in use are zero, so that equality can be derived.
    grefs: [GrantRef; MAX_INDIRECT_PAGES],
}

impl Indirect {
    /// Describes a transfer of `nr_segments` segments; `grefs` past the pages they need are
    /// ignored.
    ///
    /// # Errors
    /// [`MalformedReason::NoSegments`] and [`MalformedReason::TooManySegments`].
    pub fn new(
        op: IndirectOp,
        sector: Sector,
        nr_segments: u16,
        mut grefs: [GrantRef; MAX_INDIRECT_PAGES],
        max: MaxIndirectSegments,
    ) -> Result<Self, MalformedReason> {
        check_nr_segments(nr_segments, 1, max.get())?;
        grefs[nr_pages(nr_segments)..].fill(GrantRef(0));
        Ok(Self { op, sector, nr_segments, grefs })
    }

    /// The inner operation.
    #[must_use]
    pub const fn op(&self) -> IndirectOp {
        self.op
    }

    /// The disk's first sector.
    #[must_use]
    pub const fn sector(&self) -> Sector {
        self.sector
    }

    /// How many segments, 1 to the advertised limit.
    #[must_use]
    pub const fn nr_segments(&self) -> u16 {
        self.nr_segments
    }

    /// The pages that hold the segments, 512 to a page: 1 to 8.
    #[must_use]
    pub fn grefs(&self) -> &[GrantRef] {
        &self.grefs[..nr_pages(self.nr_segments)]
    }
}

fn nr_pages(nr_segments: u16) -> usize {
    usize::from(nr_segments).div_ceil(SEGMENTS_PER_INDIRECT_PAGE)
}

/// A request that breaks the protocol's form, with what its answer needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("request {} of operation {}: {reason}", .id.0, .operation.0)]
pub struct Malformed {
    /// Echoed in the response.
    pub id: RequestId,
    /// Echoed in the response: for an indirect request what stands in `indirect_op`.
    pub operation: OpCode,
    /// What is wrong.
    pub reason: MalformedReason,
}

/// What is wrong with a [`Malformed`] request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum MalformedReason {
    /// A transfer of nothing.
    #[error("no segments")]
    NoSegments,
    /// More segments than a request may have.
    #[error("{claimed} segments, at most {max} allowed")]
    TooManySegments {
        /// `nr_segments`.
        claimed: u16,
        /// 11, or the advertised limit of an indirect request.
        max: u16,
    },
    /// An indirect request for something else than a read or write.
    #[error("indirect operation {}", .code.0)]
    IndirectOperation {
        /// `indirect_op`.
        code: OpCode,
    },
}

impl Malformed {
    /// The answer: [`Status::ERROR`].
    #[must_use]
    pub const fn response(&self) -> Response {
        Response { id: self.id, operation: self.operation, status: Status::ERROR }
    }
}

fn check_nr_segments(claimed: u16, min: u16, max: u16) -> Result<(), MalformedReason> {
    if claimed > max {
        return Err(MalformedReason::TooManySegments { claimed, max });
    }
    if claimed < min {
        return Err(MalformedReason::NoSegments);
    }
    Ok(())
}

impl Request {
    /// Reads a request from our copy of a slot. Any bytes may stand there.
    ///
    /// # Errors
    /// [`Malformed`] with the id and operation to answer; a segment that does not lie within its
    /// page is not found here but by [`Segment::check`].
    pub fn parse(slot: &Slot, abi: Abi, max: MaxIndirectSegments) -> Result<Self, Malformed> {
        let layout = abi.layout();
        let id = RequestId(slot.u64_at(layout.id));
        let sector = Sector(slot.u64_at(layout.sector));
        let code = OpCode(slot.u8_at(OPERATION));
        let transfer = |min| parse_transfer(slot, layout, sector, min);
        let op = match code {
            OpCode::READ => transfer(1).map(Operation::Read),
            OpCode::WRITE => transfer(1).map(Operation::Write),
            OpCode::BARRIER => transfer(0).map(Operation::Barrier),
            OpCode::FLUSH => transfer(0).map(Operation::Flush),
            OpCode::DISCARD => Ok(Operation::Discard {
                sector,
                nr_sectors: slot.u64_at(layout.discard_nr_sectors),
                secure: slot.u8_at(DISCARD_FLAG) & DISCARD_SECURE != 0,
            }),
            OpCode::INDIRECT => parse_indirect(slot, layout, sector, max).map(Operation::Indirect),
            code => Ok(Operation::Unknown { code }),
        };
        let (handle, operation) = match code {
            OpCode::INDIRECT => (layout.indirect_handle, OpCode(slot.u8_at(INDIRECT_OP))),
            code => (HANDLE, code),
        };
        match op {
            Ok(op) => Ok(Self { id, handle: slot.u16_at(handle), op }),
            Err(reason) => Err(Malformed { id, operation, reason }),
        }
    }

    /// The slot that holds this request; what its fields do not cover is zero.
    #[must_use]
    pub fn encode(&self, abi: Abi) -> Slot {
        let layout = abi.layout();
        let mut slot = Slot::ZERO;
        let mut handle = HANDLE;
        slot.put(layout.id, self.id.0.to_le_bytes());
        let (code, sector) = match &self.op {
            Operation::Read(transfer) => (OpCode::READ, put_transfer(&mut slot, layout, transfer)),
            Operation::Write(transfer) => {
                (OpCode::WRITE, put_transfer(&mut slot, layout, transfer))
            }
            Operation::Barrier(transfer) => {
                (OpCode::BARRIER, put_transfer(&mut slot, layout, transfer))
            }
            Operation::Flush(transfer) => {
                (OpCode::FLUSH, put_transfer(&mut slot, layout, transfer))
            }
            Operation::Discard { sector, nr_sectors, secure } => {
                slot.put(DISCARD_FLAG, [if *secure { DISCARD_SECURE } else { 0 }]);
                slot.put(layout.discard_nr_sectors, nr_sectors.to_le_bytes());
                (OpCode::DISCARD, *sector)
            }
            Operation::Indirect(indirect) => {
                handle = layout.indirect_handle;
                slot.put(INDIRECT_OP, [indirect.op.code().0]);
                slot.put(INDIRECT_NR_SEGMENTS, indirect.nr_segments.to_le_bytes());
                for (n, gref) in indirect.grefs().iter().enumerate() {
                    slot.put(layout.indirect_grefs + 4 * n, gref.0.to_le_bytes());
                }
                (OpCode::INDIRECT, indirect.sector)
            }
            Operation::Unknown { code } => (*code, Sector(0)),
        };
        slot.put(OPERATION, [code.0]);
        slot.put(layout.sector, sector.0.to_le_bytes());
        slot.put(handle, self.handle.to_le_bytes());
        slot
    }

    /// What a response echoes: the operation, or the inner one of an indirect request.
    #[must_use]
    pub const fn operation(&self) -> OpCode {
        match self.op {
            Operation::Read(_) => OpCode::READ,
            Operation::Write(_) => OpCode::WRITE,
            Operation::Barrier(_) => OpCode::BARRIER,
            Operation::Flush(_) => OpCode::FLUSH,
            Operation::Discard { .. } => OpCode::DISCARD,
            Operation::Indirect(indirect) => indirect.op.code(),
            Operation::Unknown { code } => code,
        }
    }

    /// The answer to this request.
    #[must_use]
    pub const fn response(&self, status: Status) -> Response {
        Response { id: self.id, operation: self.operation(), status }
    }
}

fn parse_transfer(
    slot: &Slot,
    layout: &Layout,
    sector: Sector,
    min: u16,
) -> Result<Transfer, MalformedReason> {
    let claimed = slot.u8_at(NR_SEGMENTS);
    #[expect(clippy::cast_possible_truncation, reason = "11")]
    check_nr_segments(u16::from(claimed), min, MAX_SEGMENTS as u16)?;
    Ok(Transfer { sector, segments: Segments::parse(&slot.0[layout.segments..], claimed) })
}

fn parse_indirect(
    slot: &Slot,
    layout: &Layout,
    sector: Sector,
    max: MaxIndirectSegments,
) -> Result<Indirect, MalformedReason> {
    let op = match OpCode(slot.u8_at(INDIRECT_OP)) {
        OpCode::READ => IndirectOp::Read,
        OpCode::WRITE => IndirectOp::Write,
        code => return Err(MalformedReason::IndirectOperation { code }),
    };
    let grefs = core::array::from_fn(|n| GrantRef(slot.u32_at(layout.indirect_grefs + 4 * n)));
    Indirect::new(op, sector, slot.u16_at(INDIRECT_NR_SEGMENTS), grefs, max)
}

fn put_transfer(slot: &mut Slot, layout: &Layout, transfer: &Transfer) -> Sector {
    slot.put(NR_SEGMENTS, [transfer.segments.nr()]);
    for (n, segment) in transfer.segments.as_slice().iter().enumerate() {
        slot.put(layout.segments + Segment::LEN_BYTES * n, segment.encode());
    }
    transfer.sector
}
