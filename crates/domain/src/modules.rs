//! The boot modules, and which of their bytes are to be images.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use catalog::Name;
use store::{Archive, FrameMemory, ImageFile, ImageFormat, ImageSource, Member};

use crate::text::Printable;

/// Files that are looked at in an archive: more are not meant to be images, and each takes heap.
const MAX_MEMBERS: usize = 256;

/// An image that the command line defines.
pub(crate) struct DefinedImage<'a> {
    pub(crate) name: Name<'a>,
    pub(crate) module: u32,
    pub(crate) file: Option<&'a str>,
    pub(crate) format: Option<catalog::ImageFormat>,
}

impl DefinedImage<'_> {
    fn is_in(&self, module: usize) -> bool {
        self.module as usize == module
    }

    fn is(&self, module: usize, member: &Member) -> bool {
        self.is_in(module) && self.file == Some(member.path.as_str())
    }

    /// Where its bytes are.
    fn find(&self, modules: &[Module]) -> Result<ImageFile, String> {
        let Self { module: n, file: path, .. } = self;
        let Some((at, module)) = modules.iter().enumerate().find(|(at, _)| self.is_in(*at)) else {
            return Err(format!("there is no module {n}, there are {}", modules.len()));
        };
        match path {
            None if module.members.is_empty() => Ok(module.file),
            None => Err(format!("module {n} is an archive: say which file=")),
            Some(path) => {
                let found = module.members.iter().find(|member| self.is(at, member));
                let file = found.map(|member| member.file);
                file.ok_or_else(|| format!("module {n} has no file {path}"))
            }
        }
    }
}

/// A boot module.
struct Module {
    file: ImageFile,
    /// The files in it, if it is an archive.
    members: Vec<Member>,
}

/// The files that are to be images: those that the command line defines, and of the rest every
/// module as `moduleN` and every file of an archive by its own name. What cannot be is said.
pub(crate) fn sources<M: FrameMemory>(
    memory: &M,
    modules: &[ImageFile],
    defined: &[DefinedImage<'_>],
    say: &mut dyn FnMut(fmt::Arguments<'_>),
) -> Vec<ImageSource> {
    let modules: Vec<Module> = modules
        .iter()
        .enumerate()
        .map(|(n, &file)| Module { file, members: members(memory, n, file, say) })
        .collect();
    let mut sources = Vec::new();
    for image in defined {
        match image.find(&modules) {
            Ok(file) => {
                let format = image.format.map(format_of);
                sources.push(ImageSource { name: image.name.to_string(), file, format });
            }
            Err(reason) => say(format_args!("image {} is refused: {reason}", image.name)),
        }
    }
    // What is defined is that, and nothing that its bytes look like.
    let is_defined = |n, member| defined.iter().any(|image: &DefinedImage<'_>| image.is(n, member));
    for (n, Module { file, members }) in modules.iter().enumerate() {
        if members.is_empty() && !defined.iter().any(|image| image.is_in(n)) {
            sources.push(ImageSource { name: format!("module{n}"), file: *file, format: None });
        }
        for member in members.iter().filter(|member| !is_defined(n, member)) {
            match Name::parse(member.file_name()) {
                Ok(name) => {
                    let (name, file) = (name.to_string(), member.file);
                    sources.push(ImageSource { name, file, format: None });
                }
                Err(problem) => {
                    let path = Printable(member.path.as_bytes());
                    say(format_args!("module {n}: {path}: {problem}"));
                }
            }
        }
    }
    sources
}

/// The files of a module that is an archive.
fn members<M: FrameMemory>(
    memory: &M,
    n: usize,
    file: ImageFile,
    say: &mut dyn FnMut(fmt::Arguments<'_>),
) -> Vec<Member> {
    let mut members = Vec::new();
    for member in Archive::open(memory, file).into_iter().flatten() {
        match member {
            Ok(_) if members.len() == MAX_MEMBERS => {
                say(format_args!("module {n}: more than {MAX_MEMBERS} files, the rest is ignored"));
                break;
            }
            Ok(member) => members.push(member),
            Err(error) => say(format_args!("module {n}: {error}")),
        }
    }
    members
}

const fn format_of(format: catalog::ImageFormat) -> ImageFormat {
    match format {
        catalog::ImageFormat::Raw => ImageFormat::Raw,
        catalog::ImageFormat::Vhd => ImageFormat::Vhd,
        catalog::ImageFormat::Qcow2 => ImageFormat::Qcow2,
    }
}
