//! Requests to a controller's namespaces.

use store::{
    Access, Buffer, Completion, Failure, Flushing, PartLimits, Refusal, Refused, Request,
    SECTORS_PER_PAGE, SectorRange, Tag,
};
use xen_abi::{Gfn, SharedMemory};

use super::{Controller, Phase};
use crate::command::IoOpcode;
use crate::identify::Support;
use crate::parts::{Rest, Target};
use crate::{Disk, IoError, NamespaceId, Registers};

impl<R: Registers, M: SharedMemory> Controller<R, M> {
    /// The longest buffer that there can be, in sectors; 0 until the controller has identified
    /// itself, and when it takes no more requests.
    #[must_use]
    pub fn max_sectors(&self) -> u64 {
        let limits = self.part_limits().filter(|_| !self.is_over());
        limits.map_or(0, |limits| self.memory.buffers.max_sectors(limits))
    }

    fn max_pages(&self) -> Option<u16> {
        Some(self.identity.as_ref()?.max_pages)
    }

    /// What a command can be: it names two pages itself, and more in a PRP list.
    fn part_limits(&self) -> Option<PartLimits> {
        Some(PartLimits { max_pages: self.max_pages()?.into(), max_direct: 2 })
    }

    /// Reserves a buffer. `None` where too few pages are free: ask again when a buffer has been given
    /// back, unless it is longer than [`max_sectors`](Self::max_sectors).
    #[must_use]
    pub fn reserve(&mut self, nr_sectors: u32) -> Option<Buffer> {
        let limits = self.part_limits()?;
        self.memory.buffers.reserve(nr_sectors, limits)
    }

    /// As [`reserve`](Self::reserve), for a namespace among others: those that found too few pages have
    /// their turns before they get any again, so that the short requests of one do not keep a long one of
    /// another waiting. Who was refused asks again, until there is room or it is lost.
    pub(crate) fn reserve_for(&mut self, nsid: NamespaceId, nr_sectors: u32) -> Option<Buffer> {
        while self.short.front().is_some_and(|&next| self.disk(next).is_none()) {
            self.short.pop_front();
        }
        let is_next = self.short.front().is_none_or(|&next| next == nsid);
        let buffer = if is_next { self.reserve(nr_sectors) } else { None };
        if buffer.is_some() {
            self.short.pop_front();
        } else if u64::from(nr_sectors) <= self.max_sectors() && !self.short.contains(&nsid) {
            self.short.push_back(nsid);
        }
        buffer
    }

    /// Makes a buffer of pages that are not ours, as [`Device::lend`](store::Device::lend) does: as many as
    /// [`set_max_lent`](Self::set_max_lent) allows. PRP lists are in pages of ours.
    #[must_use]
    pub fn lend(&mut self, frames: &[Gfn], nr_sectors: u32) -> Option<Buffer> {
        let limits = self.part_limits().filter(|_| !self.is_over())?;
        let is_all = frames.len() == nr_sectors.div_ceil(SECTORS_PER_PAGE) as usize;
        is_all.then(|| self.memory.lend(frames, nr_sectors, limits)).flatten()
    }

    /// As [`lend`](Self::lend), for a namespace among others: not before those that found too few pages.
    pub(crate) fn lend_for(
        &mut self,
        nsid: NamespaceId,
        frames: &[Gfn],
        nr_sectors: u32,
    ) -> Option<Buffer> {
        let is_next = self.short.front().is_none_or(|&next| next == nsid);
        is_next.then(|| self.lend(frames, nr_sectors)).flatten()
    }

    /// Gives a buffer back.
    pub fn give_back(&mut self, buffer: Buffer) {
        self.memory.give_back(buffer);
    }

    /// The frames that hold a buffer's bytes, from the start of the first on: 8 sectors each, the
    /// last maybe fewer.
    pub fn frames(&self, buffer: &Buffer) -> impl Iterator<Item = Gfn> {
        self.memory.frames(buffer)
    }

    /// What a namespace is, if it can be used.
    #[must_use]
    pub fn disk(&self, nsid: NamespaceId) -> Option<Disk> {
        self.namespaces[self.index(nsid)?].disk.ok()
    }

    fn index(&self, nsid: NamespaceId) -> Option<usize> {
        self.namespaces.iter().position(|namespace| namespace.nsid == nsid)
    }

    /// Takes a request of a namespace; the next [`publish`](Self::publish) sends it. While the
    /// controller is reset it waits.
    ///
    /// # Errors
    /// It is not taken.
    pub fn submit(
        &mut self,
        nsid: NamespaceId,
        tag: Tag,
        request: Request<Buffer>,
    ) -> Result<(), Refused<Buffer>> {
        let (target, rest) = match self.check_request(nsid, &request) {
            Ok(checked) => checked,
            Err(reason) => return Err(Refused { reason, request }),
        };
        self.requests.take(tag, target, rest, request.into_buffer());
        Ok(())
    }

    /// As [`submit`](Self::submit): these sectors are to read as zeroes.
    ///
    /// # Errors
    /// It is not taken.
    pub fn submit_write_zeroes(
        &mut self,
        nsid: NamespaceId,
        tag: Tag,
        sector: u64,
        nr_sectors: u64,
    ) -> Result<(), Refusal> {
        let (target, disk) = self.target(nsid)?;
        if disk.write_zeroes == Support::No {
            return Err(Failure::NotSupported.into());
        }
        let (lba, nr_blocks) = changed_blocks(&disk, sector, nr_sectors)?;
        self.requests.take(tag, target, Rest::Zeroes { lba, nr_blocks }, None);
        Ok(())
    }

    /// Whether no more requests are taken, from now on.
    const fn is_over(&self) -> bool {
        self.stops || matches!(self.phase, Phase::Off | Phase::Failed(_))
    }

    /// Whether a namespace takes a request now.
    fn target(&self, nsid: NamespaceId) -> Result<(Target, Disk), Refusal> {
        let index = self.index(nsid).filter(|_| !self.is_over()).ok_or(Failure::Gone)?;
        let disk = self.namespaces[index].disk.map_err(|_| Failure::Gone)?;
        let max_pages = self.max_pages().ok_or(Failure::Gone)?;
        let served = (0..).zip(&self.namespaces).filter(|(_, other)| other.disk.is_ok());
        if !self.requests.has_room(index, served.map(|(other, _)| other)) {
            return Err(Refusal::Full { max: self.requests.max() });
        }
        let sectors_per_block = disk.geometry.logical.sectors();
        let max_deallocated = self.max_deallocated;
        Ok((Target { index, nsid, sectors_per_block, max_pages, max_deallocated }, disk))
    }

    fn check_request(
        &self,
        nsid: NamespaceId,
        request: &Request<Buffer>,
    ) -> Result<(Target, Rest), Refusal> {
        let (target, disk) = self.target(nsid)?;
        let rest = match *request {
            Request::Read { sector, ref buffer } => {
                blocks(&disk, sector, buffer.nr_sectors().into())?;
                Rest::transfer(IoOpcode::Read, sector, buffer, target.sectors_per_block)
            }
            Request::Write { sector, ref buffer } => {
                changed_blocks(&disk, sector, buffer.nr_sectors().into())?;
                Rest::transfer(IoOpcode::Write, sector, buffer, target.sectors_per_block)
            }
            Request::Flush if disk.flushing == Flushing::Offered => Rest::Flush,
            Request::Discard { sector, nr_sectors } if disk.geometry.discard.is_some() => {
                let (lba, nr_blocks) = changed_blocks(&disk, sector, nr_sectors)?;
                Rest::Deallocate { lba, nr_blocks }
            }
            Request::Flush | Request::Discard { .. } | Request::SecureDiscard { .. } => {
                return Err(Failure::NotSupported.into());
            }
        };
        Ok((target, rest))
    }

    /// Whether the I/O queues are there, and nothing was found that ends them.
    fn runs(&self) -> bool {
        self.phase == Phase::Running && self.trouble.is_none()
    }

    /// Takes completions off the queue.
    pub(super) fn collect(&mut self) {
        if self.runs() {
            match self.requests.collect(&self.memory, &mut self.io) {
                Ok(true) => self.nr_in_row = 0,
                Ok(false) => {}
                Err(broken) => self.trouble = Some(broken.into()),
            }
        }
    }

    /// Sends what was taken, as far as there is room.
    pub fn publish(&mut self) {
        if self.runs() {
            self.requests.send(&self.memory, &mut self.io);
            self.io.ring(&mut self.registers, self.cap);
        }
    }

    /// Takes a request of a namespace that is over. `None` where none is: the interrupt, which is
    /// that of all namespaces, tells of the next. [`publish`](Self::publish) then sends what has
    /// waited for room.
    pub fn complete(&mut self, nsid: NamespaceId) -> Option<Completion<Buffer>> {
        let index = self.index(nsid)?;
        if let Some(completion) = self.requests.complete(index) {
            return Some(completion);
        }
        self.collect();
        let completion = self.requests.complete(index);
        if completion.is_none() && self.runs() {
            self.io.ring(&mut self.registers, self.cap);
        }
        completion
    }

    /// Whether a request is over and waits for [`complete`](Self::complete). It may be over because of a
    /// [`step`](Self::step) alone, without an interrupt.
    #[must_use]
    pub fn has_completed(&self) -> bool {
        self.requests.has_completed()
    }

    /// The last request that failed and was completed since this was last asked, for a log.
    pub const fn take_error(&mut self) -> Option<(NamespaceId, IoError)> {
        self.requests.take_error()
    }
}

/// First block and number of blocks of a range that lies on the disk.
fn blocks(disk: &Disk, first: u64, nr: u64) -> Result<(u64, u64), Failure> {
    SectorRange::on(&disk.geometry, first, nr).map_err(|_| Failure::Range)?;
    let per_block = disk.geometry.logical.sectors();
    Ok((first / per_block, nr / per_block))
}

/// The same of a range that is to change.
fn changed_blocks(disk: &Disk, first: u64, nr: u64) -> Result<(u64, u64), Failure> {
    match disk.geometry.access {
        Access::ReadOnly => Err(Failure::ReadOnly),
        Access::ReadWrite => blocks(disk, first, nr),
    }
}
