//! The images there are, by their names, each joined to its parent.

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::PAGE_SIZE;

use crate::image::cache::{CacheOf, Demand};
use crate::image::qcow2::{self, Qcow2};
use crate::image::vhd::{self, UniqueId, Vhd};
use crate::image::{Image, ImageError, ImageFile, ImageFormat, Map};
use crate::memory::FrameMemory;
use crate::pool::PagePool;

/// Parents that an image can stand on, one over the other.
pub const MAX_PARENTS: usize = 16;

/// A file that shall be an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageSource {
    /// What it is called by. Images that stand on it call it by the file name that it had, without
    /// folders.
    pub name: String,
    /// Its bytes.
    pub file: ImageFile,
    /// Its format; `None` to find it by its magic.
    pub format: Option<ImageFormat>,
}

/// A file that is no image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RefusedImage {
    /// The name that it would have had.
    pub name: String,
    /// Why it is none.
    pub error: ImageError,
}

/// All images, by their names.
#[derive(Debug, Default)]
pub struct Images {
    images: Vec<(String, Rc<Image>)>,
    refused: Vec<RefusedImage>,
}

/// What an image says of the one that it stands on.
#[derive(Debug)]
pub(crate) struct ParentLink {
    /// Its file name, without folders.
    pub(crate) name: String,
    pub(crate) must: ParentMust,
}

/// What must be true of a parent.
#[derive(Debug)]
pub(crate) enum ParentMust {
    /// Any image.
    Exist,
    /// A file that is taken as one of this format.
    HaveFormat(ImageFormat),
    /// A VHD of this unique id.
    HaveId(UniqueId),
}

/// An image that was not joined to its parent yet.
struct Opened {
    name: String,
    image: Image,
    parent: Option<ParentLink>,
}

impl Opened {
    fn stands_on(&self, name: &str) -> bool {
        self.parent.as_ref().is_some_and(|parent| parent.name == name)
    }
}

impl Images {
    /// Opens files as images, in any order. One that is refused is in [`refused`](Self::refused).
    /// Takes time in proportion to what the formats say of where the data is, none for the data.
    ///
    /// Where there are compressed clusters, as many pages of the pool are set aside as a read of
    /// `max_request_bytes` bytes can take, and one cluster more. A longer read may be busy for
    /// ever.
    #[must_use]
    pub fn load<M: FrameMemory>(
        pool: &mut PagePool<M>,
        sources: Vec<ImageSource>,
        max_request_bytes: usize,
    ) -> Self {
        let mut images = Self::default();
        let mut pending: Vec<Opened> = Vec::new();
        for ImageSource { name, file, format } in sources {
            let opened = if pending.iter().any(|opened| opened.name == name) {
                Err(ImageError::DuplicateName)
            } else {
                open(pool.memory(), &file, format)
            };
            match opened {
                Ok((image, parent)) => pending.push(Opened { name, image, parent }),
                Err(error) => images.refused.push(RefusedImage { name, error }),
            }
        }
        let pending = images.give_cache(pool, pending, max_request_bytes);
        images.join(pending);
        images
    }

    /// The image of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Rc<Image>> {
        self.images.iter().find(|(other, _)| other == name).map(|(_, image)| image)
    }

    /// All of them with their names, parents before those that stand on them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Rc<Image>)> {
        self.images.iter().map(|(name, image)| (name.as_str(), image))
    }

    /// Files that are no images, and why.
    #[must_use]
    pub fn refused(&self) -> &[RefusedImage] {
        &self.refused
    }

    /// Gives the images that have compressed clusters a cache, and refuses them where there is no
    /// room for it.
    fn give_cache<M: FrameMemory>(
        &mut self,
        pool: &mut PagePool<M>,
        opened: Vec<Opened>,
        request_bytes: usize,
    ) -> Vec<Opened> {
        let compressed = || opened.iter().filter_map(|opened| opened.image.compressed_bytes());
        let Some(cluster_bytes) = compressed().max() else { return opened };
        let nr_small = compressed().filter(|bytes| *bytes < PAGE_SIZE).count();
        let demand = Demand { request_bytes, cluster_bytes, nr_small };
        let cache = CacheOf::new(pool, demand);
        let mut good = Vec::new();
        for (number, mut opened) in (0..).zip(opened) {
            if opened.image.compressed_bytes().is_some() {
                match &cache {
                    Ok(cache) => opened.image.cache = Some(cache.for_image(number)),
                    Err(error) => {
                        let error = error.clone();
                        self.refused.push(RefusedImage { name: opened.name, error });
                        continue;
                    }
                }
            }
            good.push(opened);
        }
        good
    }

    /// Joins images to their parents. Each round takes those whose parents do not wait any more;
    /// what is left when a round takes none are loops.
    fn join(&mut self, mut pending: Vec<Opened>) {
        let mut nr_before = usize::MAX;
        while pending.len() < nr_before {
            nr_before = pending.len();
            let waits: Vec<bool> = pending
                .iter()
                .map(|opened| pending.iter().any(|other| opened.stands_on(&other.name)))
                .collect();
            let mut later = Vec::new();
            for (opened, waits) in pending.into_iter().zip(waits) {
                if waits { later.push(opened) } else { self.settle(opened) }
            }
            pending = later;
        }
        for Opened { name, parent, .. } in pending {
            let parent = parent.map_or_else(String::new, |parent| parent.name);
            self.refused.push(RefusedImage { name, error: ImageError::Loop { parent } });
        }
    }

    /// Takes an image in whose parent is here, or refused, or nowhere.
    fn settle(&mut self, opened: Opened) {
        let Opened { name, mut image, parent } = opened;
        match parent.map(|link| self.parent(link)).transpose() {
            Ok(parent) => {
                image.parent = parent;
                self.images.push((name, Rc::new(image)));
            }
            Err(error) => self.refused.push(RefusedImage { name, error }),
        }
    }

    fn parent(&self, link: ParentLink) -> Result<Rc<Image>, ImageError> {
        let ParentLink { name: parent, must } = link;
        let Some(found) = self.get(&parent) else {
            let is_refused = self.refused.iter().any(|refused| refused.name == parent);
            return Err(if is_refused {
                ImageError::ParentRefused { parent }
            } else {
                ImageError::ParentMissing { parent }
            });
        };
        let format = |wanted| {
            let found = found.format();
            if wanted == found {
                return Ok(());
            }
            Err(ImageError::ParentFormat { parent: parent.clone(), wanted, found })
        };
        match must {
            ParentMust::Exist => {}
            // The file's own bytes, whatever they look like.
            ParentMust::HaveFormat(ImageFormat::Raw) => return Ok(Rc::new(Image::raw(found.file))),
            ParentMust::HaveFormat(wanted) => format(wanted)?,
            ParentMust::HaveId(id) => {
                format(ImageFormat::Vhd)?;
                if !matches!(&found.map, Map::Vhd(vhd) if vhd.id == id) {
                    return Err(ImageError::ParentId { parent });
                }
            }
        }
        if found.nr_parents() >= MAX_PARENTS {
            return Err(ImageError::TooDeep { max: MAX_PARENTS });
        }
        Ok(Rc::clone(found))
    }
}

/// Finds out what a file is and reads what its format says of itself.
fn open<M: FrameMemory>(
    memory: &M,
    file: &ImageFile,
    format: Option<ImageFormat>,
) -> Result<(Image, Option<ParentLink>), ImageError> {
    let (size_bytes, map, parent) = match format.unwrap_or_else(|| find_format(memory, file)) {
        ImageFormat::Raw => (file.len_bytes, Map::Raw, None),
        ImageFormat::Vhd => {
            let (vhd, parent) = Vhd::open(memory, file)?;
            (vhd.size_bytes, Map::Vhd(vhd), parent)
        }
        ImageFormat::Qcow2 => {
            let (qcow2, parent) = Qcow2::open(memory, file)?;
            (qcow2.size_bytes, Map::Qcow2(qcow2), parent)
        }
    };
    if size_bytes == 0 {
        return Err(ImageError::Empty);
    }
    Ok((Image { file: *file, size_bytes, map, parent: None, cache: None }, parent))
}

fn find_format<M: FrameMemory>(memory: &M, file: &ImageFile) -> ImageFormat {
    if file.bytes(memory, 0) == Ok(qcow2::MAGIC) {
        ImageFormat::Qcow2
    } else if vhd::find_footer(memory, file).is_some() {
        ImageFormat::Vhd
    } else {
        ImageFormat::Raw
    }
}

/// A path's last part, of whichever system it is.
pub(crate) fn without_folders(path: &str) -> &str {
    path.rsplit_once(['/', '\\']).map_or(path, |(_, name)| name)
}
