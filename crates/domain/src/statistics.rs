//! What the vbds have done, as dom0 is told.

use alloc::format;
use alloc::string::String;
use core::fmt::{self, Write as _};

use blkback::Stats;
use xenstore::Request;

use crate::domain::Domain;
use crate::inbox::Tag;
use crate::platform::Platform;
use crate::vbd::{Identity, Ring, Vbd, VbdKey};

impl<P: Platform> Domain<P> {
    /// What a person wants to know of the vbds' work, and of what it takes.
    pub(crate) fn describe_work(&self, platform: &P) -> String {
        let mut text = format!("{} {}\n", self.describe_pool(), self.describe_held(platform));
        for vbd in self.vbds.iter() {
            let (mut nr_in_flight, mut nr_mapped) = (0, 0);
            for Ring { queue, .. } in &vbd.rings {
                nr_in_flight += queue.ring.nr_in_flight();
                nr_mapped += queue.nr_mapped();
            }
            let disk = vbd.disk().and_then(|id| self.disks.get(id));
            let line = Line {
                key: vbd.id.key,
                disk: disk.and_then(|entry| entry.name.as_deref()).unwrap_or("-"),
                state: state(vbd),
                nr_rings: vbd.rings.len(),
                nr_in_flight,
                nr_mapped,
                stats: &vbd.stats(),
            };
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// Says in `data/usage` what is in use, when that has changed and nothing is on its way back.
    pub(crate) fn tell_usage(&mut self, platform: &mut P) {
        let nr_watches = self.xenstore.client.nr_watches();
        if !(self.usage_changed || nr_watches != self.told_watches) || self.is_clearing() {
            return;
        }
        self.usage_changed = false;
        self.told_watches = nr_watches;
        let usage = format!(
            "free_pages={} total_pages={} vbds={} disks={} {}",
            self.pool.nr_free(),
            self.pool.nr_total(),
            self.vbds.len(),
            self.disks.iter().count(),
            self.describe_held(platform),
        );
        self.submit(platform, Request::Write("data/usage", usage.as_bytes()), Tag::Usage);
    }

    /// What we hold of others.
    fn describe_held(&self, platform: &P) -> String {
        format!(
            "handles={} ports={} watches={} heap_peak_bytes={}",
            platform.nr_handles(),
            platform.nr_ports(),
            self.xenstore.client.nr_watches(),
            platform.heap_peak_bytes(),
        )
    }
}

/// How far a vbd has come, in a word.
fn state<M>(vbd: &Vbd<M>) -> &'static str {
    match vbd.identity {
        Identity::Refused { .. } => "refused",
        // In state 5, too: it is served until its frontend lets go.
        _ if vbd.handshake.has_ring() => "connected",
        _ if vbd.handshake.is_closed() => "closed",
        _ => "waiting",
    }
}

/// A vbd's line. It has room in a part of an answer, whatever the numbers.
struct Line<'a> {
    key: VbdKey,
    disk: &'a str,
    state: &'static str,
    nr_rings: usize,
    nr_in_flight: u32,
    nr_mapped: usize,
    stats: &'a Stats,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, disk, state, nr_rings, nr_in_flight, nr_mapped, stats } = self;
        write!(f, "vbd id={key} disk={disk} state={state}")?;
        let counters = [
            ("rings", *nr_rings as u64),
            ("in_flight", u64::from(*nr_in_flight)),
            ("reads", stats.nr_reads),
            ("sectors_read", stats.nr_sectors_read),
            ("writes", stats.nr_writes),
            ("sectors_written", stats.nr_sectors_written),
            ("flushes", stats.nr_flushes),
            ("barriers", stats.nr_barriers),
            ("discards", stats.nr_discards),
            ("sectors_discarded", stats.nr_sectors_discarded),
            ("errors", stats.nr_errors),
            ("mapped", *nr_mapped as u64),
        ];
        for (name, count) in counters {
            write!(f, " {name}={count}")?;
        }
        let Stats { at_hand, segments, .. } = stats;
        write!(f, " at_hand={at_hand} segments={segments}")
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Line, Stats, VbdKey};
    use crate::conversation::ROOM;
    use blkback::Histogram;
    use catalog::Name;
    use std::string::ToString;
    use xen_abi::DomId;

    #[test]
    fn the_longest_line_has_room_in_a_part() {
        let mut every_bucket = Histogram::default();
        (0..13).for_each(|log2| every_bucket.count(1 << log2));
        let line = Line {
            key: VbdKey { frontend: DomId(u16::MAX), devid: u32::MAX },
            disk: &"d".repeat(Name::MAX_LEN),
            state: "connected",
            nr_rings: usize::MAX,
            nr_in_flight: u32::MAX,
            nr_mapped: usize::MAX,
            stats: &Stats {
                nr_reads: u64::MAX,
                nr_writes: u64::MAX,
                nr_flushes: u64::MAX,
                nr_barriers: u64::MAX,
                nr_discards: u64::MAX,
                nr_sectors_read: u64::MAX,
                nr_sectors_written: u64::MAX,
                nr_sectors_discarded: u64::MAX,
                nr_errors: u64::MAX,
                at_hand: every_bucket,
                segments: every_bucket,
            },
        };
        // Their counts can be longer than the one digit they have here.
        let counts = 2 * 13 * (u64::MAX.to_string().len() - 1);
        let len = line.to_string().len() + "\n".len() + counts;
        assert!(len <= ROOM, "{len} bytes");
    }
}
