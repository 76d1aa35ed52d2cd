//! Why a controller cannot be used, or had to be reset.

use thiserror::Error;

use crate::command::AdminOpcode;
use crate::{Broken, EntrySizes, Status};

/// Why a controller cannot be used, or had to be reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Error {
    /// Its registers read all ones, or we were told so.
    #[error("the controller is gone")]
    Gone,
    /// Its registers lie past the BAR's end.
    #[error("the registers end at byte {needed}, the BAR has {len}")]
    Registers {
        /// End of the last doorbell.
        needed: usize,
        /// Length of the BAR.
        len: usize,
    },
    /// Too few frames to begin with.
    #[error("{have} frames, {needed} are needed")]
    Frames {
        /// Least number.
        needed: usize,
        /// How many there are.
        have: usize,
    },
    /// It has no NVM command set (CAP.CSS).
    #[error("no NVM command set: {css:#04x}")]
    CommandSets {
        /// CAP.CSS.
        css: u8,
    },
    /// Its pages are larger than ours (CAP.MPSMIN).
    #[error("its smallest page is of 2^{shift} bytes, not 2^12")]
    PageSize {
        /// 12 + CAP.MPSMIN.
        shift: u32,
    },
    /// Its queues are too short (CAP.MQES).
    #[error("its queues have at most {max} entries")]
    Queues {
        /// CAP.MQES + 1.
        max: u32,
    },
    /// CSTS.RDY did not become 0 (CAP.TO): it may still write our memory.
    #[error("it is not disabled after {timeout_ms} ms")]
    NotDisabled {
        /// How long it was waited for.
        timeout_ms: u128,
    },
    /// CSTS.RDY did not become 1 (CAP.TO).
    #[error("it is not ready after {timeout_ms} ms")]
    NotReady {
        /// How long it was waited for.
        timeout_ms: u128,
    },
    /// CSTS.CFS is set.
    #[error("controller fatal status")]
    Fatal,
    /// CSTS.RDY became 0 without us.
    #[error("it was disabled by somebody else")]
    Disabled,
    /// An admin command was not answered.
    #[error("no answer to admin command {opcode:?}")]
    AdminTimeout {
        /// Which.
        opcode: AdminOpcode,
    },
    /// An admin command failed.
    #[error("admin command {opcode:?} failed: {status}")]
    Admin {
        /// Which.
        opcode: AdminOpcode,
        /// How.
        status: Status,
    },
    /// It has other queue entries.
    #[error(transparent)]
    EntrySizes(#[from] EntrySizes),
    /// It did what no controller may do.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// An I/O command was not answered.
    #[error("no answer to an I/O command")]
    Timeout,
    /// After a reset it is another one.
    #[error("after a reset it is another controller")]
    Other,
    /// Shutdown processing did not end: what its cache held may be lost.
    #[error("it is not shut down after {timeout_ms} ms")]
    NotShutDown {
        /// How long it was waited for.
        timeout_ms: u128,
    },
}
