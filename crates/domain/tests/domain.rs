//! The driver domain under a simulated hypervisor: what the toolstack, the console and xenstore see
//! of it.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use domain::{Domain, Next};
use sim::toolstack::{self, Detach, Device, DiskSpec, DomainKind, ToolstackError};
use sim::{Lab, Machine, SimPlatform};
use xen_abi::{DomId, Gfn, XenbusState};

const DOM0: DomId = DomId(0);

fn error_node(device: &Device) -> String {
    format!(
        "/local/domain/{}/error/backend/vbd/{}/{}/error",
        device.backend, device.frontend, device.devid
    )
}

fn usage(lab: &Lab) -> String {
    let path = format!("/local/domain/{}/data/usage", lab.domid());
    let usage = lab.machine().xs(DOM0).read(&path).unwrap();
    // The heap's peak is the platform's business.
    usage.split_once(" heap_peak_bytes=").unwrap().0.to_string()
}

/// Console lines since the first `seen` of them.
fn lines(lab: &Lab, seen: usize) -> Vec<String> {
    lab.machine().console().split_off(seen)
}

#[test]
fn a_vbds_life_is_a_few_lines() {
    let mut lab = Lab::new(1).memory_pages(1000).start();
    let seen = lab.machine().console().len();
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    lab.connect(disk);
    lab.detach(disk);
    let vbd = format!("vbd {guest}/51712");
    assert_eq!(
        lines(&lab, seen),
        [
            format!(
                "{vbd}: attached ram,size=1M, 2048 sectors, read-write; \
                 starts afresh after a reboot, not for save or migrate"
            ),
            format!("{vbd}: connected, x86_64-abi, 1 ring of 32 requests, persistent grants"),
            format!(
                "{vbd}: closed after 0 reads (0 sectors), 0 writes (0 sectors), 0 flushes, \
                 0 barriers, 0 discards (0 sectors), 0 errors"
            ),
            format!("{vbd}: detached"),
        ]
    );
}

#[test]
fn what_is_in_use_is_told_and_comes_back() {
    let mut lab = Lab::new(2).memory_pages(1000).start();
    // 16 frames are the engine's, 3 the pool's own.
    assert_eq!(
        usage(&lab),
        "free_pages=981 total_pages=981 vbds=0 disks=0 handles=0 ports=1 watches=3"
    );
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    lab.connect(disk);
    lab.settle();
    assert_eq!(
        usage(&lab),
        "free_pages=981 total_pages=981 vbds=1 disks=1 handles=1 ports=2 watches=4"
    );
    lab.random_io(disk, 500);
    lab.detach(disk);
    lab.settle();
    assert_eq!(
        usage(&lab),
        "free_pages=981 total_pages=981 vbds=0 disks=0 handles=0 ports=1 watches=3"
    );
    lab.assert_clean();
}

#[test]
fn a_target_that_cannot_be_served_says_why_and_leaves_nothing_behind() {
    let usable = 981 - 245;
    for (target, errno, reason) in [
        ("", 22, "``: no such disk, expected ram, null, vbd, a disk or an image".into()),
        ("floppy", 2, "there is no disk or image called floppy".into()),
        (
            "floppy,size=1M",
            22,
            "`size=1M`: unknown option, expected cow, cow=, ro, grants= or handover".into(),
        ),
        ("ram", 22, "`ram`: needs size=".into()),
        ("ram,size=0", 22, "`size=0`: a size of 0".into()),
        (
            "ram,size=big",
            22,
            "`size=big`: not a size, expected a number of bytes or one with K, M, G or T".into(),
        ),
        (
            "ram,size=1M,rw",
            22,
            "`rw`: unknown option, expected size=, cap=, block=, ro or grants=".into(),
        ),
        (
            "ram,size=4M",
            12,
            format!("the full disk takes 1025 pages, all disks together can have {usable}"),
        ),
    ] {
        let mut lab = Lab::new(3).memory_pages(1000).start();
        let guest = lab.create_guest();
        let seen = lab.machine().console().len();
        let error = lab.try_attach(guest, &DiskSpec::new("xvda", target)).unwrap_err();
        let closed = Some(XenbusState::Closed);
        assert_eq!(
            error,
            ToolstackError::TimedOut { wanted: XenbusState::InitWait, found: closed },
            "{target}"
        );
        let disk = lab.device(guest, "xvda");
        let text = format!("cannot serve target={target}: {reason}");
        assert_eq!(lines(&lab, seen), [format!("vbd {guest}/51712: {text}")]);
        let node = error_node(&disk);
        assert_eq!(lab.machine().xs(DOM0).read(&node).unwrap(), format!("{errno} {text}"));

        lab.try_detach(disk, Detach::Polite).unwrap();
        lab.settle();
        assert!(!lab.machine().xs(DOM0).exists(&node), "{target}");
        let disk = lab.attach(guest, "xvda", "ram,size=1M");
        lab.connect(disk);
        lab.random_io(disk, 20);
        lab.detach(disk);
        lab.assert_clean();
    }
}

#[test]
fn an_error_goes_with_its_vbd_and_leaves_those_of_others() {
    let mut lab = Lab::new(11).start();
    let guests = [lab.create_guest(), lab.create_guest()];
    let disks = [(0, "xvda"), (0, "xvdb"), (1, "xvda")].map(|(n, vdev)| {
        lab.try_attach(guests[n], &DiskSpec::new(vdev, "floppy")).unwrap_err();
        lab.device(guests[n], vdev)
    });
    let there = |lab: &Lab| disks.map(|disk| lab.machine().xs(DOM0).exists(&error_node(&disk)));
    assert_eq!(there(&lab), [true, true, true]);
    for (n, expected) in
        [[false, true, true], [false, false, true], [false; 3]].into_iter().enumerate()
    {
        lab.try_detach(disks[n], Detach::Polite).unwrap();
        lab.settle();
        assert_eq!(there(&lab), expected);
    }
    lab.assert_clean();
}

/// Writes a frontend's keys as a guest that is no real one.
fn pretend(lab: &mut Lab, disk: &Device, keys: &[(&str, &str)]) {
    let xs = lab.machine().xs(disk.frontend);
    for (key, value) in keys {
        xs.write(&format!("{}/{key}", disk.frontend_path()), value).unwrap();
    }
    lab.run_for(Duration::from_secs(1));
}

#[test]
fn a_frontend_whose_keys_are_no_good_is_closed_and_may_try_again() {
    for (keys, reason) in [
        (&[][..], "the frontend has no event-channel"),
        (&[("event-channel", "8")][..], "the frontend has no ring-ref"),
        (&[("event-channel", "")][..], "the frontend's event-channel is no number"),
        (&[("event-channel", "1"), ("ring-ref", "-8")][..], "the frontend's ring-ref is no number"),
        (
            &[("event-channel", "1"), ("ring-ref", "4294967296")][..],
            "the frontend's ring-ref is no number",
        ),
        (
            &[("protocol", "vax-abi")][..],
            "the frontend's protocol is neither x86_64-abi nor x86_32-abi",
        ),
        (
            &[("ring-page-order", "6")][..],
            "the frontend's ring-page-order is 6, 0 to 5 were offered",
        ),
        (
            &[("ring-page-order", "2"), ("num-ring-pages", "8")][..],
            "the frontend's num-ring-pages is 8, which no ring-page-order is",
        ),
        (
            &[("num-ring-pages", "3")][..],
            "the frontend's num-ring-pages is 3, which no ring-page-order is",
        ),
        (
            &[("multi-queue-num-queues", "0")][..],
            "the frontend's multi-queue-num-queues is 0, 1 to 4 were offered",
        ),
        (
            &[("multi-queue-num-queues", "5")][..],
            "the frontend's multi-queue-num-queues is 5, 1 to 4 were offered",
        ),
        (
            &[("multi-queue-num-queues", "2"), ("event-channel", "1"), ("ring-ref", "8")][..],
            "the frontend has no queue-0/event-channel",
        ),
        (
            &[("feature-persistent", "yes")][..],
            "the frontend's feature-persistent is neither 0 nor 1",
        ),
        (
            &[("event-channel", "1"), ("ring-ref", "4000000000")][..],
            "cannot map grant 4000000000: no such grant",
        ),
    ] {
        let mut lab = Lab::new(4).start();
        let guest = lab.create_guest();
        let disk = lab.attach(guest, "xvda", "ram,size=1M");
        pretend(&mut lab, &disk, &[keys, &[("state", "3")]].concat());
        assert_eq!(disk.backend_state(lab.machine()), Some(XenbusState::Closed), "{reason}");
        let expected = format!("22 cannot connect: {reason}");
        assert_eq!(lab.machine().xs(DOM0).read(&error_node(&disk)).unwrap(), expected);
        let xs = lab.machine().xs(guest);
        for (key, _) in keys {
            xs.rm(&format!("{}/{key}", disk.frontend_path())).unwrap();
        }
        pretend(&mut lab, &disk, &[("state", "6")]);
        pretend(&mut lab, &disk, &[("state", "1")]);
        assert_eq!(disk.backend_state(lab.machine()), Some(XenbusState::InitWait), "{reason}");
        lab.connect(disk);
        lab.random_io(disk, 20);
        lab.detach(disk);
        lab.assert_clean();
    }
}

#[test]
fn the_error_node_is_the_latest_error_even_when_the_console_has_had_enough() {
    let mut lab = Lab::new(13).start();
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    let seen = lab.machine().console().len();
    let xs = lab.machine().xs(guest);
    for n in 0..9 {
        xs.write(&format!("{}/ring-page-order", disk.frontend_path()), format!("{}", 6 + n))
            .unwrap();
        for state in ["3", "6", "1"] {
            xs.write(&format!("{}/state", disk.frontend_path()), state).unwrap();
            lab.run_for(Duration::from_millis(50));
        }
    }
    let error = lab.machine().xs(DOM0).read(&error_node(&disk)).unwrap();
    assert_eq!(
        error,
        "22 cannot connect: the frontend's ring-page-order is 14, 0 to 5 were offered"
    );
    assert_eq!(lines(&lab, seen).len(), 5);
}

#[test]
fn a_frontend_that_floods_its_state_costs_looks_not_memory() {
    let mut lab = Lab::new(5).start();
    let (flooding, calm) = (lab.create_guest(), lab.create_guest());
    let flooded = lab.attach(flooding, "xvda", "ram,size=1M");
    let disk = lab.attach(calm, "xvda", "ram,size=1M");
    lab.connect(disk);
    let xs = lab.machine().xs(flooding);
    let state = format!("{}/state", flooded.frontend_path());
    for round in 0..200 {
        for state_value in ["5", "6", "1", "0", "nonsense", ""] {
            xs.write(&state, state_value).unwrap();
        }
        if round % 10 == 0 {
            lab.random_io(disk, 5);
        }
    }
    xs.write(&state, "1").unwrap();
    lab.run_for(Duration::from_secs(1));
    assert_eq!(flooded.backend_state(lab.machine()), Some(XenbusState::InitWait));
    lab.connect(flooded);
    lab.random_io(flooded, 20);
    lab.detach(flooded);
    lab.detach(disk);
    lab.assert_clean();
}

#[test]
fn devices_that_stand_there_at_the_start_are_served_half_written_ones_when_they_are_whole() {
    let machine = Machine::new(6);
    let us = toolstack::create_domain(&machine, DomainKind::DriverDomain);
    let mut guests = (0..6).map(|_| toolstack::create_domain(&machine, DomainKind::Guest));
    let device = |guest| Device::new(us, guest, 51712);
    let spec = DiskSpec::new("xvda", "ram,size=64K");
    let whole: Vec<_> = guests.by_ref().take(2).map(device).collect();
    let half: Vec<_> = guests.map(device).collect();
    whole.iter().chain(&half).for_each(|disk| disk.add(&machine, &spec).unwrap());
    // All but one of the nodes that say what it is.
    let missing: Vec<_> = half
        .iter()
        .zip(["params", "mode", "frontend-id", "state"])
        .map(|(disk, node)| format!("{}/{node}", disk.backend_path()))
        .map(|path| (machine.xs(DOM0).read(&path).unwrap(), path))
        .collect();
    missing.iter().for_each(|(_, path)| machine.xs(DOM0).rm(path).unwrap());

    let runs = [(Gfn(16), 500)];
    let mut platform = SimPlatform::new(&machine, us, &runs);
    let resources = platform.resources(&runs, b"");
    let mut domain = Domain::new(resources, &mut platform).unwrap();
    let mut run = || {
        for _ in 0..1000 {
            while domain.step(&mut platform) == Next::Now {}
            machine.step_xenstored();
        }
    };
    run();
    let states = |disks: &[Device]| -> Vec<_> {
        disks.iter().map(|disk| disk.backend_state(&machine)).collect()
    };
    let (ready, untouched) = (Some(XenbusState::InitWait), Some(XenbusState::Initialising));
    assert_eq!(states(&whole), [ready; 2]);
    assert_eq!(states(&half), [untouched, untouched, untouched, None]);

    missing.iter().for_each(|(value, path)| machine.xs(DOM0).write(path, value).unwrap());
    run();
    assert_eq!(states(&half), [ready; 4]);
    // Each is attached once, and nothing is said of it before.
    let said = machine.console();
    let of_vbds: Vec<_> = said.iter().filter(|line| line.starts_with("vbd ")).collect();
    assert_eq!(of_vbds.len(), 6, "{of_vbds:#?}");
}

#[test]
fn a_directory_of_another_domain_is_refused() {
    let mut lab = Lab::new(7).start();
    let guest = lab.create_guest();
    let disk = lab.device(guest, "xvda");
    disk.add(lab.machine(), &DiskSpec::new("xvda", "ram,size=1M")).unwrap();
    let id = format!("{}/frontend-id", disk.backend_path());
    lab.machine().xs(DOM0).write(&id, "77").unwrap();
    lab.settle();
    assert_eq!(disk.backend_state(lab.machine()), Some(XenbusState::Closed));
    let error = lab.machine().xs(DOM0).read(&error_node(&disk)).unwrap();
    assert_eq!(
        error,
        "22 cannot serve target=ram,size=1M: frontend-id is 77, but frontend is another domain's"
    );
}

#[test]
fn what_the_toolstack_reads_before_2_is_all_that_is_offered() {
    let mut lab = Lab::new(8).start();
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    let xs = lab.machine().xs(guest);
    let offered = |disk: &Device| -> Vec<String> {
        [
            "sectors",
            "sector-size",
            "physical-sector-size",
            "info",
            "feature-flush-cache",
            "feature-barrier",
            "feature-discard",
            "discard-granularity",
            "discard-secure",
            "feature-persistent",
            "feature-max-indirect-segments",
            "max-ring-page-order",
            "max-ring-pages",
            "multi-queue-max-queues",
        ]
        .iter()
        .map(|key| xs.get(&format!("{}/{key}", disk.backend_path())).unwrap_or("-".into()))
        .collect()
    };
    let all = ["2048", "512", "4096", "0", "1", "1", "1", "4096", "1", "1", "256", "5", "32", "4"];
    assert_eq!(offered(&disk), all);
    // A key whose value is the protocol's default is not written.
    let disk = lab.attach(guest, "xvdc", "ram,size=1M,block=4096");
    let large = ["2048", "4096", "-", "0", "1", "1", "1", "-", "1", "1", "256", "5", "32", "4"];
    assert_eq!(offered(&disk), large);
    let spec = DiskSpec { discard_enable: Some("0"), ..DiskSpec::new("xvdd", "ram,size=1M") };
    let disk = lab.try_attach(guest, &spec).unwrap();
    let kept = ["2048", "512", "4096", "0", "1", "1", "-", "-", "-", "1", "256", "5", "32", "4"];
    assert_eq!(offered(&disk), kept);
    let spec = DiskSpec { device_type: "cdrom", ..DiskSpec::new("xvde", "ram,size=1M") };
    let disk = lab.try_attach(guest, &spec.read_only()).unwrap();
    assert_eq!(offered(&disk)[3], "7");
    let spec = DiskSpec::new("xvdb", "ram,size=1M").read_only();
    let disk = lab.try_attach(guest, &spec).unwrap();
    let info = format!("{}/info", disk.backend_path());
    assert_eq!(lab.machine().xs(guest).read(&info).unwrap(), "4");
}

#[test]
fn a_target_may_say_that_data_is_copied_by_the_hypervisor() {
    let mut lab = Lab::new(8).start();
    let guest = lab.create_guest();
    let mapped = lab.attach(guest, "xvda", "ram,size=1M,grants=persistent");
    let copied = lab.attach(guest, "xvdb", "ram,size=1M,grants=copy");
    let xs = lab.machine().xs(guest);
    let offered = |disk: &Device| xs.get(&format!("{}/feature-persistent", disk.backend_path()));
    assert_eq!((offered(&mapped), offered(&copied)), (Some("1".into()), None));
    // Linux says that its grants are persistent even where that was not offered.
    xs.write(&format!("{}/feature-persistent", copied.frontend_path()), "1").unwrap();
    let seen = lab.machine().console().len();
    lab.connect(copied);
    let line = format!(
        "vbd {guest}/51728: connected, x86_64-abi, 1 ring of 32 requests, grants a request"
    );
    assert_eq!(lines(&lab, seen), [line]);
    lab.random_io(copied, 100);
    let nr_handles = |lab: &Lab| lab.machine().grants().nr_handles(lab.domid());
    assert_eq!(nr_handles(&lab), 1, "the ring");
    lab.connect(mapped);
    lab.random_io(mapped, 100);
    assert!(nr_handles(&lab) > 2, "{}", nr_handles(&lab));
}

#[test]
fn words_of_the_command_line_are_obeyed_or_named() {
    let mut lab = Lab::new(9).cmdline("indirect=0 settle-ms=7000 frobnicate").start();
    let said = lab.machine().console();
    assert!(
        said.contains(
            &"command line: `frobnicate`: unknown option, expected settle-ms=, drain-s=, indirect=, \
              ring-order=, queues=, persistent=, vbd-pages=, copy= or disk="
                .into()
        ),
        "{said:?}"
    );
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    let key = format!("{}/feature-max-indirect-segments", disk.backend_path());
    assert!(!lab.machine().xs(guest).exists(&key));
    let before = lab.machine().now();
    lab.connect(disk);
    assert!(lab.machine().now() >= before.after(Duration::from_secs(6)));
}

#[test]
fn a_disk_in_use_grows_when_its_params_do() {
    let mut lab = Lab::new(12).memory_pages(2000).start();
    let guest = lab.create_guest();
    let disk = lab.attach(guest, "xvda", "ram,size=1M");
    lab.connect(disk);
    lab.random_io(disk, 50);
    let seen = lab.machine().console().len();
    let params = format!("{}/params", disk.backend_path());
    let sectors = format!("{}/sectors", disk.backend_path());
    let xs = lab.machine().xs(DOM0);
    for (target, expected) in [
        ("ram,size=2M", "4096"),
        ("ram,size=1M", "4096"),
        ("ram,size=64M", "4096"),
        ("ram,size=3M,block=4096", "4096"),
        ("floppy", "4096"),
        ("ram,size=3M", "6144"),
    ] {
        xs.write(&params, target).unwrap();
        lab.settle();
        assert_eq!(xs.read(&sectors).unwrap(), expected, "{target}");
    }
    let vbd = format!("vbd {guest}/51712");
    assert_eq!(
        lines(&lab, seen),
        [
            format!("{vbd}: resized to 4096 sectors"),
            format!(
                "{vbd}: cannot become target=ram,size=1M: 2048 sectors are fewer than the disk's 4096"
            ),
            format!(
                "{vbd}: cannot become target=ram,size=64M: the full disk takes 16401 pages, all \
                 disks together can have 1724"
            ),
            format!(
                "{vbd}: cannot become target=ram,size=3M,block=4096: the block size of a disk in \
                 use cannot change"
            ),
            format!("{vbd}: cannot become target=floppy: the disk in use is a ram disk"),
            format!("{vbd}: resized to 6144 sectors"),
        ]
    );
    assert_eq!(disk.backend_state(lab.machine()), Some(XenbusState::Connected));
    lab.random_io(disk, 200);
    lab.detach(disk);
    lab.assert_clean();
}

#[test]
fn pages_that_stay_mapped_are_shared_out_and_come_back() {
    let mut lab = Lab::new(14).memory_pages(600).start();
    let us = lab.domid();
    for _ in 0..2 {
        let guest = lab.create_guest();
        let disks = ["xvda", "xvdb"].map(|vdev| lab.attach(guest, vdev, "ram,size=512K"));
        let mut most = 0;
        for (disk, share) in disks.into_iter().zip([72, 36]) {
            lab.connect(disk);
            lab.random_io(disk, 500);
            // Its ring, and a half of what was left.
            most += 1 + share;
            assert_eq!(lab.machine().grants().nr_handles(us), most);
        }
        lab.destroy(guest);
    }
    lab.assert_clean();
}
