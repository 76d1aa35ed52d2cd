//! dom0's commands, and what comes of them.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use core::fmt::{self, Write as _};

use catalog::{Command, Ground, Name};
use store::{Access, BlockStore, Disk, Progress, Steps};
use xen_abi::Instant;
use xenstore::{Change, Request};

use crate::conversation::{Closed, Reading, Turn};
use crate::create::{SECTORS_PER_PAGE, sectors};
use crate::disks::{DiskId, Entry, Work};
use crate::domain::{Domain, MAX_CLEARED};
use crate::inbox::{REQUEST_TOKEN, Tag};
use crate::platform::Platform;
use crate::refusal::Refusal;
use crate::text::Printable;
use crate::upstream::Defined;

/// Where dom0 asks.
pub(crate) const REQUEST: &str = "data/request";
/// Where it is answered.
const RESPONSE: &str = "data/response";

impl<P: Platform> Domain<P> {
    /// Makes the nodes between dom0 and us: ours, so that nobody else can ever write them, and there
    /// from the start, so that dom0 is answered also when there is no room for another node.
    pub(crate) fn open_control(&mut self, platform: &mut P) {
        for node in [REQUEST, RESPONSE] {
            self.submit(platform, Request::Write(node, b""), Tag::Control);
        }
        self.submit(platform, Request::Watch { path: REQUEST, token: REQUEST_TOKEN }, Tag::Watch);
    }

    pub(crate) fn read_request(&mut self, platform: &mut P) {
        if self.reading.begin() {
            self.submit(platform, Request::Read(REQUEST), Tag::Request);
        }
    }

    /// What came of telling dom0 an answer.
    pub(crate) fn told(&mut self, platform: &mut P, result: Result<(), impl fmt::Display>) {
        if let Err(error) = result {
            platform.log(format_args!("dom0 cannot be answered: {error}"));
            self.submit(platform, Request::Write(REQUEST, b""), Tag::Control);
            self.conversation.close();
        }
        self.end_reading(platform);
    }

    /// What was read is done with.
    pub(crate) fn end_reading(&mut self, platform: &mut P) {
        if self.reading.end() {
            self.read_request(platform);
        }
    }

    /// Takes what stands in dom0's node.
    pub(crate) fn converse(&mut self, platform: &mut P, text: &[u8]) {
        let now = platform.now();
        let words = str::from_utf8(text).unwrap_or("?");
        let said = match self.conversation.hear(words, now) {
            Turn::Nothing | Turn::Wait => return self.end_reading(platform),
            Turn::Nonsense(error) => {
                platform.log(format_args!("{REQUEST}: {}", Refusal::from(error)));
                self.submit(platform, Request::Write(REQUEST, b""), Tag::Control);
                return self.end_reading(platform);
            }
            Turn::Close => {
                self.submit(platform, Request::Write(REQUEST, b""), Tag::Control);
                self.end_conversation(platform);
                return self.end_reading(platform);
            }
            Turn::Say(part) => part,
            Turn::Run(id, command) => {
                let result = self.run(platform, &command).map_err(|refusal| refusal.to_string());
                if result.is_ok() && !matches!(command, Command::List | Command::Stats) {
                    let (_, command) = words.trim_ascii().split_once(' ').unwrap_or_default();
                    platform.log(format_args!("done for dom0: {}", Printable(command.as_bytes())));
                }
                let result = result.as_deref().map_err(String::as_str);
                self.conversation.answer(id, result, now)
            }
        };
        if let Some(at) = self.conversation.open_until() {
            self.wake_at(at);
        }
        // Together, so that nobody finds room to ask in between.
        let changes = vec![
            Change::Write(REQUEST.into(), vec![]),
            Change::Write(RESPONSE.into(), said.into_bytes()),
        ];
        let queued = self.xenstore.client.transact(changes, Tag::Answered);
        if queued.is_err() {
            self.told(platform, queued);
        }
    }

    /// Gives up an answer that nobody reads on.
    pub(crate) fn give_up(&mut self, platform: &mut P, now: Instant) {
        match self.reading {
            Reading::Idle => self.end_conversation(platform),
            // What is on its way would come after the removal.
            Reading::Busy | Reading::BusyAndChanged => self.conversation.keep_open(now),
        }
    }

    /// Removes the answer, and looks who else asks.
    fn end_conversation(&mut self, platform: &mut P) {
        if self.conversation.close() == Closed::WasOpen {
            self.submit(platform, Request::Write(RESPONSE, b""), Tag::Control);
        }
        self.read_request(platform);
    }

    fn run(&mut self, platform: &mut P, command: &Command<'_>) -> Result<String, Refusal> {
        self.usage_changed |= *command != Command::List;
        match command {
            Command::List => Ok(self.describe()),
            Command::Stats => Ok(self.describe_work(platform)),
            Command::Create { name, disk } => {
                self.create(platform, *name, disk).map(|_| String::new())
            }
            Command::Remove(name) => {
                if let Some(at) = self.find_defined(name.as_str()) {
                    self.defined.remove(at);
                    return Ok(String::new());
                }
                let id = self.idle(*name)?;
                self.cleared.extend(self.disks.remove(id).map(|entry| entry.disk));
                Ok(String::new())
            }
            Command::Resize { name, size_bytes } => {
                self.resize(platform, *name, sectors(*size_bytes))
            }
            Command::Snapshot { name, to } => self.fork(*name, *to, Access::ReadOnly),
            Command::Clone { name, to } => self.fork(*name, *to, Access::ReadWrite),
            Command::DiscardAll(name) => self.discard_all(*name),
        }
    }

    pub(crate) fn named(&self, name: Name<'_>) -> Result<DiskId, Refusal> {
        let name = name.as_str();
        match self.disks.find(name) {
            Some(id) => Ok(id),
            None if self.images.get(name).is_some() => Err(Refusal::IsImage(name.into())),
            None => Err(Refusal::Unknown(name.into())),
        }
    }

    /// The disk of a name, if nothing hinders to change it.
    fn idle(&self, name: Name<'_>) -> Result<DiskId, Refusal> {
        let id = self.named(name)?;
        self.disks.get(id).map_or(Ok(()), Entry::check_idle)?;
        Ok(id)
    }

    /// Gives all that a disk holds back, in steps.
    fn discard_all(&mut self, name: Name<'_>) -> Result<String, Refusal> {
        let id = self.idle(name)?;
        match self.disks.get_mut(id).map(|entry| (&mut entry.disk, &mut entry.work)) {
            Some((Disk::Pages(disk), work)) => {
                let left = disk.discard_all(&mut self.pool, &mut Steps::new(0))?;
                if left == Progress::More {
                    *work = Some(Work::Empty);
                    self.worked.push(id);
                }
                Ok(String::new())
            }
            Some((Disk::Null(_), _)) => Ok(String::new()),
            _ => Err(Refusal::Unable { name: name.to_string(), verb: "be emptied" }),
        }
    }

    fn resize(
        &mut self,
        platform: &mut P,
        name: Name<'_>,
        nr_sectors: u64,
    ) -> Result<String, Refusal> {
        let id = self.named(name)?;
        let Some(entry) = self.disks.get_mut(id) else { return Ok(String::new()) };
        let was = BlockStore::<P::Memory>::geometry(&entry.disk).nr_sectors;
        if nr_sectors < was || entry.work.is_some() {
            entry.check_idle()?;
        }
        let pages = |nr_sectors: u64| nr_sectors.div_ceil(SECTORS_PER_PAGE);
        match &mut entry.disk {
            Disk::Pages(disk) if nr_sectors < was => {
                // Tried at once, so that what cannot be is said.
                let left = disk.shrink(&mut self.pool, nr_sectors, &mut Steps::new(MAX_CLEARED))?;
                if left == Progress::More {
                    entry.work = Some(Work::Shrink(nr_sectors));
                    self.worked.push(id);
                }
            }
            Disk::Pages(disk) => {
                let cap_pages = match disk.usage().cap_pages {
                    // What could be full still can.
                    cap if cap >= pages(was) => pages(nr_sectors),
                    cap => cap,
                };
                disk.grow(&mut self.pool, nr_sectors, cap_pages)?;
            }
            Disk::Null(disk) => disk.resize(nr_sectors)?,
            Disk::Image(_) | Disk::Device(_) | Disk::Overlay(_) => {
                return Err(Refusal::Unable { name: name.to_string(), verb: "be resized" });
            }
        }
        self.tell_size(platform, id);
        Ok(String::new())
    }

    /// What a person wants to know of the pool, the images and the disks.
    fn describe(&self) -> String {
        let mut list = format!("{}\n", self.describe_pool());
        for (name, image) in self.images.iter() {
            let (format, nr_sectors) = (image.format(), image.nr_sectors());
            let _ = writeln!(list, "image name={name} format={format} sectors={nr_sectors}");
        }
        for upstream in self.upstreams.iter() {
            let (device, shared) = (upstream.device, upstream.shared.borrow());
            let state = if upstream.is_connected() { "connected" } else { "waiting" };
            let nr_sectors = shared.geometry().map_or(0, |geometry| geometry.nr_sectors);
            let nr_in_flight = shared.nr_open();
            let _ = writeln!(
                list,
                "upstream dev={device} state={state} sectors={nr_sectors} in_flight={nr_in_flight}"
            );
        }
        for Defined { name, disk, .. } in &self.defined {
            let (kind, device) = (if disk.cow.is_some() { "overlay" } else { "vbd" }, disk.device);
            let _ = writeln!(
                list,
                "disk name={name} type={kind} sectors=0 block=512 pages=0 cap_pages=- base={device} \
                 access=rw vbds=-"
            );
        }
        for entry in self.disks.iter() {
            let base = match (&entry.image, &entry.extent) {
                (Some(image), _) => image.clone(),
                (None, Some(extent)) => extent.device.to_string(),
                (None, None) => "-".into(),
            };
            let geometry = BlockStore::<P::Memory>::geometry(&entry.disk);
            let usage = entry.disk.usage();
            let (nr_pages, cap_pages) = usage
                .map_or((0, "-".into()), |usage| (usage.nr_pages, usage.cap_pages.to_string()));
            let _ = writeln!(
                list,
                "disk name={} type={} sectors={} block={} pages={} cap_pages={} base={} access={} \
                 vbds={}",
                entry.name.as_deref().unwrap_or("-"),
                kind(entry),
                geometry.nr_sectors,
                geometry.logical.bytes(),
                nr_pages,
                cap_pages,
                base,
                match geometry.access {
                    Access::ReadOnly => "ro",
                    Access::ReadWrite => "rw",
                },
                Vbds(entry),
            );
        }
        list
    }

    /// The pool's line, but for its end.
    pub(crate) fn describe_pool(&self) -> String {
        format!(
            "pool total_pages={} free_pages={} reserve_pages={}",
            self.pool.nr_total(),
            self.pool.nr_free(),
            self.pool.nr_reserve(),
        )
    }
}

/// A disk's type, as dom0 names it.
fn kind(entry: &Entry) -> &'static str {
    let ground = entry.extent.map(|extent| extent.device);
    match (&entry.disk, &entry.image) {
        (Disk::Device(_), _) if matches!(ground, Some(Ground::Namespace(_))) => "nvme",
        (Disk::Pages(_), None) => "ram",
        (Disk::Pages(_), Some(_)) => "overlay",
        (Disk::Image(_), _) => "image",
        (Disk::Device(_), _) => "vbd",
        (Disk::Overlay(_), _) => "overlay",
        (Disk::Null(_), _) => "null",
    }
}

/// Who holds a disk.
struct Vbds<'a>(&'a Entry);

impl fmt::Display for Vbds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "";
        for key in self.0.holders() {
            write!(f, "{before}{key}")?;
            before = ",";
        }
        if before.is_empty() { f.write_str("-") } else { Ok(()) }
    }
}
