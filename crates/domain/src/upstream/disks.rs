//! The disks on what other domains serve: a part of it, or an overlay over one.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use catalog::{Cow, Ground, Name, Namespace, Upstream, VirtualDevice};
use store::{Access, DeviceDisk, Disk, Overlay, Slice};

use crate::create::{pages, sectors};
use crate::disks::{DiskId, Entry, Extent, Role};
use crate::domain::Domain;
use crate::platform::Platform;
use crate::refusal::Refusal;
use crate::upstream::find_namespace;

impl<P: Platform> Domain<P> {
    /// Makes a disk on an upstream disk, which must be connected, or on a namespace.
    pub(crate) fn make_upstream(
        &mut self,
        platform: &mut P,
        disk: &Upstream,
        name: Option<String>,
        base: Option<String>,
    ) -> Result<Entry, Refusal> {
        let slice = Slice {
            offset: sectors(disk.slice.offset_bytes),
            nr_sectors: disk.slice.size_bytes.map(sectors),
        };
        let (role, access) = match disk.cow {
            None => (Role::Itself, Access::ReadWrite),
            Some(_) => (Role::Base, Access::ReadOnly),
        };
        let Slice { offset: first, nr_sectors } = slice;
        let extent = Extent { device: disk.device, first, nr_sectors, role };
        let on_it = match disk.device {
            Ground::Vbd(device) => {
                self.want_upstream(platform, device)?;
                let upstream = self.upstreams.get(device);
                let Some(upstream) = upstream.filter(|upstream| upstream.is_connected()) else {
                    let state = upstream.map_or(String::new(), |up| up.describe_state());
                    return Err(Refusal::NotConnected { device, state });
                };
                DeviceDisk::new(&upstream.shared, slice, access)?
            }
            Ground::Namespace(namespace) => {
                self.check_there(namespace)?;
                let shared = find_namespace(&self.namespaces, namespace);
                let shared = shared.ok_or_else(|| Refusal::Unknown(namespace.to_string()))?;
                DeviceDisk::new(shared, slice, access)?
            }
        };
        let made = match disk.cow {
            None => Disk::Device(on_it),
            Some(Cow { cap_bytes }) => {
                self.disks.check_extent(None, &extent, Access::ReadOnly)?;
                Disk::Overlay(Overlay::new(on_it, cap_bytes.map(pages), &self.pool)?)
            }
        };
        let mut entry = Entry::new(made, name, base);
        entry.extent = Some(extent);
        Ok(entry)
    }

    /// Remembers a disk of the command line, to be made when what it is on is there.
    pub(crate) fn define_upstream(
        &mut self,
        platform: &mut P,
        name: Name<'_>,
        disk: Upstream,
        base: Option<String>,
    ) -> Result<(), Refusal> {
        self.check_unused(name)?;
        match disk.device {
            Ground::Vbd(device) => {
                self.want_upstream(platform, device)?;
                self.defined.push(Defined { name: name.to_string(), disk, base });
            }
            // It is there from the start.
            Ground::Namespace(_) => {
                let entry = self.make_upstream(platform, &disk, Some(name.to_string()), base)?;
                self.disks.add(entry)?;
                platform.log(format_args!("disk {name}: made"));
            }
        }
        Ok(())
    }

    /// Where a disk of the command line stands among those that are not made yet.
    pub(crate) fn find_defined(&self, name: &str) -> Option<usize> {
        self.defined.iter().position(|defined| defined.name == name)
    }

    /// Makes the disks of the command line on a device that are not made yet.
    pub(super) fn make_defined(&mut self, platform: &mut P, device: VirtualDevice) {
        let ground = Ground::Vbd(device);
        let on_it = self.defined.iter().filter(|defined| defined.disk.device == ground);
        let names: Vec<String> = on_it.map(|defined| defined.name.clone()).collect();
        for name in names {
            match self.find_or_make(platform, &name) {
                Ok(_) => platform.log(format_args!("disk {name}: made")),
                Err(refusal) => {
                    if let Some(upstream) = self.upstreams.get_mut(device) {
                        upstream.say(platform, format_args!("disk {name} is refused: {refusal}"));
                    }
                }
            }
        }
    }

    /// The disk of a name; one of the command line is made if what it is on is there. `None` where
    /// there is no such disk.
    pub(crate) fn find_or_make(
        &mut self,
        platform: &mut P,
        name: &str,
    ) -> Result<Option<DiskId>, Refusal> {
        if let Some(id) = self.disks.find(name) {
            self.check_connected(id)?;
            return Ok(Some(id));
        }
        let Some(at) = self.find_defined(name) else { return Ok(None) };
        let Defined { name, disk, base } = self.defined[at].clone();
        let entry = self.make_upstream(platform, &disk, Some(name), base)?;
        let id = self.disks.add(entry)?;
        self.defined.remove(at);
        Ok(Some(id))
    }

    /// Whether what a disk is on is there.
    pub(crate) fn check_connected(&self, id: DiskId) -> Result<(), Refusal> {
        let Some(extent) = self.disks.get(id).and_then(|entry| entry.extent) else { return Ok(()) };
        let upstream = match extent.device {
            Ground::Vbd(device) => self.upstreams.get(device),
            Ground::Namespace(namespace) => return self.check_there(namespace),
        };
        match upstream {
            Some(upstream) if !upstream.is_connected() => Err(Refusal::NotConnected {
                device: upstream.device,
                state: upstream.describe_state(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether a namespace is not gone: its controller has no buffers then.
    fn check_there(&self, namespace: Namespace) -> Result<(), Refusal> {
        match find_namespace(&self.namespaces, namespace) {
            Some(shared) if shared.borrow().max_sectors() == 0 => Err(Refusal::Gone(namespace)),
            _ => Ok(()),
        }
    }

    /// What an overlay is of an upstream disk, if it is over a disk of type `vbd`.
    pub(crate) fn upstream_below(&self, overlay: &catalog::Overlay<'_>) -> Option<Upstream> {
        let base = overlay.image.as_str();
        let defined = self.find_defined(base).map(|at| self.defined[at].disk);
        let made = || {
            let extent = self.disks.get(self.disks.find(base)?)?.extent?;
            let bytes = |sectors: u64| sectors * store::SECTOR_SIZE as u64;
            let slice = catalog::Slice {
                offset_bytes: bytes(extent.first),
                size_bytes: extent.nr_sectors.map(bytes),
            };
            let is_cow = extent.role == Role::Base;
            let cow = is_cow.then_some(Cow { cap_bytes: None });
            Some(Upstream { device: extent.device, slice, cow })
        };
        let upstream = defined.or_else(made).filter(|upstream| upstream.cow.is_none())?;
        Some(Upstream { cow: Some(Cow { cap_bytes: overlay.cap_bytes }), ..upstream })
    }
}

/// A disk of the command line that is on an upstream disk.
#[derive(Clone, Debug)]
pub(crate) struct Defined {
    pub(crate) name: String,
    pub(crate) disk: Upstream,
    /// The disk that it is over, if that has a name.
    base: Option<String>,
}
