//! How disks and images come about: from the command line, at an attach, on dom0's word.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use blkif::MAX_SEGMENTS;
use catalog::{Defined, Definition, DiskType, Name, Overlay};
use store::{
    Access, Archive, BlockSize, Disk, Image, ImageFile, ImageFormat, ImageSource, Images, Member,
    NullDisk, PageDisk, SECTOR_SIZE,
};
use xen_abi::PAGE_SIZE;

use crate::disks::{DiskId, Entry};
use crate::domain::Domain;
use crate::platform::Platform;
use crate::refusal::Refusal;
use crate::text::Printable;

/// An image that the command line defines.
struct DefinedImage<'a> {
    name: Name<'a>,
    module: u32,
    file: Option<&'a str>,
    format: Option<catalog::ImageFormat>,
}

impl DefinedImage<'_> {
    fn is(&self, module: usize, member: &Member) -> bool {
        self.module as usize == module && self.file == Some(member.path.as_str())
    }
}

/// Files that are looked at in an archive: more are not meant to be images, and each takes heap.
const MAX_MEMBERS: usize = 256;

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
        let sources = self.sources(platform, modules, &images);
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
            match self.create(name, &disk) {
                Ok(_) => platform.log(format_args!("disk {name}: made")),
                Err(refusal) => platform.log(format_args!("disk {name} is refused: {refusal}")),
            }
        }
    }

    /// The files that are to be images: those that the command line defines, every member of an
    /// archive that it does not define by its own name, and a module that nobody has defined as `moduleN`.
    fn sources(
        &self,
        platform: &mut P,
        modules: &[ImageFile],
        defined: &[DefinedImage<'_>],
    ) -> Vec<ImageSource> {
        let mut sources = Vec::new();
        let mut members: Vec<Vec<Member>> = Vec::new();
        for (n, &file) in modules.iter().enumerate() {
            let mut found = Vec::new();
            match Archive::open(self.pool.memory(), file) {
                Some(archive) => {
                    for member in archive {
                        match member {
                            Ok(_) if found.len() == MAX_MEMBERS => {
                                platform.log(format_args!(
                                    "module {n}: more than {MAX_MEMBERS} files, the rest is ignored"
                                ));
                                break;
                            }
                            Ok(member) => found.push(member),
                            Err(error) => platform.log(format_args!("module {n}: {error}")),
                        }
                    }
                }
                None if defined.iter().any(|image| image.module as usize == n) => {}
                None => {
                    sources.push(ImageSource { name: format!("module{n}"), file, format: None });
                }
            }
            for member in &found {
                if defined.iter().any(|image| image.is(n, member)) {
                    // It is what it was defined as, and nothing that its bytes look like.
                    continue;
                }
                let name = member.file_name();
                match Name::parse(name) {
                    Ok(_) => {
                        let (name, file) = (name.into(), member.file);
                        sources.push(ImageSource { name, file, format: None });
                    }
                    Err(problem) => {
                        let path = Printable(member.path.as_bytes());
                        platform.log(format_args!("module {n}: {path}: {problem}"));
                    }
                }
            }
            members.push(found);
        }
        for image in defined {
            match find_file(image, modules, &members) {
                Ok(file) => {
                    let format = image.format.map(format_of);
                    sources.push(ImageSource { name: image.name.to_string(), file, format });
                }
                Err(reason) => {
                    platform.log(format_args!("image {} is refused: {reason}", image.name));
                }
            }
        }
        sources
    }

    /// Makes a disk, and says which image it stands on.
    pub(crate) fn make(&self, disk: &DiskType<'_>) -> Result<(Disk, Option<String>), Refusal> {
        Ok(match *disk {
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
        })
    }

    /// Makes a disk under a name.
    pub(crate) fn create(
        &mut self,
        name: Name<'_>,
        disk: &DiskType<'_>,
    ) -> Result<DiskId, Refusal> {
        self.check_unused(name)?;
        let (disk, image) = self.make(disk)?;
        self.disks.add(Entry::new(disk, Some(name.to_string()), image))
    }

    /// Whether a name is still to be had.
    pub(crate) fn check_unused(&self, name: Name<'_>) -> Result<(), Refusal> {
        let name = name.as_str();
        if self.images.get(name).is_some() || self.disks.find(name).is_some() {
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

/// Where the bytes are that an image is defined to be.
fn find_file(
    image: &DefinedImage<'_>,
    modules: &[ImageFile],
    members: &[Vec<Member>],
) -> Result<ImageFile, String> {
    let n = image.module;
    let at = usize::try_from(n).unwrap_or(usize::MAX);
    let (Some(&module), Some(members)) = (modules.get(at), members.get(at)) else {
        return Err(format!("there is no module {n}, there are {}", modules.len()));
    };
    match image.file {
        None if members.is_empty() => Ok(module),
        None => Err(format!("module {n} is an archive: say which file=")),
        Some(path) => {
            let found = members.iter().find(|member| image.is(at, member));
            found.map(|member| member.file).ok_or_else(|| format!("module {n} has no file {path}"))
        }
    }
}

const fn format_of(format: catalog::ImageFormat) -> ImageFormat {
    match format {
        catalog::ImageFormat::Raw => ImageFormat::Raw,
        catalog::ImageFormat::Vhd => ImageFormat::Vhd,
        catalog::ImageFormat::Qcow2 => ImageFormat::Qcow2,
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
