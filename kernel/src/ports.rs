//! Which ports are ours, and how the loop waits for each.

use xen_abi::EvtchnPort;

const WORD_BITS: u32 = u64::BITS;

/// The bound ports. The last one that an event was taken from is *hot*: it is the one that
/// `SCHEDOP_poll` is told of. Upcalls tell of the others.
#[derive(Debug)]
pub(crate) struct PortSet {
    bound: Bitmap,
    hot: Option<EvtchnPort>,
    /// Words up to the highest port that was ever in: what there is to look through.
    nr_words: usize,
}

/// A bit a port, in Xen's order.
type Bitmap = [u64; PortSet::NR_WORDS];

/// A port past what the 2-level ABI has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NoSuchPort;

impl PortSet {
    /// Words of a bitmap of all ports (`EVTCHN_2L_NR_CHANNELS`, `event_channel.h`).
    pub(crate) const NR_WORDS: usize = 64;

    pub(crate) const fn new() -> Self {
        Self { bound: [0; Self::NR_WORDS], hot: None, nr_words: 0 }
    }

    /// Adds `port`. One that is in already stays as it is.
    pub(crate) fn insert(&mut self, port: EvtchnPort) -> Result<(), NoSuchPort> {
        let (word, bit) = place(port).ok_or(NoSuchPort)?;
        self.bound[word] |= bit;
        self.nr_words = self.nr_words.max(word + 1);
        Ok(())
    }

    /// Takes `port` out. One that is not in is left alone.
    pub(crate) fn remove(&mut self, port: EvtchnPort) {
        let Some((word, bit)) = place(port) else { return };
        self.bound[word] &= !bit;
        self.hot.take_if(|hot| *hot == port);
    }

    /// Makes a port that is in the hot one.
    pub(crate) fn heat(&mut self, port: EvtchnPort) {
        self.hot = Some(port);
    }

    /// The port to poll.
    pub(crate) fn hot(&self) -> Option<EvtchnPort> {
        self.hot
    }

    /// The other ports: each word's index, and its bits.
    pub(crate) fn others(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let hot = self.hot.and_then(place);
        self.bound[..self.nr_words].iter().enumerate().filter_map(move |(word, &bound)| {
            let hot = hot.map_or(0, |(at, bit)| if at == word { bit } else { 0 });
            let others = bound & !hot;
            (others != 0).then_some((word, others))
        })
    }

    /// How many ports are in.
    pub(crate) fn nr_bound(&self) -> usize {
        self.bound.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether a port of ours has its bit set in what `pending` gives for a word's index.
    pub(crate) fn any(&self, pending: impl Fn(usize) -> u64) -> bool {
        let bound = &self.bound[..self.nr_words];
        bound.iter().enumerate().any(|(word, bound)| *bound != 0 && pending(word) & bound != 0)
    }

    /// The first port of ours from `start` on, round past the highest port, whose bit is set in
    /// what `pending` gives for a word's index.
    pub(crate) fn next(
        &self,
        start: EvtchnPort,
        pending: impl Fn(usize) -> u64,
    ) -> Option<EvtchnPort> {
        let (start_word, start_bit) =
            place(start).filter(|&(word, _)| word < self.nr_words).unwrap_or((0, 1));
        let before_start = start_bit - 1;
        let find = |word: usize, wanted: u64| {
            let found = if wanted == 0 { 0 } else { pending(word) & wanted };
            (found != 0).then(|| port_at(word, found))
        };
        // The word that the search begins in comes twice: its upper bits first, its lower ones last.
        let upper = (start_word..self.nr_words).find_map(|word| {
            let skipped = if word == start_word { before_start } else { 0 };
            find(word, self.bound[word] & !skipped)
        });
        upper.or_else(|| {
            (0..self.nr_words.min(start_word + 1)).find_map(|word| {
                let kept = if word == start_word { before_start } else { u64::MAX };
                find(word, self.bound[word] & kept)
            })
        })
    }
}

/// The word and the bit of a port; `None` past the last.
pub(crate) fn place(port: EvtchnPort) -> Option<(usize, u64)> {
    let word = usize::try_from(port.0 / WORD_BITS).ok()?;
    (word < PortSet::NR_WORDS).then_some((word, 1 << (port.0 % WORD_BITS)))
}

/// The port of the lowest bit set in `bits`, the word at `word`.
fn port_at(word: usize, bits: u64) -> EvtchnPort {
    let word = u32::try_from(word).unwrap_or(0);
    EvtchnPort(word * WORD_BITS + bits.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::{NoSuchPort, PortSet};
    use xen_abi::EvtchnPort;

    fn set(ports: impl IntoIterator<Item = u32>) -> PortSet {
        let mut set = PortSet::new();
        for port in ports {
            set.insert(EvtchnPort(port)).unwrap();
        }
        set
    }

    fn others(set: &PortSet) -> Vec<u32> {
        let bits = |(word, bits): (usize, u64)| {
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word as u32 * 64 + bit)
        };
        set.others().flat_map(bits).collect()
    }

    #[test]
    fn a_port_is_in_once() {
        let set = set([5, 5, 4095]);
        assert_eq!(others(&set), [5, 4095]);
        assert_eq!((set.hot(), set.nr_bound()), (None, 2));
    }

    #[test]
    fn one_port_is_hot_and_the_others_are_not() {
        let mut set = set([3, 64, 70]);
        set.heat(EvtchnPort(64));
        assert_eq!((set.hot(), others(&set)), (Some(EvtchnPort(64)), [3, 70].into()));
        set.heat(EvtchnPort(3));
        assert_eq!((set.hot(), others(&set)), (Some(EvtchnPort(3)), [64, 70].into()));
    }

    #[test]
    fn a_port_that_goes_is_not_hot_any_more() {
        let mut set = set([3, 64]);
        set.heat(EvtchnPort(64));
        set.remove(EvtchnPort(3));
        set.remove(EvtchnPort(9999));
        assert_eq!((set.hot(), others(&set)), (Some(EvtchnPort(64)), [].into()));
        set.remove(EvtchnPort(64));
        assert_eq!((set.hot(), set.nr_bound()), (None, 0));
        set.insert(EvtchnPort(64)).unwrap();
        assert_eq!((set.hot(), others(&set)), (None, [64].into()));
        assert!(!set.any(|word| if word == 0 { 1 << 3 } else { 0 }));
    }

    #[test]
    fn there_is_no_port_4096() {
        assert_eq!(PortSet::new().insert(EvtchnPort(4096)), Err(NoSuchPort));
    }

    #[test]
    fn only_our_own_ports_are_found() {
        let set = set([3, 64, 4095]);
        assert_eq!(set.next(EvtchnPort(0), |_| u64::MAX), Some(EvtchnPort(3)));
        assert_eq!(set.next(EvtchnPort(4), |_| u64::MAX), Some(EvtchnPort(64)));
        assert_eq!(set.next(EvtchnPort(65), |_| u64::MAX), Some(EvtchnPort(4095)));
        assert_eq!(set.next(EvtchnPort(0), |_| !(1 << 3) & !1), Some(EvtchnPort(4095)));
        assert_eq!(set.next(EvtchnPort(0), |_| 0), None);
        assert!(set.any(|word| if word == 63 { 1 << 63 } else { 0 }));
        assert!(!set.any(|word| if word == 63 { 0 } else { 1 << 1 }));
    }

    #[test]
    fn the_search_goes_round() {
        let set = set([3, 9]);
        assert_eq!(set.next(EvtchnPort(10), |_| u64::MAX), Some(EvtchnPort(3)));
        assert_eq!(set.next(EvtchnPort(4), |_| 1 << 3), Some(EvtchnPort(3)));
        assert_eq!(set.next(EvtchnPort(4096), |_| u64::MAX), Some(EvtchnPort(3)));
        assert_eq!(set.next(EvtchnPort(70), |_| u64::MAX), Some(EvtchnPort(3)));
        assert_eq!(PortSet::new().next(EvtchnPort(0), |_| u64::MAX), None);
    }

    #[test]
    fn every_port_is_found_from_everywhere() {
        let set = set([0, 63, 64, 127, 200]);
        for start in 0..300 {
            for port in [0, 63, 64, 127, 200] {
                let pending = |word| if word == port as usize / 64 { 1 << (port % 64) } else { 0 };
                assert_eq!(set.next(EvtchnPort(start), pending), Some(EvtchnPort(port)));
            }
        }
    }
}
