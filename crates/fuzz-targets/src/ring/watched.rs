//! The simulated platform, with an eye on the mapped ring.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use blkback::{Grants, MapError};
use blkif::{Abi, OpCode, layout};
use sim::{SimMapping, SimPlatform};
use store::FrameAddr;
use xen_abi::{DomId, EvtchnPort, GntStatus, GnttabCopy, GrantRef, SharedMemory};

/// All that the backend fetched from the ring and stored to it, and what is wrong with it.
#[derive(Debug)]
pub struct Ledger {
    abi: Abi,
    /// The next slot to be fetched, the next response to be stored, and those that were shown.
    req_cons: u32,
    rsp_prod_pvt: u32,
    rsp_prod: u32,
    /// Id and operation of each request that was fetched and not answered.
    unanswered: VecDeque<(u64, u8)>,
    /// Responses that are not OKAY.
    pub nr_refused: u64,
}

impl Ledger {
    /// Of a ring in use whose requests before `start` are answered.
    pub const fn new(abi: Abi, start: u32) -> Self {
        Self {
            abi,
            req_cons: start,
            rsp_prod_pvt: start,
            rsp_prod: start,
            unanswered: VecDeque::new(),
            nr_refused: 0,
        }
    }

    pub fn nr_unanswered(&self) -> usize {
        self.unanswered.len()
    }

    pub fn check_turn(&self, outstanding: u32) {
        assert_eq!(self.unanswered.len(), outstanding as usize, "requests to be answered");
        assert!(outstanding <= 1, "only a discard takes more than one turn");
        assert_eq!(self.rsp_prod, self.rsp_prod_pvt, "every response is shown");
    }

    fn slot_at(&self, index: u32) -> usize {
        // One page holds 32 slots of either ABI.
        layout::RING + (index % 32) as usize * self.abi.layout().entry_len_bytes
    }

    /// The backend fetched `bytes`: each slot once, in order.
    fn fetched(&mut self, offset: usize, bytes: &[u8]) {
        let layout = self.abi.layout();
        assert_eq!(offset, self.slot_at(self.req_cons), "slots are fetched in order");
        assert_eq!(bytes.len(), layout.entry_len_bytes, "all of the slot at once");
        self.req_cons = self.req_cons.wrapping_add(1);
        let mut id = [0; 8];
        id.copy_from_slice(&bytes[layout.id..][..8]);
        let operation = if bytes[0] == OpCode::INDIRECT.0 { bytes[1] } else { bytes[0] };
        self.unanswered.push_back((u64::from_le_bytes(id), operation));
    }

    /// The backend stored `bytes`: the answer to the oldest request, every byte of it defined.
    fn stored(&mut self, offset: usize, bytes: &[u8]) {
        assert_eq!(offset, self.slot_at(self.rsp_prod_pvt), "responses are stored in order");
        assert_eq!(bytes.len(), self.abi.layout().response_len_bytes);
        self.rsp_prod_pvt = self.rsp_prod_pvt.wrapping_add(1);
        let (id, operation) = self.unanswered.pop_front().expect("an answer to nothing");
        assert_eq!(bytes[..8], id.to_le_bytes(), "the request's id");
        assert_eq!(bytes[8..10], [operation, 0], "the request's operation, and padding");
        let status = i16::from_le_bytes([bytes[10], bytes[11]]);
        assert!((-2..=0).contains(&status), "status {status}");
        assert!(bytes[12..].iter().all(|&byte| byte == 0), "padding");
        self.nr_refused += u64::from(status != 0);
    }

    fn loaded_index(offset: usize) {
        assert!([layout::REQ_PROD, layout::RSP_EVENT].contains(&offset), "{offset} is read back");
    }

    fn stored_index(&mut self, offset: usize, value: u32) {
        match offset {
            layout::RSP_PROD => {
                assert_eq!(value, self.rsp_prod_pvt, "the responses that are stored, and no more");
                self.rsp_prod = value;
            }
            layout::REQ_EVENT => assert_eq!(value, self.req_cons.wrapping_add(1)),
            _ => panic!("an index at {offset} is not ours to write"),
        }
    }
}

/// A [`SimPlatform`] whose mapping of the ring is watched.
pub struct Watched {
    inner: SimPlatform,
}

type Frontend = Box<dyn Fn()>;

/// A mapping; that of the ring has a ledger, and a frontend that acts before every access.
pub struct WatchedMapping {
    inner: SimMapping,
    ring: Option<(Rc<RefCell<Ledger>>, Frontend)>,
}

impl fmt::Debug for WatchedMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Watched {
    pub const fn new(inner: SimPlatform) -> Self {
        Self { inner }
    }

    pub const fn domid(&self) -> DomId {
        self.inner.domid()
    }

    pub fn map_ring(
        &mut self,
        peer: DomId,
        gref: GrantRef,
        ledger: &Rc<RefCell<Ledger>>,
        frontend: impl Fn() + 'static,
    ) -> WatchedMapping {
        let inner = self.inner.map(peer, &[gref]).expect("just granted");
        WatchedMapping { inner, ring: Some((ledger.clone(), Box::new(frontend))) }
    }

    pub fn let_go(&mut self, mut mappings: Vec<WatchedMapping>) {
        assert_eq!(self.unmap_each(&mut mappings), Ok(()));
    }
}

impl SharedMemory for WatchedMapping {
    fn len_bytes(&self) -> usize {
        self.inner.len_bytes()
    }

    fn load_u32(&self, offset: usize) -> u32 {
        if let Some((_, frontend)) = &self.ring {
            Ledger::loaded_index(offset);
            frontend();
        }
        self.inner.load_u32(offset)
    }

    fn store_u32(&self, offset: usize, value: u32) {
        if let Some((ledger, frontend)) = &self.ring {
            ledger.borrow_mut().stored_index(offset, value);
            frontend();
        }
        self.inner.store_u32(offset, value);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        let Some((ledger, frontend)) = &self.ring else { return self.inner.read(offset, into) };
        frontend();
        self.inner.read(offset, into);
        ledger.borrow_mut().fetched(offset, into);
    }

    fn write(&self, offset: usize, from: &[u8]) {
        if let Some((ledger, frontend)) = &self.ring {
            ledger.borrow_mut().stored(offset, from);
            frontend();
        }
        self.inner.write(offset, from);
    }
}

impl Grants for Watched {
    type Mapping = WatchedMapping;

    fn map(&mut self, peer: DomId, grefs: &[GrantRef]) -> Result<WatchedMapping, MapError> {
        let inner = self.inner.map(peer, grefs)?;
        Ok(WatchedMapping { inner, ring: None })
    }

    fn unmap(&mut self, mapping: WatchedMapping) -> Result<(), GntStatus> {
        self.inner.unmap(mapping.inner)
    }

    fn map_each(
        &mut self,
        peer: DomId,
        grefs: &[GrantRef],
        mut mapped: impl FnMut(GrantRef, Result<WatchedMapping, GntStatus>),
    ) {
        self.inner.map_each(peer, grefs, |gref, inner| {
            mapped(gref, inner.map(|inner| WatchedMapping { inner, ring: None }));
        });
    }

    fn unmap_each(&mut self, mappings: &mut Vec<WatchedMapping>) -> Result<(), GntStatus> {
        let mut inner = mappings.drain(..).map(|mapping| mapping.inner).collect();
        self.inner.unmap_each(&mut inner)
    }

    fn copy_in(&mut self, from: &WatchedMapping, offset: u16, to: FrameAddr, len_bytes: u16) {
        self.inner.copy_in(&from.inner, offset, to, len_bytes);
    }

    fn copy_out(&mut self, from: FrameAddr, to: &WatchedMapping, offset: u16, len_bytes: u16) {
        self.inner.copy_out(from, &to.inner, offset, len_bytes);
    }

    fn copy(&mut self, copies: &mut [GnttabCopy]) {
        self.inner.copy(copies);
    }

    fn notify(&mut self, port: EvtchnPort) {
        self.inner.notify(port);
    }
}
