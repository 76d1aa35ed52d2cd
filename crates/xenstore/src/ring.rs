//! The two byte rings of the shared page (`struct xenstore_domain_interface`, `io/xs_wire.h`).

use xen_abi::SharedMemory;

use crate::error::ProtocolError;

/// Size of either ring in bytes (`XENSTORE_RING_SIZE`).
const RING_BYTES: usize = 1024;

/// Offsets in the page.
const REQ: usize = 0;
const RSP: usize = 1024;
const REQ_CONS: usize = 2048;
const REQ_PROD: usize = 2052;
const RSP_CONS: usize = 2056;
const RSP_PROD: usize = 2060;
const SERVER_FEATURES: usize = 2064;
const ERROR: usize = 2072;

/// `XENSTORE_SERVER_FEATURE_ERROR`: the page's `error` field means something.
const FEATURE_ERROR: u32 = 2;

/// Whether xenstored's event channel is to be signalled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "xenstored sleeps until its event channel is signalled"]
pub enum Notify {
    /// An index of ours has moved since the last time: signal it.
    Yes,
    /// Nothing has changed.
    No,
}

/// Our side of both rings. Our indices live here and are never read back from the page.
#[derive(Debug)]
pub(crate) struct Rings {
    req_prod: u32,
    rsp_cons: u32,
    notify: Notify,
}

impl Rings {
    /// Goes on where the page stands: its indices need not begin at zero.
    pub(crate) fn new(page: &impl SharedMemory) -> Self {
        Self {
            req_prod: page.load_u32(REQ_PROD),
            rsp_cons: page.load_u32(RSP_CONS),
            notify: Notify::No,
        }
    }

    /// Copies as much of `from` into the request ring as fits; how many bytes that was.
    pub(crate) fn push(
        &mut self,
        page: &impl SharedMemory,
        from: &[u8],
    ) -> Result<usize, ProtocolError> {
        let (consumed, produced) = (page.load_u32(REQ_CONS), self.req_prod);
        let used = distance(consumed, produced)
            .ok_or(ProtocolError::RequestIndex { consumed, produced })?;
        let from = &from[..from.len().min(RING_BYTES - used)];
        if !from.is_empty() {
            let start = offset(produced);
            let (low, high) = from.split_at(from.len().min(RING_BYTES - start));
            page.write(REQ + start, low);
            page.write(REQ, high);
            self.req_prod = advance(produced, from.len());
            page.store_u32(REQ_PROD, self.req_prod);
            self.notify = Notify::Yes;
        }
        Ok(from.len())
    }

    /// Copies at most `into.len()` bytes out of the response ring; how many bytes that was.
    pub(crate) fn pop(
        &mut self,
        page: &impl SharedMemory,
        into: &mut [u8],
    ) -> Result<usize, ProtocolError> {
        let (consumed, produced) = (self.rsp_cons, page.load_u32(RSP_PROD));
        let used = distance(consumed, produced)
            .ok_or(ProtocolError::ResponseIndex { consumed, produced })?;
        let len = into.len().min(used);
        if len > 0 {
            let start = offset(consumed);
            let (low, high) = into[..len].split_at_mut(len.min(RING_BYTES - start));
            page.read(RSP + start, low);
            page.read(RSP, high);
            self.rsp_cons = advance(consumed, len);
            page.store_u32(RSP_CONS, self.rsp_cons);
            self.notify = Notify::Yes;
        }
        Ok(len)
    }

    /// Whether xenstored is to be notified of what was moved since the last call. The protocol
    /// wants it for consumed bytes too: xenstored may be waiting for space.
    pub(crate) fn take_notify(&mut self) -> Notify {
        core::mem::replace(&mut self.notify, Notify::No)
    }
}

/// Whether xenstored still listens. One that cannot say so always does.
pub(crate) fn check_connected(page: &impl SharedMemory) -> Result<(), ProtocolError> {
    if page.load_u32(SERVER_FEATURES) & FEATURE_ERROR == 0 {
        return Ok(());
    }
    match page.load_u32(ERROR) {
        0 => Ok(()),
        code => Err(ProtocolError::Disconnected { code }),
    }
}

/// How many bytes are in a ring; `None` if more than it holds.
fn distance(consumed: u32, produced: u32) -> Option<usize> {
    usize::try_from(produced.wrapping_sub(consumed)).ok().filter(|used| *used <= RING_BYTES)
}

/// Where in its ring an index points.
fn offset(index: u32) -> usize {
    index as usize % RING_BYTES
}

#[expect(clippy::cast_possible_truncation, reason = "at most RING_BYTES")]
fn advance(index: u32, len: usize) -> u32 {
    index.wrapping_add(len as u32)
}
