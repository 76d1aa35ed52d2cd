//! A controller: what it is, and what it comes to.

mod io;
mod phases;

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use xen_abi::{Gfn, Instant, SharedMemory};

use self::phases::Admin;
use crate::command::Interrupt;
use crate::memory::{self, Dma, Memory};
use crate::queue::{MAX_ENTRIES, QueuePair};
use crate::registers::{Cap, Csts, Reg32, Reg64, Registers, Version};
use crate::requests::Requests;
use crate::{Disk, Error, Identity, NamespaceId, Unusable};

/// What became of a controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It is brought up; its namespaces are not known yet.
    Starting,
    /// Requests are sent.
    Ready,
    /// It is brought up again for this reason; requests wait.
    Resetting(Error),
    /// It is shut down: what was taken is still done, and its cache is written.
    Stopping,
    /// It was shut down, and is disabled.
    Off,
    /// It is given up.
    Failed(Error),
}

/// A namespace that the controller has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Its identifier.
    pub nsid: NamespaceId,
    /// What it is, or why it cannot be used.
    pub disk: Result<Disk, Unusable>,
}

/// What comes when the controller is disabled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    Enable,
    Off,
    Fail(Error),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// It was found enabled and not ready yet: what clearing CC.EN does then is not defined.
    Settling {
        until: Instant,
    },
    /// CC.EN is 0, CSTS.RDY is to follow.
    Disabling {
        until: Instant,
        then: Then,
    },
    /// CC.EN is 1, CSTS.RDY is to follow.
    Enabling {
        until: Instant,
    },
    /// The one admin command is in flight.
    Admin {
        admin: Admin,
        cid: u16,
        until: Instant,
    },
    Running,
    /// CC.SHN is set, CSTS.SHST is to follow.
    ShuttingDown {
        until: Instant,
    },
    Off,
    Failed(Error),
}

/// An NVMe controller that is ours, and the requests of all its namespaces.
///
/// [`step`](Self::step) does everything that takes time: it brings the controller up, resets it when
/// it must, and shuts it down. Once it is [`State::Ready`], requests are taken by
/// [`submit`](Self::submit), sent by [`publish`](Self::publish), and come back by
/// [`complete`](Self::complete), in any order, each exactly once. What is longer than a command may
/// be is sent in parts, as the queue has room.
///
/// Data lies in frames that the controller can write at any time, also after the completion.
#[derive(Debug)]
pub struct Controller<R, M> {
    registers: R,
    memory: Memory<M>,
    interrupt: Interrupt,
    cap: Cap,
    version: Version,
    phase: Phase,
    admin: QueuePair,
    io: QueuePair,
    admin_cid: u16,
    identity: Option<Identity>,
    /// Most blocks that a command deallocates, by its limits.
    max_deallocated: u64,
    namespaces: Vec<Namespace>,
    /// What the bring-up finds.
    found: Vec<Namespace>,
    requests: Requests,
    /// The namespaces that wait for pages, each once, in their order.
    short: VecDeque<NamespaceId>,
    /// What was found outside of a step.
    trouble: Option<Error>,
    /// Why it was last reset.
    reset_by: Option<Error>,
    nr_resets: u32,
    /// Resets since an I/O command was done.
    nr_in_row: u32,
    check_at: Option<Instant>,
    /// It is to be shut down.
    stops: bool,
    /// It was ready once.
    started: bool,
    /// It cannot write memory: it was not enabled yet, is disabled, or was cut off.
    quiet: bool,
}

impl<R: Registers, M: SharedMemory> Controller<R, M> {
    /// Frames that a controller needs for itself, before those for data.
    pub const NR_FRAMES: usize = memory::NR_FIXED;

    /// Looks at a controller and gives it these frames: [`NR_FRAMES`](Self::NR_FRAMES) for queues, the
    /// others for data. It is not written to before the first [`step`](Self::step). Its memory
    /// decoding and bus mastering are on; its pin interrupt is off, for it would tell of admin commands
    /// that are polled.
    ///
    /// # Errors
    /// It cannot be used; it and the frames are as they were.
    pub fn new<D: Dma<Memory = M>>(
        registers: R,
        dma: &mut D,
        frames: &[Gfn],
        interrupt: Interrupt,
        now: Instant,
    ) -> Result<Self, Error> {
        let (needed, have) = (Self::NR_FRAMES + 1, frames.len());
        if have < needed {
            return Err(Error::Frames { needed, have });
        }
        let len = registers.len_bytes();
        let fixed = Cap(0).tail_doorbell(0).offset();
        if len < fixed {
            return Err(Error::Registers { needed: fixed, len });
        }
        if Csts(registers.read32(Reg32::CSTS)).is_gone() {
            return Err(Error::Gone);
        }
        let cap = Cap(registers.read64(Reg64::CAP));
        let needed = cap.head_doorbell(1).offset() + 4;
        if len < needed {
            return Err(Error::Registers { needed, len });
        }
        let css = cap.command_sets();
        if css & 1 == 0 {
            return Err(Error::CommandSets { css });
        }
        let shift = cap.min_page_shift();
        if shift != xen_abi::PAGE_SHIFT {
            return Err(Error::PageSize { shift });
        }
        let max = cap.max_queue_entries();
        if max < 2 {
            return Err(Error::Queues { max });
        }
        let nr_entries = u16::try_from(max).unwrap_or(u16::MAX).min(MAX_ENTRIES);
        Ok(Self {
            version: Version(registers.read32(Reg32::VS)),
            registers,
            memory: Memory::new(frames, dma),
            interrupt,
            cap,
            phase: Phase::Settling { until: now.after(cap.timeout()) },
            admin: QueuePair::new(0, memory::ADMIN_SQ, memory::ADMIN_CQ, nr_entries),
            io: QueuePair::new(1, memory::IO_SQ, memory::IO_CQ, nr_entries),
            admin_cid: 0,
            identity: None,
            max_deallocated: u64::MAX,
            namespaces: Vec::new(),
            found: Vec::new(),
            requests: Requests::new(nr_entries - 1),
            short: VecDeque::with_capacity(phases::MAX_NAMESPACES),
            trouble: None,
            reset_by: None,
            nr_resets: 0,
            nr_in_row: 0,
            check_at: None,
            stops: false,
            started: false,
            quiet: true,
        })
    }

    /// Has it take so many pages at once that are not ours: none before. No request is under way.
    pub fn set_max_lent(&mut self, nr_pages: usize) {
        self.memory.set_max_lent(nr_pages);
    }

    /// What became of it.
    #[must_use]
    pub fn state(&self) -> State {
        match (self.phase, self.reset_by) {
            (Phase::Off, _) => State::Off,
            (Phase::Failed(error), _) => State::Failed(error),
            _ if self.stops => State::Stopping,
            (Phase::Running, _) => State::Ready,
            (_, Some(error)) if self.started => State::Resetting(error),
            _ => State::Starting,
        }
    }

    /// The version of the specification that it says to keep to.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// What it says of itself, once it has.
    #[must_use]
    pub const fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Its namespaces, from when it is first ready. There are no others later.
    #[must_use]
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// How often it was reset, and why the last time.
    #[must_use]
    pub const fn resets(&self) -> (u32, Option<Error>) {
        (self.nr_resets, self.reset_by)
    }

    /// Requests that were taken and are not completed.
    #[must_use]
    pub const fn nr_in_flight(&self) -> usize {
        self.requests.nr_taken()
    }

    /// Takes no more requests; when those that were taken are over, the controller writes its cache
    /// and is disabled, and is [`State::Off`].
    pub const fn shutdown(&mut self) {
        self.stops = true;
    }

    /// The controller is gone, as we know from elsewhere: it is not looked at again, and everything
    /// that was taken fails.
    pub fn abandon(&mut self) {
        if !matches!(self.phase, Phase::Off | Phase::Failed(_)) {
            self.give_up(Error::Gone);
        }
    }

    /// Lets everything go; buffers that are still out are void, and requests that were not completed
    /// forgotten. `None` where the controller was neither seen to be disabled nor cut off: it may still
    /// write to its frames, and nothing else may ever be kept in them.
    #[must_use]
    pub fn retire(self) -> Option<Vec<Gfn>> {
        self.quiet.then(|| self.memory.into_frames())
    }
}
