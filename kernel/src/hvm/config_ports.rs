//! PCI configuration space by its two ports (mechanism 1).

use x86_64::instructions::port::{Port, PortWriteOnly};

use crate::pci::{Bdf, ConfigSpace};

/// The ports, which are a PC's.
pub(crate) struct ConfigPorts {
    address: PortWriteOnly<u32>,
    data: Port<u32>,
}

impl ConfigPorts {
    pub(crate) const fn new() -> Self {
        Self { address: PortWriteOnly::new(0xcf8), data: Port::new(0xcfc) }
    }

    fn select(&mut self, at: Bdf, offset: u8) -> &mut Port<u32> {
        const ENABLE: u32 = 1 << 31;
        let place =
            u32::from(at.bus) << 16 | u32::from(at.device) << 11 | u32::from(at.function) << 8;
        // SAFETY: it only says what the other port is about.
        unsafe { self.address.write(ENABLE | place | u32::from(offset & !3)) };
        &mut self.data
    }
}

impl ConfigSpace for ConfigPorts {
    fn read(&mut self, at: Bdf, offset: u8) -> u32 {
        // SAFETY: reading configuration space has no effect. Where there is no such port, as in a
        // PVH domain, all ones are read: no function.
        unsafe { self.select(at, offset).read() }
    }

    fn write(&mut self, at: Bdf, offset: u8, value: u32) {
        // SAFETY: `pci` writes BARs, which it places where nothing is, the command, and the control
        // of MSI-X. A device reaches memory only as it is told by its registers.
        unsafe { self.select(at, offset).write(value) };
    }
}
