//! The words of the command line, where a domain is started without one: dom0 writes them to xenstore.

use alloc::vec::Vec;
use core::time::Duration;

use xen_abi::{Instant, SharedMemory};
use xenstore::{Client, Error, Event, Notify, Reply, Request};

/// Where they are read, in our own directory. The directory is there as libxl makes it
/// (`driver_domain=1`), and what dom0 writes there is ours to read.
pub(crate) const NODE: &str = "data/config";

/// How long they are waited for.
pub(crate) const LIMIT: Duration = Duration::from_secs(2);

/// How long after an answer they are asked for again.
const PAUSE: Duration = Duration::from_millis(100);

/// What time is spent by.
pub(crate) trait Waiting {
    fn now(&self) -> Instant;

    /// Sends an event to xenstored.
    fn notify(&mut self);

    /// Waits for an event of xenstored's, or until `deadline`. May return early.
    fn wait(&mut self, deadline: Option<Instant>);
}

/// Reads them. `None` where dom0 has not written them within [`LIMIT`], or xenstored cannot be
/// understood. `page` is as it was found, but for its indices: no answer is left in it.
pub(crate) fn read(page: &impl SharedMemory, waiting: &mut impl Waiting) -> Option<Vec<u8>> {
    let mut client = Client::new(page);
    let end = waiting.now().after(LIMIT);
    loop {
        client.submit(Request::Read(NODE), ()).ok()?;
        match answer(&mut client, page, waiting)? {
            Ok(words) => return Some(words),
            Err(Error::Enoent) if waiting.now() < end => {}
            Err(_) => return None,
        }
        let next = waiting.now().after(PAUSE);
        while waiting.now() < next {
            waiting.wait(Some(next));
        }
    }
}

/// The answer to the one request there is, however long it takes: it must not be left to whoever
/// speaks to xenstored next.
fn answer(
    client: &mut Client<()>,
    page: &impl SharedMemory,
    waiting: &mut impl Waiting,
) -> Option<Result<Vec<u8>, Error>> {
    let answer = loop {
        if client.send(page).ok()? == Notify::Yes {
            waiting.notify();
        }
        match client.receive(page).ok()? {
            Some(Event::Reply { result: Ok(Reply::Value(words)), .. }) => break Ok(words.to_vec()),
            Some(Event::Reply { result, .. }) => break Err(result.err()?),
            // Of an earlier life.
            Some(Event::Watch { .. } | Event::Stray(_)) => {}
            None => waiting.wait(None),
        }
    };
    // xenstored may wait for the room that the answer was in.
    if client.send(page).ok()? == Notify::Yes {
        waiting.notify();
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{LIMIT, NODE, Waiting, read};
    use sim::toolstack::{DomainKind, create_domain};
    use sim::{Machine, Region};
    use xen_abi::{DomId, EvtchnPort, Instant, SharedMemory};

    const DOM0: DomId = DomId(0);
    /// In `struct xenstore_domain_interface` (`io/xs_wire.h`).
    const RSP_CONS: usize = 2056;
    const RSP_PROD: usize = 2060;

    struct Host {
        machine: Machine,
        domid: DomId,
        port: EvtchnPort,
        page: Region,
        begun: Instant,
        /// When dom0 writes which words.
        written: Option<(Instant, &'static [u8])>,
    }

    impl Host {
        fn new(seed: u64) -> Self {
            let machine = Machine::new(seed);
            let domid = create_domain(&machine, DomainKind::DriverDomain);
            let (page, port) = machine.connect_xenstore(domid);
            let begun = machine.now();
            Self { machine, domid, port, page: Region::mapped(vec![page]), begun, written: None }
        }

        fn path(&self) -> String {
            format!("/local/domain/{}/{NODE}", self.domid.0)
        }
    }

    impl Waiting for Host {
        fn now(&self) -> Instant {
            self.machine.now()
        }

        fn notify(&mut self) {
            self.machine.events().send(self.domid, self.port).unwrap();
        }

        fn wait(&mut self, deadline: Option<Instant>) {
            self.machine.step_xenstored();
            let step = self.now().after(Duration::from_millis(1));
            self.machine.advance_to(deadline.map_or(step, |deadline| deadline.min(step)));
            if let Some((_, words)) = self.written.take_if(|(at, _)| *at <= self.machine.now()) {
                self.machine.xs(DOM0).write(&self.path(), words).unwrap();
            }
        }
    }

    fn millis(host: &Host) -> u64 {
        (host.now().as_ns() - host.begun.as_ns()) / 1_000_000
    }

    #[test]
    fn what_dom0_writes_in_time_is_read() {
        for (seed, at_ms) in (1..).zip([0, 1, 99, 700, 1_900]) {
            let mut host = Host::new(seed);
            let page = host.page.clone();
            host.written = Some((host.now().after(Duration::from_millis(at_ms)), b"disk=a,ram"));
            assert_eq!(read(&page, &mut host).as_deref(), Some(&b"disk=a,ram"[..]), "{at_ms} ms");
            assert!((at_ms..at_ms + 200).contains(&millis(&host)), "{} ms", millis(&host));
            // Everything is taken, so that the next speaker begins with nothing.
            assert_eq!(page.load_u32(RSP_CONS), page.load_u32(RSP_PROD));
        }
    }

    #[test]
    fn long_words_come_whole() {
        let mut host = Host::new(1);
        let page = host.page.clone();
        let words: &'static str = "x".repeat(4000).leak();
        host.written = Some((host.now(), words.as_bytes()));
        assert_eq!(read(&page, &mut host).as_deref(), Some(words.as_bytes()));
    }

    #[test]
    fn what_nobody_writes_is_waited_for_no_longer_than_is_said() {
        let mut host = Host::new(1);
        let page = host.page.clone();
        assert_eq!(read(&page, &mut host), None);
        let limit = u64::try_from(LIMIT.as_millis()).unwrap();
        assert!((limit..limit + 200).contains(&millis(&host)), "{} ms", millis(&host));
        assert_eq!(page.load_u32(RSP_CONS), page.load_u32(RSP_PROD));
    }

    #[test]
    fn a_page_that_cannot_be_is_left_alone() {
        let mut host = Host::new(1);
        let page = host.page.clone();
        page.store_u32(RSP_PROD, 5000);
        assert_eq!(read(&page, &mut host), None);
    }
}
