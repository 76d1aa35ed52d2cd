//! From a controller that was found to one that is ready, and what cannot be.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "a test may")]

mod simulated;

use std::time::Duration;

use nvme::{
    AdminOpcode, Broken, EntrySizes, Error, Identity, Interrupt, Namespace, NamespaceId, State,
    Status, Support, Unusable, Version,
};
use simulated::{Act, Bad, Bus, CAP, Lab, SimNamespace, attach, device};
use store::{Access, BlockSize, DiscardLimits, Flushing, Geometry, SecureDiscard};
use xen_abi::Instant;

const MS: Duration = Duration::from_millis(1);

fn with(change: impl FnOnce(&mut simulated::Device)) -> Bus {
    let bus = device(1, 8);
    change(&mut bus.device());
    bus
}

/// What becomes of such a controller.
fn state(change: impl FnOnce(&mut simulated::Device)) -> State {
    let mut lab = Lab::attach(with(change));
    lab.settle();
    lab.controller.state()
}

#[test]
fn the_commands_of_a_bring_up() {
    let mut lab = Lab::attach(with(|device| {
        device.namespaces.push(SimNamespace::new(7, 12, 16));
    }));
    assert_eq!(lab.controller.state(), State::Starting);
    assert_eq!(lab.controller.namespaces(), []);
    assert_eq!(lab.controller.max_sectors(), 0);
    assert_eq!(lab.controller.reserve(1), None);
    lab.settle();
    assert_eq!(lab.controller.state(), State::Ready);
    assert_eq!(lab.controller.resets(), (0, None));
    assert_eq!(lab.controller.version(), Version(0x0001_0400));
    assert_eq!(lab.controller.version().to_string(), "1.4.0");
    let device = lab.device();
    // OPC, NSID, CDW10, CDW11.
    let sent: Vec<_> =
        device.admin_log.iter().map(|sqe| (sqe.opcode, sqe.nsid, sqe.cdw[0], sqe.cdw[1])).collect();
    let expected = [
        (0x06, 0, 0x01, 0),
        (0x09, 0, 0x07, 0),
        (0x06, 0, 0x02, 0),
        (0x06, 1, 0x00, 0),
        (0x06, 7, 0x00, 0),
        (0x05, 0, 63 << 16 | 1, 1 << 16 | 0b11),
        (0x01, 0, 63 << 16 | 1, 1 << 16 | 0b01),
    ];
    assert_eq!(sent, expected);
    assert_eq!(device.cc_log, [0, 0x0046_0000, 0x0046_0001]);
}

#[test]
fn who_has_limits_of_discards_is_asked_for_them() {
    for act in [Act::Do, Act::Fail(Bad(0, 0x02, true))] {
        let lab = Lab::new(with(|device| {
            device.vs = 0x0002_0000;
            device.act = Box::new(move |sqe| match (sqe.opcode, sqe.cdw[0]) {
                (0x06, 0x06) => act,
                _ => Act::Do,
            });
        }));
        let device = lab.device();
        let sent: Vec<_> = device.admin_log.iter().map(|sqe| (sqe.opcode, sqe.cdw[0])).collect();
        assert_eq!(sent[..4], [(0x06, 0x01), (0x06, 0x06), (0x09, 0x07), (0x06, 0x02)]);
    }
}

#[test]
fn what_it_says_of_itself_is_checked_and_kept() {
    let lab = Lab::new(with(|device| {
        let mut large = SimNamespace::new(2, 12, 100);
        // NSFEAT, NPWG of 4 blocks, NPDG of 16 blocks, NSATTR.
        large.identify = vec![(24, vec![0x10]), (64, vec![3, 0]), (68, vec![15, 0]), (99, vec![1])];
        device.namespaces.push(large);
    }));
    let identity = lab.controller.identity().unwrap();
    assert_eq!(identity.serial, "SERIAL 42");
    assert_eq!(identity.model, "A ?[31mSSD");
    assert_eq!(identity.firmware, "1.0");
    let discard = DiscardLimits { granularity_bytes: 512, secure: SecureDiscard::No };
    let small = nvme::Disk {
        geometry: Geometry {
            nr_sectors: 1024,
            logical: BlockSize::B512,
            physical_bytes: 512,
            access: Access::ReadWrite,
            discard: Some(discard),
        },
        flushing: Flushing::Offered,
        write_zeroes: Support::Offered,
    };
    let large = nvme::Disk {
        geometry: Geometry {
            nr_sectors: 800,
            logical: BlockSize::B4096,
            physical_bytes: 16384,
            access: Access::ReadOnly,
            discard: Some(DiscardLimits { granularity_bytes: 65536, ..discard }),
        },
        ..small
    };
    let expected = [(1, small), (2, large)]
        .map(|(nsid, disk)| Namespace { nsid: NamespaceId(nsid), disk: Ok(disk) });
    assert_eq!(lab.controller.namespaces(), expected);

    let lab = Lab::new(with(|device| (device.vwc, device.oncs) = (0, 0)));
    let disk = lab.controller.disk(NamespaceId(1)).unwrap();
    assert_eq!(disk.flushing, Flushing::No);
    assert_eq!(disk.geometry.discard, None);
    assert_eq!(disk.write_zeroes, Support::No);
}

#[test]
fn a_namespace_that_cannot_be_used_is_named_with_the_reason() {
    let lab = Lab::new(with(|device| {
        let odd = [
            vec![(128, vec![8, 0, 9])],
            vec![(29, vec![2])],
            vec![(130, vec![10])],
            vec![(26, vec![3]), (25, vec![2])],
            vec![(0, vec![0xff; 8])],
            // Larger than 8 EiB by one block.
            vec![(0, (1u64 << 51 | 1).to_le_bytes().to_vec()), (130, vec![12])],
            vec![(0, vec![0; 8])],
            vec![],
            // The 17th format, the upper part of whose number stands apart.
            vec![(26, vec![0x20]), (25, vec![31])],
        ];
        for (nsid, identify) in (2..).zip(odd) {
            device.namespaces.push(SimNamespace { identify, ..SimNamespace::new(nsid, 9, 8) });
        }
        device.act = Box::new(|sqe| match (sqe.opcode, sqe.nsid) {
            (0x06, 9) => Act::Fail(Bad(0, 0x82, false)),
            _ => Act::Do,
        });
    }));
    let found: Vec<_> = lab
        .controller
        .namespaces()
        .iter()
        .map(|namespace| (namespace.nsid.0, namespace.disk.map(|_| ())))
        .collect();
    let expected = [
        (1, Ok(())),
        (2, Err(Unusable::Metadata { bytes: 8, protection: 0 })),
        (3, Err(Unusable::Metadata { bytes: 0, protection: 2 })),
        (4, Err(Unusable::BlockSize { shift: 10 })),
        (5, Err(Unusable::Format { format: 3, last: 2 })),
        (6, Err(Unusable::TooLarge { nr_blocks: u64::MAX, shift: 9 })),
        (7, Err(Unusable::TooLarge { nr_blocks: 1 << 51 | 1, shift: 12 })),
        // The eighth has no blocks, and is not active.
        (9, Err(Unusable::Status(Status { sct: 0, sc: 0x82 }))),
        (10, Err(Unusable::Format { format: 16, last: 31 })),
    ];
    assert_eq!(found, expected);
    assert_eq!(lab.controller.disk(NamespaceId(2)), None);
    assert_eq!(
        Unusable::Metadata { bytes: 8, protection: 0 }.to_string(),
        "its blocks have 8 bytes of metadata, protection type 0"
    );
}

#[test]
fn a_physical_block_that_makes_no_sense_is_the_logical_one() {
    for npwg in [[2, 0], [0xff, 0xff]] {
        let lab = Lab::new(with(|device| {
            device.namespaces[0].identify = vec![(24, vec![0x10]), (64, npwg.to_vec())];
        }));
        let disk = lab.controller.disk(NamespaceId(1)).unwrap();
        assert_eq!(disk.geometry.physical_bytes, 512);
    }
}

#[test]
fn before_1_1_namespaces_are_tried_one_by_one() {
    let lab = Lab::new(with(|device| {
        device.vs = 0x0001_0000;
        device.namespaces.push(SimNamespace::new(3, 9, 8));
        device.nn = 4;
    }));
    let ids: Vec<u32> = lab.controller.namespaces().iter().map(|found| found.nsid.0).collect();
    assert_eq!(ids, [1, 3]);
    assert!(lab.device().admin_log.iter().all(|sqe| (sqe.opcode, sqe.cdw[0]) != (6, 2)));

    let lab = Lab::new(with(|device| (device.vs, device.nn) = (0x0001_0000, u32::MAX)));
    let last = lab.device().admin_log.iter().map(|sqe| sqe.nsid).max();
    assert_eq!(last, Some(32), "no more are tried");
}

#[test]
fn as_many_namespaces_as_are_known() {
    let lab = Lab::new(with(|device| {
        device.namespaces = (1..=40).map(|nsid| SimNamespace::new(nsid, 9, 8)).collect();
    }));
    assert_eq!(lab.controller.namespaces().len(), 32);
    let lab = Lab::new(with(|device| device.namespaces.clear()));
    assert_eq!(lab.controller.namespaces(), []);
}

#[test]
fn a_list_of_namespaces_rises() {
    for (list, after, found) in
        [(vec![1, 1], 1, 1), (vec![2, 1], 2, 1), (vec![1, u32::MAX], 1, u32::MAX)]
    {
        let state = state(|device| device.list = Some(list));
        assert_eq!(state, State::Failed(Broken::NamespaceList { after, found }.into()));
    }
}

#[test]
fn what_cannot_be_used_is_not_touched() {
    let refused = |change: fn(&mut simulated::Device)| {
        let bus = with(change);
        let error = attach(&bus, Interrupt::Polled).err();
        assert_eq!(bus.device().cc_log, []);
        error.unwrap()
    };
    assert_eq!(refused(|device| device.gone = true), Error::Gone);
    assert_eq!(refused(|device| device.cap &= !(1 << 37)), Error::CommandSets { css: 0 });
    let css = 0x80;
    assert_eq!(refused(|device| device.cap ^= 1 << 37 | 1 << 44), Error::CommandSets { css });
    assert_eq!(refused(|device| device.cap |= 1 << 48), Error::PageSize { shift: 13 });
    assert_eq!(refused(|device| device.cap &= !0xffff), Error::Queues { max: 1 });
    let short = Error::Registers { needed: 0x1000, len: 0xfff };
    assert_eq!(refused(|device| device.bar_len = 0xfff), short);
    let short = Error::Registers { needed: 0x1010, len: 0x100f };
    assert_eq!(refused(|device| device.bar_len = 0x100f), short);
    let short = Error::Registers { needed: 0x1000 + 3 * (4 << 15) + 4, len: 0x2000 };
    assert_eq!(refused(|device| device.cap |= 15 << 32), short);

    let bus = device(1, 0);
    let error = attach(&bus, Interrupt::Polled).err();
    assert_eq!(error, Some(Error::Frames { needed: 7, have: 6 }));
}

#[test]
fn doorbells_are_as_far_apart_as_it_says() {
    let mut lab = Lab::new(with(|device| {
        device.cap |= 5 << 32;
        device.bar_len = 0x1000 + 3 * 128 + 4;
    }));
    let tag = lab.read(0, 1);
    assert_eq!(lab.go(), [(tag, Ok(()))]);
}

#[test]
fn queues_are_as_short_as_it_says() {
    let mut lab = Lab::new(with(|device| device.cap = CAP & !0xffff | 1));
    assert_eq!(lab.device().queues[&1].nr_entries, 2);
    let tag = lab.read(0, 1);
    let buffer = lab.controller.reserve(1).unwrap();
    let request = store::Request::Read { sector: 0, buffer };
    let refused = lab.controller.submit(NamespaceId(1), store::Tag(9), request).unwrap_err();
    assert_eq!(refused.reason, store::Refusal::Full { max: 1 });
    assert_eq!(lab.go(), [(tag, Ok(()))]);
    // Both queues turn over many times.
    for _ in 0..9 {
        let tag = lab.write(5, 3, 1);
        assert_eq!(lab.go(), [(tag, Ok(()))]);
    }
    let lab = Lab::new(with(|device| device.cap |= 0xffff));
    assert_eq!(lab.device().queues[&1].nr_entries, 64);
}

#[test]
fn with_and_without_an_interrupt() {
    for (interrupt, cdw11) in [(Interrupt::Polled, 1), (Interrupt::Vector(3), 3 << 16 | 0b11)] {
        let bus = device(1, 8);
        let controller = attach(&bus, interrupt).unwrap();
        let now = Instant::from_ns(0);
        let mut lab = Lab { bus, controller, now, next_tag: 0, next_lent: 0 };
        lab.settle();
        assert_eq!(lab.device().queues[&1].cdw11, cdw11);
        assert_eq!(lab.step(), None, "nothing is in flight");
        lab.device().manual = true;
        lab.read(0, 1);
        let wait = match interrupt {
            Interrupt::Polled => Duration::from_micros(100),
            Interrupt::Vector(_) => Duration::from_secs(1),
        };
        assert_eq!(lab.step(), Some(lab.now.after(wait)));
    }
}

#[test]
fn a_controller_in_use_is_disabled_first() {
    // Enabled and ready; with other settings that stay until RDY is 0.
    let lab = Lab::new(with(|device| (device.cc, device.csts) = (0x0046_0001, 1)));
    assert_eq!(lab.device().cc_log, [0x0046_0000, 0x0046_0000, 0x0046_0001]);

    // Enabled and not ready yet: it is waited for, since to disable it is not defined.
    let mut lab = Lab::attach(with(|device| {
        (device.cc, device.csts, device.ready_delay) = (1, 0, 5);
        device.stuck = true;
    }));
    assert_eq!(lab.step(), Some(lab.now.after(MS)));
    assert_eq!(lab.device().cc_log, []);
    lab.device().stuck = false;
    lab.settle();
    assert_eq!(lab.controller.state(), State::Ready);
    assert_eq!(lab.device().cc_log, [0, 0x0046_0000, 0x0046_0001]);

    // That never becomes ready, or has failed.
    for (csts, at_least) in [(0, 1000), (2, 0)] {
        let mut lab = Lab::attach(with(|device| {
            (device.cc, device.csts) = (1, csts);
            device.stuck = true;
        }));
        while lab.device().cc_log.is_empty() {
            lab.now = lab.step().unwrap_or(lab.now);
        }
        assert!(lab.now >= Instant::from_ns(0).after(at_least * MS));
        assert!(lab.now <= Instant::from_ns(0).after((at_least + 2) * MS));
    }
}

#[test]
fn each_wait_has_an_end() {
    // CAP.TO is 1 s. It is tried four times.
    let mut lab = Lab::attach(with(|device| device.stuck = true));
    lab.settle();
    assert_eq!(lab.controller.state(), State::Failed(Error::NotReady { timeout_ms: 1000 }));
    assert_eq!(lab.controller.resets(), (3, Some(Error::NotReady { timeout_ms: 1000 })));
    assert_eq!(lab.now, Instant::from_ns(4_000_000_000));
    assert!(lab.controller.retire().is_some());

    let stuck = |device: &mut simulated::Device| {
        (device.cc, device.csts, device.stuck) = (1, 1, true);
        device.cap &= !(0xff << 24);
    };
    let mut lab = Lab::attach(with(stuck));
    lab.settle();
    assert_eq!(lab.controller.state(), State::Failed(Error::NotDisabled { timeout_ms: 500 }));
    assert_eq!(lab.now, Instant::from_ns(500_000_000));
    assert!(lab.controller.retire().is_some(), "it never had our frames");

    let mut lab = Lab::attach(with(|device| {
        device.act = Box::new(|sqe| if sqe.opcode == 0x05 { Act::Hang } else { Act::Do });
    }));
    let end = Instant::from_ns(0).after(Duration::from_secs(200));
    lab.run_until(end);
    let opcode = AdminOpcode::CreateIoCq;
    assert_eq!(lab.controller.state(), State::Failed(Error::AdminTimeout { opcode }));
    assert!(lab.now >= Instant::from_ns(0).after(Duration::from_secs(120)));
    assert_eq!(lab.device().cc & 1, 0, "it is disabled in the end");
    assert_eq!(lab.controller.retire().map(|frames| frames.len()), Some(14));
}

#[test]
fn what_fails_is_tried_again_and_given_up() {
    let status = Status { sct: 1, sc: 0x01 };
    for (code, opcode) in [
        (0x01, AdminOpcode::CreateIoSq),
        (0x05, AdminOpcode::CreateIoCq),
        (0x06, AdminOpcode::Identify),
        (0x09, AdminOpcode::SetFeatures),
    ] {
        let bus =
            with(|device| {
                device.act = Box::new(move |sqe| {
                    if sqe.opcode == code { Act::Fail(Bad(1, 1, false)) } else { Act::Do }
                });
            });
        let mut lab = Lab::attach(bus);
        lab.settle();
        let error = Error::Admin { opcode, status };
        assert_eq!(lab.controller.state(), State::Failed(error));
        let nr_enabled = lab.device().cc_log.iter().filter(|&&cc| cc & 1 == 1).count();
        assert_eq!(nr_enabled, 4);
    }
    // Once is no harm, whichever it is: but for a namespace itself.
    for bad in [1, 2, 3, 5, 6] {
        let mut lab = Lab::attach(with(|device| {
            let mut nr = 0;
            device.act = Box::new(move |_| {
                nr += 1;
                if nr == bad { Act::Fail(Bad(0, 6, false)) } else { Act::Do }
            });
        }));
        lab.settle();
        assert_eq!(lab.controller.state(), State::Ready);
        assert_eq!(lab.controller.resets().0, 1);
        assert_eq!(lab.controller.namespaces().len(), 1);
    }
}

#[test]
fn other_sizes_of_queue_entries_are_not_known() {
    for (sizes, sqes, cqes) in [([0x67, 0x44], 7, 4), ([0x66, 0x55], 6, 5), ([0x56, 0x44], 6, 4)] {
        let state = state(|device| device.identify = vec![(512, sizes.to_vec())]);
        assert_eq!(state, State::Failed(EntrySizes { sqes, cqes }.into()));
    }
    let _ = state(|device| device.identify = vec![(512, vec![0x76, 0x54])]);
}

#[test]
fn it_is_disabled_while_it_is_asked() {
    let mut lab = Lab::attach(with(|device| device.act = Box::new(|_| Act::Hang)));
    while lab.device().pending.is_empty() {
        lab.now = lab.step().unwrap();
    }
    (lab.device().cc, lab.device().csts) = (0, 0);
    lab.device().pending.clear();
    lab.device().act = Box::new(|_| Act::Do);
    lab.settle();
    assert_eq!(lab.controller.state(), State::Ready);
    assert_eq!(lab.controller.resets(), (1, Some(Error::Disabled)));
}

#[test]
fn it_goes_away_or_fails_at_any_point() {
    for nr_reads in 1..25 {
        for gone in [true, false] {
            let mut lab = Lab::attach(device(1, 8));
            let mut hit = false;
            while lab.controller.state() == State::Starting {
                let next = lab.step();
                if lab.device().nr_status_reads >= nr_reads && !hit {
                    hit = true;
                    if gone {
                        lab.device().gone = true;
                    } else {
                        lab.device().csts |= 2;
                    }
                }
                lab.now = next.unwrap_or(lab.now);
            }
            let state = lab.controller.state();
            if gone && hit && state != State::Ready {
                assert_eq!(state, State::Failed(Error::Gone));
            } else {
                assert_eq!(state, State::Ready, "after {nr_reads}");
            }
        }
    }
}

#[test]
fn identify_is_parsed_from_any_bytes_that_are_right() {
    let mut data = [0xff; nvme::CONTROLLER_LEN];
    data[512..514].copy_from_slice(&[0x66, 0x44]);
    let identity = Identity::parse(&data).unwrap();
    assert_eq!(identity.serial, "?".repeat(20));
    data = [0; nvme::CONTROLLER_LEN];
    assert_eq!(Identity::parse(&data), Err(EntrySizes { sqes: 0, cqes: 0 }));
}
