//! Requests that one thread keeps under way at once, by io_uring.
//!
//! They go to the kernel and come back from it as many at a time as there are: a thread for each would
//! cost more than what is to be measured.

use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::time::Instant;

use compio_buf::{BufResult, IntoInner, Slice};
use compio_driver::op::{ReadAt, WriteAt};
use compio_driver::{Key, OpCode, Proactor, PushEntry};

use crate::Error;
use crate::device::{Buffer, Device, Op, byte_of};
use crate::latencies::Latencies;

type Memory = Slice<Vec<u8>>;

/// Makes a request for each block that `next` gives, as many at once as there are buffers.
///
/// After an error no more are made, and those under way are waited for. Without io_uring that is the
/// error.
pub fn run(
    device: Device,
    op: Op,
    buffers: Vec<Buffer>,
    next: impl FnMut() -> Option<u64>,
) -> Result<Latencies, Error> {
    let device = Rc::new(device);
    let buffers = buffers.into_iter().map(Buffer::into_slice);
    match op {
        Op::Read => Ring::new(device, op, ReadAt::new)?.run(buffers, next),
        Op::Write => Ring::new(device, op, WriteAt::new)?.run(buffers, next),
    }
}

/// `Request` is the driver's type for `op`.
struct Ring<Request> {
    proactor: Proactor,
    device: Rc<Device>,
    op: Op,
    request: fn(Rc<Device>, u64, Memory) -> Request,
    /// The first error.
    failed: Option<Error>,
    latencies: Latencies,
}

/// A request that is not answered yet.
struct UnderWay<Request> {
    key: Key<Request>,
    block: u64,
    begin: Instant,
}

impl<Request: OpCode + IntoInner<Inner = Memory> + 'static> Ring<Request> {
    fn new(
        device: Rc<Device>,
        op: Op,
        request: fn(Rc<Device>, u64, Memory) -> Request,
    ) -> Result<Self, Error> {
        // The kernel reports what is done when it is asked, instead of interrupting for each
        // (IORING_SETUP_DEFER_TASKRUN, of Linux 6.1).
        let proactor = Proactor::builder().single_issuer(true).defer_taskrun(true).build();
        let proactor = proactor.map_err(|error| ring_failed(&error))?;
        Ok(Self { proactor, device, op, request, failed: None, latencies: Latencies::new() })
    }

    fn run(
        mut self,
        buffers: impl Iterator<Item = Memory>,
        mut next: impl FnMut() -> Option<u64>,
    ) -> Result<Latencies, Error> {
        let begin = Instant::now();
        let mut slots: Vec<_> =
            buffers.map(|buffer| self.begin(buffer, begin, &mut next)).collect();
        while slots.iter().any(Option::is_some) {
            self.wait()?;
            // One reading of the clock for all that came together, and for all that go next.
            let now = Instant::now();
            for slot in &mut slots {
                let Some(UnderWay { key, block, begin }) = slot.take() else { continue };
                *slot = match self.proactor.pop(key) {
                    PushEntry::Pending(key) => Some(UnderWay { key, block, begin }),
                    PushEntry::Ready(BufResult(done, request)) => {
                        let mut buffer = request.into_inner();
                        self.latencies.add(now - begin);
                        self.check(done, block, &mut buffer);
                        self.begin(buffer, now, &mut next)
                    }
                };
            }
        }
        self.failed.map_or(Ok(self.latencies), Err)
    }

    /// Makes the next request, if there is to be one; the kernel hears of it at the next [`wait`].
    ///
    /// [`wait`]: Self::wait
    fn begin(
        &mut self,
        buffer: Memory,
        begin: Instant,
        next: &mut impl FnMut() -> Option<u64>,
    ) -> Option<UnderWay<Request>> {
        if self.failed.is_some() {
            return None;
        }
        let block = next()?;
        let request = (self.request)(Rc::clone(&self.device), byte_of(block), buffer);
        match self.proactor.push(request) {
            PushEntry::Pending(key) => Some(UnderWay { key, block, begin }),
            // io_uring answers later; here the ring itself failed.
            PushEntry::Ready(BufResult(done, request)) => {
                self.check(done, block, &mut request.into_inner());
                None
            }
        }
    }

    /// Hands over what was begun, and waits until something is answered.
    fn wait(&mut self) -> Result<(), Error> {
        match self.proactor.poll(None) {
            Err(error) if !matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::TimedOut) => {
                Err(ring_failed(&error))
            }
            _ => Ok(()),
        }
    }

    fn check(&mut self, done: io::Result<usize>, block: u64, buffer: &mut [u8]) {
        let checked = match done {
            Ok(bytes) if bytes == buffer.len() => Ok(()),
            // Cut short: what is left succeeds now, or says why not.
            Ok(_) => self.device.request(self.op, block, buffer),
            Err(error) => Err(self.device.failed(self.op, block, buffer.len(), &error)),
        };
        if let Err(error) = checked {
            self.failed.get_or_insert(error);
        }
    }
}

fn ring_failed(error: &io::Error) -> Error {
    Error::Request(format!("io_uring, for a --depth above 1: {error}"))
}
