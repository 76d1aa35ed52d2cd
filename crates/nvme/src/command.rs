//! Commands, as they lie in a submission queue (base specification 1.4, section 4.2).

use crate::{DmaAddr, NamespaceId};

/// Bytes of an entry of a submission queue.
pub(crate) const COMMAND_LEN: usize = 64;

/// Bytes of a range of Dataset Management (6.7).
pub(crate) const RANGE_LEN: usize = 16;

/// OPC of an admin command (section 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdminOpcode {
    /// Create I/O Submission Queue (5.4).
    CreateIoSq = 0x01,
    /// Create I/O Completion Queue (5.3).
    CreateIoCq = 0x05,
    /// Identify (5.15).
    Identify = 0x06,
    /// Set Features (5.21).
    SetFeatures = 0x09,
}

/// OPC of an I/O command (section 6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IoOpcode {
    /// 6.8.
    Flush = 0x00,
    /// 6.15.
    Write = 0x01,
    /// 6.9.
    Read = 0x02,
    /// 6.17.
    WriteZeroes = 0x08,
    /// 6.7.
    DatasetManagement = 0x09,
}

/// How the controller tells of completions of I/O commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupt {
    /// Not at all: the queue is looked at again and again.
    Polled,
    /// By an interrupt vector: an entry of the MSI-X table.
    Vector(u16),
}

/// A command, without its identifier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Command {
    opcode: u8,
    nsid: u32,
    /// PRP1 and PRP2 (4.3); 0 where there is none.
    prp: [u64; 2],
    /// CDW10 to CDW12; those behind are 0.
    cdw: [u32; 3],
}

impl Command {
    const fn admin(opcode: AdminOpcode, nsid: u32, data: Option<DmaAddr>, cdw: [u32; 2]) -> Self {
        let prp = match data {
            Some(DmaAddr(addr)) => [addr, 0],
            None => [0; 2],
        };
        Self { opcode: opcode as u8, nsid, prp, cdw: [cdw[0], cdw[1], 0] }
    }

    /// Identify with CNS 01h: the controller.
    pub(crate) const fn identify_controller(data: DmaAddr) -> Self {
        Self::admin(AdminOpcode::Identify, 0, Some(data), [0x01, 0])
    }

    /// Identify with CNS 06h, CSI 00h: the controller's limits of the NVM command set (base
    /// specification 2.0, section 5.17).
    pub(crate) const fn identify_limits(data: DmaAddr) -> Self {
        Self::admin(AdminOpcode::Identify, 0, Some(data), [0x06, 0])
    }

    /// Identify with CNS 02h: the active namespaces whose identifiers are above `after`.
    pub(crate) const fn active_namespaces(after: u32, data: DmaAddr) -> Self {
        Self::admin(AdminOpcode::Identify, after, Some(data), [0x02, 0])
    }

    /// Identify with CNS 00h: a namespace.
    pub(crate) const fn identify_namespace(nsid: NamespaceId, data: DmaAddr) -> Self {
        Self::admin(AdminOpcode::Identify, nsid.0, Some(data), [0x00, 0])
    }

    /// Set Features with FID 07h, Number of Queues (5.21.1.7): one of each, counted from 0.
    pub(crate) const fn one_queue_pair() -> Self {
        Self::admin(AdminOpcode::SetFeatures, 0, None, [0x07, 0])
    }

    /// Create I/O Completion Queue (5.3), in one piece of memory.
    pub(crate) const fn create_cq(
        id: u16,
        nr_entries: u16,
        at: DmaAddr,
        interrupt: Interrupt,
    ) -> Self {
        let interrupt = match interrupt {
            Interrupt::Polled => 0,
            Interrupt::Vector(vector) => (vector as u32) << 16 | 1 << 1,
        };
        let cdw = [(nr_entries as u32 - 1) << 16 | id as u32, interrupt | 1];
        Self::admin(AdminOpcode::CreateIoCq, 0, Some(at), cdw)
    }

    /// Create I/O Submission Queue (5.4), in one piece of memory, for the completion queue of the
    /// same number.
    pub(crate) const fn create_sq(id: u16, nr_entries: u16, at: DmaAddr) -> Self {
        let cdw = [(nr_entries as u32 - 1) << 16 | id as u32, (id as u32) << 16 | 1];
        Self::admin(AdminOpcode::CreateIoSq, 0, Some(at), cdw)
    }

    /// An I/O command on blocks from `lba` on; `nr_blocks`, 1 to 65536, is counted from 0.
    pub(crate) fn blocks(
        opcode: IoOpcode,
        nsid: NamespaceId,
        lba: u64,
        nr_blocks: u32,
        prp: [u64; 2],
    ) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "its halves")]
        let slba = [lba as u32, (lba >> 32) as u32];
        let cdw = [slba[0], slba[1], nr_blocks.saturating_sub(1) & 0xffff];
        Self { opcode: opcode as u8, nsid: nsid.0, prp, cdw }
    }

    /// Flush (6.8).
    pub(crate) const fn flush(nsid: NamespaceId) -> Self {
        Self { opcode: IoOpcode::Flush as u8, nsid: nsid.0, prp: [0; 2], cdw: [0; 3] }
    }

    /// Dataset Management (6.7): AD, the one range at `range` is deallocated.
    pub(crate) const fn deallocate(nsid: NamespaceId, range: DmaAddr) -> Self {
        let opcode = IoOpcode::DatasetManagement as u8;
        Self { opcode, nsid: nsid.0, prp: [range.0, 0], cdw: [0, 1 << 2, 0] }
    }

    /// As it lies in a submission queue.
    pub(crate) fn encode(&self, cid: u16) -> [u8; COMMAND_LEN] {
        let mut bytes = [0; COMMAND_LEN];
        bytes[0] = self.opcode;
        bytes[2..4].copy_from_slice(&cid.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.nsid.to_le_bytes());
        for (at, prp) in [24, 32].into_iter().zip(self.prp) {
            bytes[at..at + 8].copy_from_slice(&prp.to_le_bytes());
        }
        for (at, cdw) in [40, 44, 48].into_iter().zip(self.cdw) {
            bytes[at..at + 4].copy_from_slice(&cdw.to_le_bytes());
        }
        bytes
    }
}

/// A range of Dataset Management (6.7): no attributes, length, first block.
pub(crate) fn range(lba: u64, nr_blocks: u32) -> [u8; RANGE_LEN] {
    let mut bytes = [0; RANGE_LEN];
    bytes[4..8].copy_from_slice(&nr_blocks.to_le_bytes());
    bytes[8..].copy_from_slice(&lba.to_le_bytes());
    bytes
}
