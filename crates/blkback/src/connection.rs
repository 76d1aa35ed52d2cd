//! What a frontend says of its ring.

use blkif::{Abi, keys};
use thiserror::Error;
use xen_abi::{EvtchnPort, GrantRef};

/// A frontend's keys as they stand in xenstore; `None` for a node that is not there.
#[derive(Clone, Copy, Default, Debug)]
pub struct FrontendKeys<'a> {
    /// `protocol`
    pub protocol: Option<&'a [u8]>,
    /// `ring-ref`
    pub ring_ref: Option<&'a [u8]>,
    /// `event-channel`
    pub event_channel: Option<&'a [u8]>,
}

/// What there is to connect to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection {
    /// The ABI of its requests and responses.
    pub abi: Abi,
    /// The ring's only page.
    pub ring_ref: GrantRef,
    /// The frontend's port, unbound and meant for us.
    pub port: EvtchnPort,
}

/// A frontend's key that cannot be used. Its value is not part of it: it is the peer's text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum KeyError {
    /// The node is not there.
    #[error("the frontend has no {key}")]
    Missing {
        /// Which.
        key: &'static str,
    },
    /// It is not a decimal number of 32 bits.
    #[error("the frontend's {key} is no number")]
    NotANumber {
        /// Which.
        key: &'static str,
    },
    /// `protocol` names no ABI of this machine.
    #[error("the frontend's protocol is not x86_64-abi")]
    Protocol,
}

impl Connection {
    /// Reads a frontend's keys.
    ///
    /// # Errors
    /// The first key that cannot be used.
    pub fn parse(frontend: &FrontendKeys<'_>) -> Result<Self, KeyError> {
        let protocol = match frontend.protocol {
            None => None,
            Some(text) => Some(str::from_utf8(text).map_err(|_| KeyError::Protocol)?),
        };
        let abi = Abi::from_protocol(protocol).map_err(|_| KeyError::Protocol)?;
        if abi != Abi::X86_64 {
            return Err(KeyError::Protocol);
        }
        Ok(Self {
            abi,
            ring_ref: GrantRef(number(keys::RING_REF, frontend.ring_ref)?),
            port: EvtchnPort(number(keys::EVENT_CHANNEL, frontend.event_channel)?),
        })
    }
}

/// Reads a decimal number, digits only.
fn number(key: &'static str, text: Option<&[u8]>) -> Result<u32, KeyError> {
    let text = text.ok_or(KeyError::Missing { key })?;
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(KeyError::NotANumber { key });
    }
    let text = str::from_utf8(text).map_err(|_| KeyError::NotANumber { key })?;
    text.parse().map_err(|_| KeyError::NotANumber { key })
}
