//! What a controller goes through: bring-up, resets, shutdown.

use core::mem;
use core::time::Duration;

use xen_abi::{Instant, SharedMemory};

use super::{Controller, Namespace, Phase, Then};
use crate::command::{AdminOpcode, Command, Interrupt};
use crate::identify::{CONTROLLER_LEN, LIMITS_LEN, NAMESPACE_LEN, max_deallocated};
use crate::memory;
use crate::registers::{Cc, Csts, Reg32, Reg64, Registers, Version};
use crate::{Broken, Disk, Error, Identity, NamespaceId, Status, Unusable};

/// How long an admin command may take.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);

/// How often registers and the admin queue are looked at while they are waited for.
const POLL: Duration = Duration::from_millis(1);

/// How often the I/O queue is looked at that has no interrupt, while commands are in flight.
const POLL_IO: Duration = Duration::from_micros(100);

/// How often the controller's status and its commands' times are looked at while any are in flight.
const CHECK: Duration = Duration::from_secs(1);

/// The least and the most time that a shutdown is given, whatever the controller says.
const SHUTDOWN: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(60)];

/// Resets in a row, without an I/O command that was done, until the controller is given up.
const MAX_RESETS: u32 = 3;

/// Namespaces that are looked at; those with higher identifiers are not used.
pub(super) const MAX_NAMESPACES: usize = 32;

/// What an admin command was sent for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admin {
    Controller,
    Limits,
    NumberOfQueues,
    NamespaceList,
    /// The one of this index.
    Namespace(usize),
    CreateCq,
    CreateSq,
}

impl Admin {
    const fn opcode(self) -> AdminOpcode {
        match self {
            Self::Controller | Self::Limits | Self::NamespaceList | Self::Namespace(_) => {
                AdminOpcode::Identify
            }
            Self::NumberOfQueues => AdminOpcode::SetFeatures,
            Self::CreateCq => AdminOpcode::CreateIoCq,
            Self::CreateSq => AdminOpcode::CreateIoSq,
        }
    }
}

/// What a step came to.
enum Stepped {
    /// Another phase.
    On,
    /// Until then at the latest.
    Waits(Option<Instant>),
}

impl<R: Registers, M: SharedMemory> Controller<R, M> {
    /// Does what there is to do now, without waiting. Says when to call again at the latest; also
    /// call it when the controller's interrupt came, and behind [`publish`](Self::publish).
    pub fn step(&mut self, now: Instant) -> Option<Instant> {
        loop {
            match self.advance(now) {
                Stepped::On => {}
                Stepped::Waits(until) => return until,
            }
        }
    }

    fn advance(&mut self, now: Instant) -> Stepped {
        let status = match self.phase {
            Phase::Off | Phase::Failed(_) => return Stepped::Waits(None),
            Phase::Running => return self.run(now),
            _ => Csts(self.registers.read32(Reg32::CSTS)),
        };
        if status.is_gone() {
            self.give_up(Error::Gone);
            return Stepped::On;
        }
        let timeout_ms = self.cap.timeout().as_millis();
        let until = match self.phase {
            Phase::Settling { until } => {
                let enabled = self.registers.read32(Reg32::CC) & Cc::ENABLE != 0;
                if !enabled || status.is_ready() || status.is_fatal() || now >= until {
                    self.disable(Then::Enable, now);
                    return Stepped::On;
                }
                until
            }
            // Where it had failed before it was ready, CSTS.CFS alone says when the reset is done.
            Phase::Disabling { until, then }
                if !status.is_ready() && (!status.is_fatal() || now >= until) =>
            {
                self.disabled(then, now);
                return Stepped::On;
            }
            Phase::Disabling { until, .. } if now >= until => {
                self.give_up(Error::NotDisabled { timeout_ms });
                return Stepped::On;
            }
            Phase::Disabling { until, .. } => until,
            Phase::Enabling { .. } | Phase::Admin { .. } if status.is_fatal() => {
                self.fail(Error::Fatal, now);
                return Stepped::On;
            }
            Phase::Admin { .. } if !status.is_ready() => {
                self.fail(Error::Disabled, now);
                return Stepped::On;
            }
            Phase::Enabling { .. } if status.is_ready() => {
                self.send_admin(Admin::Controller, now);
                return Stepped::On;
            }
            Phase::Enabling { until } if now >= until => {
                self.fail(Error::NotReady { timeout_ms }, now);
                return Stepped::On;
            }
            Phase::Enabling { until } => until,
            Phase::Admin { admin, cid, until } => {
                match self.take_admin(cid) {
                    Ok(Some(result)) => self.answered(admin, result, now),
                    Err(broken) => self.fail(broken.into(), now),
                    Ok(None) if now >= until => {
                        self.fail(Error::AdminTimeout { opcode: admin.opcode() }, now);
                    }
                    Ok(None) => return Stepped::Waits(Some(until.min(now.after(POLL)))),
                }
                return Stepped::On;
            }
            Phase::ShuttingDown { until } => {
                if status.is_shut_down() {
                    self.disable(Then::Off, now);
                    return Stepped::On;
                }
                if now >= until {
                    let timeout_ms = self.shutdown_timeout().as_millis();
                    self.disable(Then::Fail(Error::NotShutDown { timeout_ms }), now);
                    return Stepped::On;
                }
                until
            }
            Phase::Running | Phase::Off | Phase::Failed(_) => return Stepped::Waits(None),
        };
        Stepped::Waits(Some(until.min(now.after(POLL))))
    }

    /// Clears CC.EN (7.3.2, Controller Level Reset).
    fn disable(&mut self, then: Then, now: Instant) {
        let cc = self.registers.read32(Reg32::CC) & !Cc::ENABLE & !Cc::SHUTDOWN_MASK;
        self.registers.write32(Reg32::CC, cc);
        self.phase = Phase::Disabling { until: now.after(self.cap.timeout()), then };
    }

    /// CSTS.RDY is 0: no command is in flight, and nothing of ours is written.
    fn disabled(&mut self, then: Then, now: Instant) {
        self.quiet = true;
        self.requests.after_reset();
        match then {
            Then::Enable => self.enable(now),
            Then::Off => self.phase = Phase::Off,
            Then::Fail(error) => self.give_up(error),
        }
    }

    /// The admin queues, and CC.EN (7.6.1).
    fn enable(&mut self, now: Instant) {
        self.admin.reset(&self.memory);
        self.io.reset(&self.memory);
        self.found.clear();
        self.check_at = None;
        let last = u32::from(self.admin.nr_entries() - 1);
        self.registers.write32(Reg32::AQA, last << 16 | last);
        self.registers.write64(Reg64::ASQ, self.memory.address(self.admin.sq()).0);
        self.registers.write64(Reg64::ACQ, self.memory.address(self.admin.cq()).0);
        self.registers.write32(Reg32::CC, Cc::ENTRY_SIZES);
        self.quiet = false;
        self.registers.write32(Reg32::CC, Cc::ENTRY_SIZES | Cc::ENABLE);
        self.phase = Phase::Enabling { until: now.after(self.cap.timeout()) };
    }

    /// Something went wrong that a reset may cure; if it did not so far, the controller is given up.
    fn fail(&mut self, error: Error, now: Instant) {
        let then = if self.nr_in_row < MAX_RESETS {
            self.nr_in_row += 1;
            self.nr_resets += 1;
            self.reset_by = Some(error);
            Then::Enable
        } else {
            Then::Fail(error)
        };
        self.disable(then, now);
    }

    /// Nothing is to be hoped for any more. Pages are let go by who is told so: none may be written then.
    pub(super) fn give_up(&mut self, error: Error) {
        self.phase = Phase::Failed(error);
        self.quiet = self.quiet || self.registers.cut_off();
        self.requests.fail(None, self.quiet);
    }

    fn send_admin(&mut self, admin: Admin, now: Instant) {
        let data = self.memory.address(memory::IDENTIFY);
        let nr_entries = self.io.nr_entries();
        let command = match admin {
            Admin::Controller => Command::identify_controller(data),
            Admin::Limits => Command::identify_limits(data),
            Admin::NumberOfQueues => Command::one_queue_pair(),
            Admin::NamespaceList => Command::active_namespaces(0, data),
            Admin::Namespace(index) => match self.found.get(index) {
                Some(found) => Command::identify_namespace(found.nsid, data),
                None => return self.send_admin(Admin::CreateCq, now),
            },
            Admin::CreateCq => {
                let at = self.memory.address(self.io.cq());
                Command::create_cq(self.io.id(), nr_entries, at, self.interrupt)
            }
            Admin::CreateSq => {
                let at = self.memory.address(self.io.sq());
                Command::create_sq(self.io.id(), nr_entries, at)
            }
        };
        // FFFFh means none in an error log.
        self.admin_cid = (self.admin_cid + 1) & 0x7fff;
        self.admin.push(&self.memory, self.admin_cid, &command);
        self.admin.ring(&mut self.registers, self.cap);
        let until = now.after(ADMIN_TIMEOUT);
        self.phase = Phase::Admin { admin, cid: self.admin_cid, until };
    }

    fn take_admin(&mut self, expected: u16) -> Result<Option<Result<(), Status>>, Broken> {
        let Some(entry) = self.admin.take(&self.memory)? else { return Ok(None) };
        self.admin.ring(&mut self.registers, self.cap);
        if entry.cid != expected {
            return Err(Broken::Command { queue: self.admin.id(), cid: entry.cid });
        }
        Ok(Some(entry.result.map_err(|(status, _)| status)))
    }

    /// An admin command was answered.
    fn answered(&mut self, admin: Admin, result: Result<(), Status>, now: Instant) {
        let result = match (admin, result) {
            (Admin::Namespace(index), result) => {
                self.identified(index, result);
                self.send_admin(Admin::Namespace(index + 1), now);
                Ok(())
            }
            (Admin::Limits, result) => {
                // Where it has none to tell, there are none.
                if result.is_ok() {
                    let mut data = [0; LIMITS_LEN];
                    self.memory.read_identify(&mut data);
                    self.max_deallocated = max_deallocated(&data);
                }
                self.send_admin(Admin::NumberOfQueues, now);
                Ok(())
            }
            (_, Err(status)) => Err(Error::Admin { opcode: admin.opcode(), status }),
            (Admin::Controller, Ok(())) => self.identified_controller(now),
            (Admin::NumberOfQueues, Ok(())) => {
                if self.version >= Version::V1_1 {
                    self.send_admin(Admin::NamespaceList, now);
                } else {
                    let nr = self.identity.as_ref().map_or(0, |identity| identity.nr_namespaces);
                    self.found = (1..=nr).take(MAX_NAMESPACES).map(unidentified).collect();
                    self.send_admin(Admin::Namespace(0), now);
                }
                Ok(())
            }
            (Admin::NamespaceList, Ok(())) => self.listed(now),
            (Admin::CreateCq, Ok(())) => {
                self.send_admin(Admin::CreateSq, now);
                Ok(())
            }
            (Admin::CreateSq, Ok(())) => {
                self.ready();
                Ok(())
            }
        };
        if let Err(error) = result {
            self.fail(error, now);
        }
    }

    fn identified_controller(&mut self, now: Instant) -> Result<(), Error> {
        let mut data = [0; CONTROLLER_LEN];
        self.memory.read_identify(&mut data);
        let identity = Identity::parse(&data)?;
        if self.identity.as_ref().is_some_and(|before| !identity.is_still(before)) {
            self.disable(Then::Fail(Error::Other), now);
            return Ok(());
        }
        self.identity = Some(identity);
        let has_limits = self.version >= Version::V2_0;
        self.send_admin(if has_limits { Admin::Limits } else { Admin::NumberOfQueues }, now);
        Ok(())
    }

    /// The active namespaces are listed: identifiers that rise, up to the first 0.
    fn listed(&mut self, now: Instant) -> Result<(), Error> {
        let mut list = [0; 4 * MAX_NAMESPACES];
        self.memory.read_identify(&mut list);
        let ids = list.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        let mut after = 0;
        for found in ids.take_while(|&id| id != 0) {
            if found <= after || found == u32::MAX {
                return Err(Broken::NamespaceList { after, found }.into());
            }
            self.found.push(unidentified(found));
            after = found;
        }
        self.send_admin(Admin::Namespace(0), now);
        Ok(())
    }

    fn identified(&mut self, index: usize, result: Result<(), Status>) {
        let (Some(found), Some(identity)) = (self.found.get_mut(index), &self.identity) else {
            return;
        };
        let mut data = [0; NAMESPACE_LEN];
        self.memory.read_identify(&mut data);
        found.disk = match result {
            Ok(()) => Disk::parse(&data, identity),
            Err(status) => Err(Unusable::Status(status)),
        };
    }

    /// The I/O queues are there. After a reset a namespace that is not what it was is lost.
    fn ready(&mut self) {
        self.phase = Phase::Running;
        let mut found = mem::take(&mut self.found);
        if !self.started {
            found.retain(|found| found.disk != Err(Unusable::Inactive));
            self.requests.set_nr_namespaces(found.len());
            self.namespaces = found;
            self.started = true;
            return;
        }
        for (index, namespace) in self.namespaces.iter_mut().enumerate() {
            if namespace.disk.is_ok() && !found.contains(namespace) {
                namespace.disk = Err(Unusable::Changed);
                self.requests.fail(Some(index), true);
            }
        }
    }

    /// Requests go and come.
    fn run(&mut self, now: Instant) -> Stepped {
        self.collect();
        if let Some(error) = self.trouble.take() {
            self.fail(error, now);
            return Stepped::On;
        }
        self.publish();
        if self.stops && self.requests.all_over() {
            let cc = self.registers.read32(Reg32::CC) & !Cc::SHUTDOWN_MASK;
            self.registers.write32(Reg32::CC, cc | Cc::SHUTDOWN_NORMAL);
            self.phase = Phase::ShuttingDown { until: now.after(self.shutdown_timeout()) };
            return Stepped::On;
        }
        if !self.requests.any_in_flight() {
            self.check_at = None;
            return Stepped::Waits(None);
        }
        let check_at = *self.check_at.get_or_insert(now.after(CHECK));
        if now >= check_at {
            if let Err(error) = self.check(now) {
                match error {
                    Error::Gone => self.give_up(error),
                    _ => self.fail(error, now),
                }
                return Stepped::On;
            }
            self.check_at = Some(now.after(CHECK));
        }
        Stepped::Waits(match self.interrupt {
            Interrupt::Vector(_) => self.check_at,
            Interrupt::Polled => Some(now.after(POLL_IO)),
        })
    }

    /// Whether it is well, and answers in time.
    fn check(&mut self, now: Instant) -> Result<(), Error> {
        let status = Csts(self.registers.read32(Reg32::CSTS));
        if status.is_gone() {
            Err(Error::Gone)
        } else if status.is_fatal() {
            Err(Error::Fatal)
        } else if !status.is_ready() {
            Err(Error::Disabled)
        } else if self.requests.check_time(now) {
            Err(Error::Timeout)
        } else {
            Ok(())
        }
    }

    fn shutdown_timeout(&self) -> Duration {
        let told_us = self.identity.as_ref().map_or(0, |identity| identity.shutdown_us);
        Duration::from_micros(told_us.into()).clamp(SHUTDOWN[0], SHUTDOWN[1])
    }
}

/// A namespace that was only listed.
const fn unidentified(nsid: u32) -> Namespace {
    Namespace { nsid: NamespaceId(nsid), disk: Err(Unusable::Inactive) }
}
