//! What the toolstack wants of a device, and the disk that is opened for it.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::ToString;

use blkback::{Discards, Event, Look, Online};
use blkif::{keys, keys::VdiskInfo};
use catalog::{DiskType, Served, Target};
use store::{Access, BlockStore, Disk, ImageDisk};
use xen_abi::XenbusState;
use xenstore::Request;

use crate::create::{pages, sectors};
use crate::disks::{DiskId, Entry, Role, Work};
use crate::domain::Domain;
use crate::ending::Shutdown;
use crate::inbox::Tag;
use crate::inquiry::{FRONTEND, FRONTEND_ID, Inquiry, STATE};
use crate::platform::Platform;
use crate::refusal::Refusal;
use crate::text::Printable;
use crate::upstream::CONNECT_LIMIT;
use crate::vbd::{Device, Identity, Opening, VbdKey};

impl<P: Platform> Domain<P> {
    /// Reads what the toolstack wants, and opens the disk.
    pub(crate) fn identify(&mut self, platform: &mut P, key: VbdKey, inquiry: &Inquiry) {
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        let [
            state,
            online,
            frontend,
            frontend_id,
            params,
            mode,
            device_type,
            removable,
            discard_enable,
        ] = inquiry.first();
        if state.is_none() && frontend.is_none() {
            vbd.handle(Event::Vanished);
            return;
        }
        if online == Some(b"0") {
            // The toolstack wants it to go, whatever it was.
            vbd.handle(Event::Looked(Look { online: Online::No, frontend: None }));
            return;
        }
        let frontend_dir = frontend.and_then(|text| str::from_utf8(text).ok());
        let (Some(_), Some(_), Some(frontend_dir), Some(frontend_id), Some(params), Some(mode)) =
            (state, online, frontend_dir, frontend_id, params, mode)
        else {
            // Half-written: what is still to come makes itself known.
            return;
        };
        let device = if frontend_id == key.frontend.to_string().as_bytes() {
            let wish = Wish { params, mode, device_type, removable, discard_enable };
            self.open(platform, key, frontend_dir, &wish)
        } else {
            let id = Printable(frontend_id);
            Err(Refusal::Words(format!(
                "{FRONTEND_ID} is {id}, but {FRONTEND} is another domain's"
            )))
        };
        if let Err(Refusal::NotConnected { .. }) = &device
            && self.waits_for_upstream(platform, key)
        {
            return;
        }
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
                self.tell_attached(platform, key, &device);
                if let Some(vbd) = self.vbds.get_mut(&key) {
                    vbd.identity = Identity::Open(device);
                    vbd.opening = Opening::AtOnce;
                }
            }
            Err(refusal) => {
                let text = format!("cannot serve target={}: {refusal}", Printable(params));
                self.tell_error(platform, key, refusal.errno(), &text);
                if let Some(vbd) = self.vbds.get_mut(&key) {
                    vbd.identity = Identity::Refused { frontend_dir: frontend_dir.into() };
                    vbd.handle(Event::Refused);
                }
            }
        }
        self.submit(platform, Request::Watch { path: &path, token: &token }, Tag::Watched(id));
    }

    /// Lets a vbd wait for what its disk is on, if it has not yet.
    fn waits_for_upstream(&mut self, platform: &mut P, key: VbdKey) -> bool {
        let until = platform.now().after(CONNECT_LIMIT);
        let Some(vbd) = self.vbds.get_mut(&key) else { return false };
        match vbd.opening {
            Opening::AtOnce => {
                vbd.opening = Opening::Waits(until);
                self.wake_at(until);
                true
            }
            Opening::Waits(_) => true,
            Opening::Waited => false,
        }
    }

    fn tell_attached(&self, platform: &mut P, key: VbdKey, device: &Device) {
        let Some(entry) = self.disks.get(device.disk) else { return };
        let geometry = BlockStore::<P::Memory>::geometry(&entry.disk);
        let writes_end_with_it = entry.name.is_none()
            && geometry.access == Access::ReadWrite
            && !matches!(entry.disk, Disk::Device(_));
        platform.log(format_args!(
            "vbd {key}: attached {}, {} sectors, {}{}",
            Printable(&device.params),
            geometry.nr_sectors,
            match device.access {
                Access::ReadOnly => "read-only",
                Access::ReadWrite => "read-write",
            },
            if writes_end_with_it {
                "; starts afresh after a reboot, not for save or migrate"
            } else {
                ""
            },
        ));
    }

    fn open(
        &mut self,
        platform: &mut P,
        key: VbdKey,
        frontend_dir: &str,
        wish: &Wish<'_>,
    ) -> Result<Device, Refusal> {
        if self.shutdown != Shutdown::No {
            return Err(Refusal::Ending);
        }
        let mode = match wish.mode {
            b"w" => Access::ReadWrite,
            b"r" => Access::ReadOnly,
            other => {
                let other = Printable(other);
                return Err(Refusal::Words(format!("mode `{other}`, expected r or w")));
            }
        };
        let target = parse_target(wish.params)?;
        let access = match target.access {
            catalog::Access::ReadOnly => Access::ReadOnly,
            catalog::Access::ReadWrite => mode,
        };
        let disk = self.open_disk(platform, key, &target, access)?;
        let discards = match wish.discard_enable {
            Some(b"0") => Discards::No,
            _ => Discards::Offered,
        };
        let mut info = VdiskInfo::empty();
        info.set(VdiskInfo::READONLY, access == Access::ReadOnly);
        info.set(VdiskInfo::CDROM, wish.device_type == Some(b"cdrom"));
        info.set(VdiskInfo::REMOVABLE, wish.removable == Some(b"1"));
        let (frontend_dir, params) = (frontend_dir.into(), wish.params.into());
        let published = None;
        let grants = target.grants;
        Ok(Device { frontend_dir, params, disk, published, mode, access, discards, grants, info })
    }

    /// Finds or makes the disk of a target, and holds it for a vbd.
    fn open_disk(
        &mut self,
        platform: &mut P,
        key: VbdKey,
        target: &Target<'_>,
        access: Access,
    ) -> Result<DiskId, Refusal> {
        let id = match &target.served {
            Served::Private(disk) => {
                let entry = self.make(platform, disk, None)?;
                self.disks.add(entry)?
            }
            Served::Named { name, overlay: Some(overlay) } => {
                match self.find_or_make(platform, name.as_str())? {
                    Some(id) => {
                        let image = self.disks.get(id).and_then(|entry| entry.image.as_deref());
                        if image != Some(overlay.image.as_str()) {
                            let (name, image) = (name.to_string(), overlay.image.to_string());
                            return Err(Refusal::OtherBase { name, image });
                        }
                        id
                    }
                    None => self.create(platform, *name, &DiskType::Overlay(*overlay))?,
                }
            }
            Served::Named { name, overlay: None } => {
                let disk = self.find_or_make(platform, name.as_str())?;
                let image = self.images.get(name.as_str());
                match (disk, image) {
                    (Some(id), _) => id,
                    (None, Some(_)) if access == Access::ReadWrite => {
                        return Err(Refusal::ReadOnly(name.to_string()));
                    }
                    (None, Some(image)) => {
                        let disk = Disk::Image(ImageDisk::new(Rc::clone(image)));
                        self.disks.add(Entry::new(disk, None, None))?
                    }
                    (None, None) => return Err(Refusal::Unknown(name.to_string())),
                }
            }
        };
        if let Err(refusal) = self.hold(id, key, target, access) {
            // One that was made for this vbd alone goes with it.
            self.cleared.extend(self.disks.release(id, key));
            return Err(refusal);
        }
        Ok(id)
    }

    fn hold(
        &mut self,
        id: DiskId,
        key: VbdKey,
        target: &Target<'_>,
        access: Access,
    ) -> Result<(), Refusal> {
        let Some(entry) = self.disks.get(id) else { return Ok(()) };
        let name = entry.title();
        let geometry = BlockStore::<P::Memory>::geometry(&entry.disk);
        if geometry.access == Access::ReadOnly && access == Access::ReadWrite {
            return Err(Refusal::ReadOnly(name));
        }
        if let Some(Work::Shrink(_)) = entry.work {
            return Err(Refusal::AtWork(name));
        }
        if let Some(extent) = &entry.extent
            && extent.role == Role::Itself
        {
            self.disks.check_extent(Some(id), extent, access)?;
        }
        let held = |by| Refusal::Held { name, by };
        self.disks.hold(id, key, access, target.handover).map_err(held)
    }

    /// Obeys a change of `params` on a device in use: a larger size is all that it can be. One that is
    /// not published yet is not: it is read anew then.
    pub(crate) fn obey_params(&mut self, platform: &mut P, key: VbdKey, params: &[u8]) {
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        let Identity::Open(device) = &mut vbd.identity else { return };
        if device.params == params || vbd.handshake.is_new() {
            return;
        }
        device.params = params.into();
        let disk = device.disk;
        if let Err(refusal) = self.grow_private(platform, disk, params) {
            platform.log(format_args!(
                "vbd {key}: cannot become target={}: {refusal}",
                Printable(params)
            ));
        }
    }

    fn grow_private(&mut self, platform: &mut P, id: DiskId, params: &[u8]) -> Result<(), Refusal> {
        let target = parse_target(params)?;
        let Some(Entry { name: None, disk: Disk::Pages(disk), image: None, .. }) =
            self.disks.get_mut(id)
        else {
            return Err(Refusal::Words("only a ram disk without a name grows like this".into()));
        };
        let Served::Private(DiskType::Ram { size_bytes, cap_bytes, block_bytes }) = target.served
        else {
            return Err(Refusal::Words("the disk in use is a ram disk".into()));
        };
        if BlockStore::<P::Memory>::geometry(disk).logical.bytes() != block_bytes {
            return Err(Refusal::Words("the block size of a disk in use cannot change".into()));
        }
        disk.grow(&mut self.pool, sectors(size_bytes), pages(cap_bytes))?;
        self.tell_size(platform, id);
        Ok(())
    }

    /// Tells all who hold a disk how large it is now.
    pub(crate) fn tell_size(&mut self, platform: &mut P, id: DiskId) {
        let holders: alloc::vec::Vec<VbdKey> =
            self.disks.get(id).map_or_else(Default::default, |entry| entry.holders().collect());
        for key in holders {
            self.correct_size(platform, key);
        }
    }

    /// Tells a vbd's frontend how large its disk is now, where it was told otherwise; later, where
    /// xenstore's queue has no room.
    pub(crate) fn correct_size(&mut self, platform: &mut P, key: VbdKey) {
        let Some(Identity::Open(device)) = self.vbds.get(&key).map(|vbd| &vbd.identity) else {
            return;
        };
        let Some(entry) = self.disks.get(device.disk) else { return };
        let nr_sectors = BlockStore::<P::Memory>::geometry(&entry.disk).nr_sectors;
        // What was never told is told when it is published.
        if device.published.is_none_or(|told| told == nr_sectors) || !self.has_room() {
            return;
        }
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        if let Identity::Open(device) = &mut vbd.identity {
            device.published = Some(nr_sectors);
        }
        vbd.say(platform, format_args!("resized to {nr_sectors} sectors"));
        let (tag, is_connected) = (Tag::Written(vbd.id), vbd.handshake.is_connected());
        let (node, state_node) = (vbd.node(keys::SECTORS), vbd.node(STATE));
        let value = nr_sectors.to_string();
        self.submit(platform, Request::Write(&node, value.as_bytes()), tag);
        if is_connected {
            // Linux looks at the size again when our state is written, even unchanged.
            let state = XenbusState::Connected.to_string();
            self.submit(platform, Request::Write(&state_node, state.as_bytes()), tag);
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

fn parse_target(params: &[u8]) -> Result<Target<'_>, Refusal> {
    let text = str::from_utf8(params).map_err(|_| Refusal::Words("not UTF-8".into()))?;
    Ok(Target::parse(text)?)
}
