//! Why a request was not done.

use store::Failure;
use thiserror::Error;

use crate::Status;

/// Why a request was not done. Some of it may have been.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum IoError {
    /// The controller does not know the command.
    #[error("not supported: {0}")]
    Unsupported(Status),
    /// The controller takes the command for a wrong one.
    #[error("invalid: {0}")]
    Invalid(Status),
    /// Not within the namespace as it is now.
    #[error("out of range: {0}")]
    Range(Status),
    /// The medium failed.
    #[error("media error: {0}")]
    Media(Status),
    /// The namespace is write protected.
    #[error("write protected: {0}")]
    WriteProtected(Status),
    /// A thinly provisioned namespace has no room.
    #[error("capacity exceeded: {0}")]
    CapacityExceeded(Status),
    /// The command was aborted.
    #[error("aborted: {0}")]
    Aborted(Status),
    /// The controller does not know the namespace.
    #[error("no such namespace: {0}")]
    NoNamespace(Status),
    /// Any other status: the controller failed, or has its own reasons.
    #[error("controller error: {0}")]
    Controller(Status),
    /// There was no answer in time; the controller was reset.
    #[error("no answer in {seconds} s")]
    TimedOut {
        /// How long it was waited for, at least.
        seconds: u64,
    },
    /// The controller was reset for another reason, twice while it had this request.
    #[error("the controller was reset")]
    Reset,
    /// The namespace or the controller is gone: nobody knows.
    #[error("the namespace is gone")]
    Gone,
}

/// What a status means (4.6.1: generic, command specific, media and data integrity, path related).
impl From<Status> for IoError {
    fn from(status: Status) -> Self {
        match (status.sct, status.sc) {
            // Invalid Command Opcode.
            (0, 0x01) => Self::Unsupported(status),
            // Invalid Field in Command, PRP Offset Invalid; Conflicting Attributes.
            (0, 0x02 | 0x13) | (1, 0x80) => Self::Invalid(status),
            // LBA Out of Range.
            (0, 0x80) => Self::Range(status),
            // Invalid Namespace or Format.
            (0, 0x0b) => Self::NoNamespace(status),
            // Namespace is Write Protected; Attempted Write to Read Only Range.
            (0, 0x20) | (1, 0x82) => Self::WriteProtected(status),
            // Capacity Exceeded.
            (0, 0x81) => Self::CapacityExceeded(status),
            // Power Loss Notification, Abort Requested, SQ Deletion, two of fused commands, Preempted
            // and Aborted; Aborted By Host.
            (0, 0x05 | 0x07..=0x0a | 0x1b) | (3, 0x71) => Self::Aborted(status),
            (2, _) => Self::Media(status),
            _ => Self::Controller(status),
        }
    }
}

impl From<IoError> for Failure {
    fn from(error: IoError) -> Self {
        match error {
            IoError::Unsupported(_) => Self::NotSupported,
            IoError::Range(_) => Self::Range,
            IoError::WriteProtected(_) => Self::ReadOnly,
            IoError::Invalid(_)
            | IoError::Media(_)
            | IoError::CapacityExceeded(_)
            | IoError::Aborted(_)
            | IoError::Controller(_)
            | IoError::Reset => Self::Device,
            IoError::TimedOut { .. } => Self::TimedOut,
            IoError::NoNamespace(_) | IoError::Gone => Self::Gone,
        }
    }
}
