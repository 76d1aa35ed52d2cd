//! What the toolstack wants of a device, and the disk that is opened for it.

use alloc::format;
use alloc::string::{String, ToString};

use blkback::{Discards, Event};
use blkif::{keys, keys::VdiskInfo};
use catalog::Target;
use store::{Access, BlockSize, BlockStore, Disk, PageDisk, SECTOR_SIZE, StoreError};
use xen_abi::{PAGE_SIZE, XenbusState};
use xenstore::Request;

use crate::domain::Domain;
use crate::inbox::Tag;
use crate::inquiry::{FRONTEND, FRONTEND_ID, Inquiry, STATE};
use crate::platform::Platform;
use crate::text::Printable;
use crate::vbd::{Device, Identity, VbdKey};

/// errno numbers as an `error` node begins with.
pub(crate) const EINVAL: u32 = 22;
const ENOMEM: u32 = 12;

impl<P: Platform> Domain<P> {
    /// Reads what the toolstack wants, and opens the disk.
    pub(crate) fn identify(&mut self, platform: &mut P, key: VbdKey, inquiry: &Inquiry) {
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        let [state, frontend, frontend_id, params, mode, device_type, removable, discard_enable] =
            inquiry.first();
        if state.is_none() && frontend.is_none() {
            vbd.handle(Event::Vanished);
            return;
        }
        let (Some(frontend), Some(frontend_id), Some(params), Some(mode)) =
            (frontend, frontend_id, params, mode)
        else {
            // Half-written: what is still to come makes itself known.
            return;
        };
        let frontend_dir = String::from_utf8_lossy(frontend).into_owned();
        let device = if frontend_id == key.frontend.to_string().as_bytes() {
            let wish = Wish { params, mode, device_type, removable, discard_enable };
            self.open(&frontend_dir, &wish)
        } else {
            let id = Printable(frontend_id);
            Err((EINVAL, format!("{FRONTEND_ID} is {id}, but {FRONTEND} is another domain's")))
        };
        let token = key.to_string();
        let path = format!("{frontend_dir}/{STATE}");
        let id = match self.vbds.get_mut(&key) {
            None => return,
            Some(vbd) => {
                vbd.look = true;
                vbd.id
            }
        };
        match device {
            Ok(device) => {
                let geometry = BlockStore::<P::Memory>::geometry(&device.disk);
                platform.log(format_args!(
                    "vbd {key}: attached {}, {} sectors, {}; its contents end with the vbd",
                    Printable(params),
                    geometry.nr_sectors,
                    match device.access {
                        Access::ReadOnly => "read-only",
                        Access::ReadWrite => "read-write",
                    },
                ));
                if let Some(vbd) = self.vbds.get_mut(&key) {
                    vbd.identity = Identity::Open(device);
                }
            }
            Err((errno, reason)) => {
                let text = format!("cannot serve target={}: {reason}", Printable(params));
                self.tell_error(platform, key, errno, &text);
                if let Some(vbd) = self.vbds.get_mut(&key) {
                    vbd.identity = Identity::Refused { frontend_dir };
                    vbd.handle(Event::Refused);
                }
            }
        }
        self.submit(platform, Request::Watch { path: &path, token: &token }, Tag::Written(id));
    }

    fn open(&self, frontend_dir: &str, wish: &Wish<'_>) -> Result<Device, (u32, String)> {
        let access = match wish.mode {
            b"w" => Access::ReadWrite,
            b"r" => Access::ReadOnly,
            other => return Err((EINVAL, format!("mode `{}`, expected r or w", Printable(other)))),
        };
        let Target::Ram { size_bytes, block_bytes } = parse_target(wish.params)?;
        let logical = if block_bytes == 4096 { BlockSize::B4096 } else { BlockSize::B512 };
        let (nr_sectors, cap_pages) = size(size_bytes);
        let disk = PageDisk::new(nr_sectors, logical, cap_pages, &self.pool).map_err(told)?;
        let discards = match wish.discard_enable {
            Some(b"0") => Discards::No,
            _ => Discards::Offered,
        };
        let mut info = VdiskInfo::empty();
        info.set(VdiskInfo::READONLY, access == Access::ReadOnly);
        info.set(VdiskInfo::CDROM, wish.device_type == Some(b"cdrom"));
        info.set(VdiskInfo::REMOVABLE, wish.removable == Some(b"1"));
        let (frontend_dir, params) = (frontend_dir.into(), wish.params.into());
        Ok(Device { frontend_dir, params, disk: Disk::Pages(disk), access, discards, info })
    }

    /// Obeys a change of `params` on a device in use: a larger size is all that it can be.
    pub(crate) fn obey_params(&mut self, platform: &mut P, key: VbdKey, params: &[u8]) {
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        let Identity::Open(device) = &mut vbd.identity else { return };
        if device.params == params {
            return;
        }
        device.params = params.into();
        let grown = parse_target(params).and_then(|target| {
            let (Target::Ram { size_bytes, block_bytes }, Disk::Pages(disk)) =
                (target, &mut device.disk)
            else {
                return Err((EINVAL, "the type of a disk in use cannot change".into()));
            };
            if BlockStore::<P::Memory>::geometry(disk).logical.bytes() != block_bytes {
                return Err((EINVAL, "the block size of a disk in use cannot change".into()));
            }
            let (nr_sectors, cap_pages) = size(size_bytes);
            disk.grow(&mut self.pool, nr_sectors, cap_pages).map_err(told)?;
            Ok(nr_sectors)
        });
        match grown {
            Ok(nr_sectors) => {
                platform.log(format_args!("vbd {key}: resized to {nr_sectors} sectors"));
                let sectors = (vbd.node(keys::SECTORS), nr_sectors.to_string());
                // Linux looks at the size again when our state is written, even unchanged.
                let state = vbd.handshake.has_ring().then_some(XenbusState::Connected);
                let state = state.map(|state| (vbd.node(STATE), state.to_string()));
                let tag = Tag::Written(vbd.id);
                for (node, value) in [Some(sectors), state].into_iter().flatten() {
                    self.submit(platform, Request::Write(&node, value.as_bytes()), tag);
                }
            }
            Err((_, reason)) => platform.log(format_args!(
                "vbd {key}: cannot become target={}: {reason}",
                Printable(params)
            )),
        }
    }
}

/// What the toolstack wants of a device.
struct Wish<'a> {
    params: &'a [u8],
    mode: &'a [u8],
    device_type: Option<&'a [u8]>,
    removable: Option<&'a [u8]>,
    discard_enable: Option<&'a [u8]>,
}

fn parse_target(params: &[u8]) -> Result<Target, (u32, String)> {
    let text = str::from_utf8(params).map_err(|_| (EINVAL, "not UTF-8".to_string()))?;
    Target::parse(text).map_err(|error| {
        let word = Printable(error.word.as_bytes());
        (EINVAL, format!("`{word}`: {}", error.problem))
    })
}

/// Sectors and pages of a disk of that many bytes.
const fn size(size_bytes: u64) -> (u64, u64) {
    (size_bytes / SECTOR_SIZE as u64, size_bytes.div_ceil(PAGE_SIZE as u64))
}

/// A store's error, with the errno for the error node.
fn told(error: StoreError) -> (u32, String) {
    let errno = match error {
        StoreError::TooLarge { .. } | StoreError::NoMemory { .. } => ENOMEM,
        _ => EINVAL,
    };
    (errno, error.to_string())
}
