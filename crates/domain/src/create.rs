//! How disks and images come about: from the command line, at an attach, on dom0's word.

use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use blkif::MAX_SEGMENTS;
use catalog::{Defined, Definition, DiskType, Ground, Name, Overlay, Upstream};
use store::{Access, BlockSize, Disk, Image, ImageFile, Images, NullDisk, PageDisk, SECTOR_SIZE};
use xen_abi::PAGE_SIZE;

use crate::disks::{DiskId, Entry};
use crate::domain::Domain;
use crate::modules::{self, DefinedImage};
use crate::platform::Platform;
use crate::refusal::Refusal;

impl<P: Platform> Domain<P> {
    /// Opens the images that the loader brought, and makes the disks that the command line wants.
    /// What cannot be is said, and the rest is served.
    pub(crate) fn define(&mut self, platform: &mut P, modules: &[ImageFile], command_line: &str) {
        let mut images = Vec::new();
        let mut disks = Vec::new();
        for definition in catalog::definitions(command_line) {
            match definition {
                Ok(Definition { name, defined: Defined::Disk(disk) }) => disks.push((name, disk)),
                Ok(Definition { name, defined: Defined::Image { module, file, format } }) => {
                    images.push(DefinedImage { name, module, file, format });
                }
                Err(error) => platform.log(format_args!("command line: {}", Refusal::from(error))),
            }
        }
        let sources = modules::sources(self.pool.memory(), modules, &images, &mut |line| {
            platform.log(line);
        });
        let max_segments = usize::from(self.engine.max_indirect().get()).max(MAX_SEGMENTS);
        self.images = Images::load(&mut self.pool, sources, max_segments * PAGE_SIZE);
        for refused in self.images.refused() {
            platform.log(format_args!("image {} is refused: {}", refused.name, refused.error));
        }
        for (name, image) in self.images.iter() {
            let (format, nr_sectors) = (image.format(), image.nr_sectors());
            platform.log(format_args!("image {name}: {format}, {nr_sectors} sectors"));
        }
        for (name, disk) in disks {
            // A namespace is there from the start.
            let is_vbd = |upstream: &Upstream| matches!(upstream.device, Ground::Vbd(_));
            let made = match &disk {
                DiskType::Vbd(upstream) if is_vbd(upstream) => {
                    self.define_upstream(platform, name, *upstream, None)
                }
                DiskType::Overlay(overlay)
                    if let Some(upstream) = self.upstream_below(overlay).filter(is_vbd) =>
                {
                    let base = Some(overlay.image.to_string());
                    self.define_upstream(platform, name, upstream, base)
                }
                disk => self.create(platform, name, disk).map(|_| {
                    platform.log(format_args!("disk {name}: made"));
                }),
            };
            if let Err(refusal) = made {
                platform.log(format_args!("disk {name} is refused: {refusal}"));
            }
        }
    }

    /// Makes a disk that nobody holds.
    pub(crate) fn make(
        &mut self,
        platform: &mut P,
        disk: &DiskType<'_>,
        name: Option<String>,
    ) -> Result<Entry, Refusal> {
        let (disk, image) = match *disk {
            DiskType::Vbd(upstream) => {
                return self.make_upstream(platform, &upstream, name, None);
            }
            DiskType::Overlay(overlay) if let Some(upstream) = self.upstream_below(&overlay) => {
                let base = Some(overlay.image.to_string());
                return self.make_upstream(platform, &upstream, name, base);
            }
            DiskType::Ram { size_bytes, cap_bytes, block_bytes } => {
                let nr_sectors = sectors(size_bytes);
                let disk =
                    PageDisk::new(nr_sectors, block(block_bytes), pages(cap_bytes), &self.pool)?;
                (Disk::Pages(disk), None)
            }
            DiskType::Null { size_bytes, block_bytes } => {
                (Disk::Null(NullDisk::new(sectors(size_bytes), block(block_bytes))?), None)
            }
            DiskType::Overlay(Overlay { image, cap_bytes }) => {
                let base = self.image(image)?;
                let disk = PageDisk::overlay(Rc::clone(base), cap_bytes.map(pages), &self.pool)?;
                (Disk::Pages(disk), Some(image.to_string()))
            }
        };
        Ok(Entry::new(disk, name, image))
    }

    /// Makes a disk under a name.
    pub(crate) fn create(
        &mut self,
        platform: &mut P,
        name: Name<'_>,
        disk: &DiskType<'_>,
    ) -> Result<DiskId, Refusal> {
        self.check_unused(name)?;
        let entry = self.make(platform, disk, Some(name.to_string()))?;
        self.disks.add(entry)
    }

    /// Whether a name is still to be had.
    pub(crate) fn check_unused(&self, name: Name<'_>) -> Result<(), Refusal> {
        let name = name.as_str();
        if self.images.get(name).is_some()
            || self.disks.find(name).is_some()
            || self.find_defined(name).is_some()
        {
            return Err(Refusal::Exists(name.into()));
        }
        Ok(())
    }

    fn image(&self, name: Name<'_>) -> Result<&Rc<Image>, Refusal> {
        self.images.get(name.as_str()).ok_or_else(|| Refusal::NoImage(name.to_string()))
    }

    /// Makes a fork of a disk under another name: a snapshot that is only read, or a clone.
    pub(crate) fn fork(
        &mut self,
        name: Name<'_>,
        to: Name<'_>,
        access: Access,
    ) -> Result<String, Refusal> {
        let id = self.named(name)?;
        self.check_unused(to)?;
        self.disks.check_room()?;
        let Some(entry) = self.disks.get_mut(id) else { return Ok(String::new()) };
        if entry.work.is_some() {
            return Err(Refusal::AtWork(name.to_string()));
        }
        let Disk::Pages(disk) = &mut entry.disk else {
            return Err(Refusal::Unable { name: name.to_string(), verb: "be forked" });
        };
        let fork = Disk::Pages(disk.snapshot(&mut self.pool, access)?);
        let image = entry.image.clone();
        self.disks.add(Entry::new(fork, Some(to.to_string()), image))?;
        Ok(String::new())
    }
}

pub(crate) const SECTORS_PER_PAGE: u64 = (PAGE_SIZE / SECTOR_SIZE) as u64;

pub(crate) const fn sectors(size_bytes: u64) -> u64 {
    size_bytes / SECTOR_SIZE as u64
}

pub(crate) const fn pages(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(PAGE_SIZE as u64)
}

const fn block(block_bytes: u32) -> BlockSize {
    if block_bytes == BlockSize::B4096.bytes() { BlockSize::B4096 } else { BlockSize::B512 }
}
