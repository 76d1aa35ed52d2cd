//! xenstored's answers, by the direct calls.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use sim::xenstored::{Errno, NodeAccess, Perms};
use sim::{Machine, Xs};
use xen_abi::DomId;

const DOM0: DomId = DomId(0);

/// A host, dom0's xenstore, and two guests with a directory each.
fn host() -> (Machine, Xs, [(DomId, Xs); 2]) {
    let machine = Machine::new(1);
    let dom0 = machine.xs(DOM0);
    let guests = [(); 2].map(|()| {
        let domid = machine.create_domain();
        let path = format!("/local/domain/{domid}/data");
        dom0.mkdir(&path).unwrap();
        dom0.set_perms(&path, Perms::private(domid)).unwrap();
        (domid, machine.xs(domid))
    });
    (machine, dom0, guests)
}

#[test]
fn values_children_and_relative_paths() {
    let (_, dom0, [(guest, xs), _]) = host();
    xs.write("data/b/c", "1").unwrap();
    xs.write("data/a", "").unwrap();
    assert_eq!(dom0.read(&format!("/local/domain/{guest}/data/b/c")), Ok("1".into()));
    assert_eq!(xs.read("data/b"), Ok(String::new()), "a missing ancestor is created empty");
    assert_eq!(xs.directory("data"), Ok(vec!["b".into(), "a".into()]), "oldest first");
    xs.mkdir("data/a").unwrap();
    xs.rm("data/b").unwrap();
    assert_eq!(xs.directory("data"), Ok(vec!["a".into()]));
    assert_eq!(xs.rm("data/b"), Ok(()), "no node is no error where the parent is");
    assert_eq!(xs.rm("data/x/y/z"), Err(Errno::Enoent));
}

#[test]
fn malformed_paths() {
    let (_, dom0, _) = host();
    let long = format!("/{}", "x".repeat(3072));
    for path in ["", "/a/", "/a//b", "/a b", "/a\n", "@releaseDomain", "a/", long.as_str()] {
        assert_eq!(dom0.read(path), Err(Errno::Einval), "{path:?}");
    }
    assert_eq!(dom0.rm("/"), Err(Errno::Einval));
}

#[test]
fn permissions_hide_what_they_forbid() {
    let (_, dom0, [(guest, xs), (other, other_xs)]) = host();
    let node = format!("/local/domain/{guest}/data/key");
    let missing = format!("/local/domain/{guest}/data/none");
    xs.write(&node, "v").unwrap();
    assert_eq!(other_xs.read(&node), Err(Errno::Eacces));
    assert_eq!(other_xs.read(&missing), Err(Errno::Eacces), "not told that it is missing");
    assert_eq!(xs.read(&missing), Err(Errno::Enoent));
    assert_eq!(other_xs.write(&node, "w"), Err(Errno::Eacces));
    assert_eq!(other_xs.rm(&node), Err(Errno::Eacces));

    xs.set_perms(&node, Perms::readable(guest, other)).unwrap();
    assert_eq!(other_xs.read(&node), Ok("v".into()));
    assert_eq!(other_xs.write(&node, "w"), Err(Errno::Eacces));
    let expected =
        Perms { owner: guest, others: NodeAccess::None, entries: vec![(other, NodeAccess::Read)] };
    assert_eq!(other_xs.get_perms(&node), Ok(expected));
    let stolen = Perms::private(other);
    assert_eq!(other_xs.set_perms(&node, stolen.clone()), Err(Errno::Eacces));
    assert_eq!(xs.set_perms(&node, stolen.clone()), Err(Errno::Eperm));
    assert_eq!(dom0.set_perms(&node, stolen), Ok(()));
    assert_eq!(xs.read(&node), Err(Errno::Eacces));

    // dom0's own directories: no guest writes or removes there.
    assert_eq!(xs.write("name", "x"), Err(Errno::Eacces));
    assert_eq!(xs.rm(&format!("/local/domain/{guest}")), Err(Errno::Eacces));
}

#[test]
fn new_nodes_belong_to_the_guest_that_creates_them() {
    let (machine, dom0, [(guest, xs), (other, _)]) = host();
    assert_eq!(machine.xenstored().nr_nodes(guest), 1);
    dom0.set_perms(&format!("/local/domain/{guest}/data"), Perms::readable(guest, other)).unwrap();
    xs.write("data/a/b", "").unwrap();
    assert_eq!(machine.xenstored().nr_nodes(guest), 3);
    assert_eq!(xs.get_perms("data/a/b"), Ok(Perms::readable(guest, other)), "inherited");
    dom0.write(&format!("/local/domain/{guest}/data/c"), "").unwrap();
    assert_eq!(machine.xenstored().nr_nodes(guest), 4, "the owner pays for what dom0 writes");
    xs.rm("data/a").unwrap();
    assert_eq!(machine.xenstored().nr_nodes(guest), 2);
}

#[test]
fn quotas_bind_guests_alone() {
    let (machine, dom0, [(guest, xs), _]) = host();
    machine.xenstored().quotas.nodes = 4;
    xs.write("data/a", "").unwrap();
    assert_eq!(xs.write("data/b/c/d", ""), Err(Errno::Enospc));
    assert_eq!(xs.directory("data"), Ok(vec!["a".into()]), "nothing of it remains");
    xs.write("data/b/c", "").unwrap();
    assert_eq!(xs.write("data/d", ""), Err(Errno::Enospc));
    assert_eq!(xs.write("data/a", "again"), Ok(()), "rewriting still works");
    dom0.write(&format!("/local/domain/{guest}/data/dom0"), "").unwrap();
    machine.xenstored().quotas.nodes_errno = Errno::Equota;
    assert_eq!(xs.mkdir("data/e"), Err(Errno::Equota));
}

#[test]
fn a_nodes_size_counts_header_permissions_value_and_childrens_names() {
    let (_, dom0, [(guest, xs), _]) = host();
    // 24 bytes of header, one permission of 8: at 2048 it is too large.
    assert_eq!(xs.write("data/a", "x".repeat(2015)), Ok(()));
    assert_eq!(xs.write("data/a", "x".repeat(2016)), Err(Errno::Enospc));
    assert_eq!(xs.read("data/a").map(|v| v.len()), Ok(2015));
    assert_eq!(dom0.write(&format!("/local/domain/{guest}/data/a"), "x".repeat(3000)), Ok(()));
    xs.mkdir("data/dir").unwrap();
    let name = "n".repeat(1000);
    xs.mkdir(&format!("data/dir/{name}1")).unwrap();
    assert_eq!(xs.mkdir(&format!("data/dir/{name}{}", "2".repeat(20))), Err(Errno::Enospc));
}

#[test]
fn a_transaction_is_private_until_its_commit() {
    let (_, dom0, [(guest, xs), _]) = host();
    let node = format!("/local/domain/{guest}/data/a");
    let within = xs.begin().unwrap();
    within.write("data/a", "1").unwrap();
    assert_eq!(within.read("data/a"), Ok("1".into()));
    assert_eq!(dom0.read(&node), Err(Errno::Enoent));
    within.commit().unwrap();
    assert_eq!(dom0.read(&node), Ok("1".into()));

    let within = xs.begin().unwrap();
    within.rm("data/a").unwrap();
    assert_eq!(within.directory("data"), Ok(vec![]));
    within.abort().unwrap();
    assert_eq!(dom0.read(&node), Ok("1".into()));
}

#[test]
fn a_transaction_conflicts_with_what_it_read_or_wrote_alone() {
    let (_, dom0, [(guest, xs), (other, other_xs)]) = host();
    xs.write("data/a", "1").unwrap();
    xs.write("data/b", "1").unwrap();
    let node = format!("/local/domain/{guest}/data/a");

    let read = xs.begin().unwrap();
    assert_eq!(read.read("data/a"), Ok("1".into()));
    dom0.write(&node, "2").unwrap();
    assert_eq!(read.read("data/a"), Ok("1".into()), "its view stays");
    assert_eq!(read.commit(), Err(Errno::Eagain));

    let wrote = xs.begin().unwrap();
    wrote.write("data/a", "3").unwrap();
    dom0.write(&node, "4").unwrap();
    assert_eq!(wrote.commit(), Err(Errno::Eagain));
    assert_eq!(dom0.read(&node), Ok("4".into()), "nothing of it was done");

    let missing = xs.begin().unwrap();
    assert_eq!(missing.read("data/c"), Err(Errno::Enoent));
    xs.write("data/c", "").unwrap();
    assert_eq!(missing.commit(), Err(Errno::Eagain));

    let apart = xs.begin().unwrap();
    apart.write("data/a", "5").unwrap();
    dom0.write(&format!("/local/domain/{guest}/data/b"), "9").unwrap();
    other_xs.write(&format!("/local/domain/{other}/data/z"), "9").unwrap();
    assert_eq!(apart.commit(), Ok(()), "others' nodes do not matter");

    let first = xs.begin().unwrap();
    let second = xs.begin().unwrap();
    first.write("data/n1", "").unwrap();
    second.write("data/n2", "").unwrap();
    assert_eq!(first.commit(), Ok(()));
    assert_eq!(second.commit(), Err(Errno::Eagain), "both gave the same parent a child");
}

#[test]
fn transactions_have_quotas_and_ends() {
    let (machine, dom0, [(_, xs), _]) = host();
    let open: Vec<Xs> = (0..10).map(|_| xs.begin().unwrap()).collect();
    assert_eq!(xs.begin().err(), Some(Errno::Enospc));
    assert_eq!(open[0].begin().err(), Some(Errno::Ebusy));
    assert!(dom0.begin().is_ok());
    for within in open {
        let same = within.clone();
        within.commit().unwrap();
        assert_eq!(same.read("data"), Err(Errno::Enoent));
        assert_eq!(same.commit(), Err(Errno::Enoent));
    }

    machine.xenstored().quotas.nodes = 3;
    let within = xs.begin().unwrap();
    within.write("data/a", "").unwrap();
    within.write("data/b", "").unwrap();
    assert_eq!(within.write("data/c", ""), Err(Errno::Enospc));
    within.rm("data/b").unwrap();
    within.write("data/c", "").unwrap();
    assert_eq!(within.commit(), Ok(()));
}

#[test]
fn an_operation_that_fails_half_way_spoils_its_transaction() {
    let (machine, _, [(_, xs), _]) = host();
    machine.xenstored().quotas.nodes = 2;
    let within = xs.begin().unwrap();
    assert_eq!(within.write("data/a/b", ""), Err(Errno::Enospc));
    assert_eq!(within.commit(), Err(Errno::Enomem));
    assert_eq!(xs.directory("data"), Ok(vec![]));
}

#[test]
fn commits_fail_on_demand_and_are_tried_again() {
    let (machine, _, [(_, xs), _]) = host();
    machine.xenstored().commit_faults.fail_nth(1, Errno::Eagain);
    let mut runs = 0;
    xs.transaction(|within| {
        runs += 1;
        within.write("data/a", "1")
    })
    .unwrap();
    assert_eq!((runs, xs.read("data/a")), (2, Ok("1".into())));
    let failed = xs.transaction(|within| within.read("data/none"));
    assert_eq!(failed, Err(Errno::Enoent));
    assert_eq!(machine.xenstored().nr_transactions(DomId(1)), 0, "aborted");
}

#[test]
fn a_domain_that_is_gone_leaves_no_nodes() {
    let (machine, dom0, [(guest, xs), (other, other_xs)]) = host();
    xs.write("data/a", "1").unwrap();
    other_xs.write("data/a", "1").unwrap();
    machine.destroy_domain(guest);
    assert!(!machine.has_domain(guest));
    assert_eq!(machine.xenstored().nr_nodes(guest), 0);
    assert_eq!(dom0.directory(&format!("/local/domain/{guest}")), Ok(vec![]));
    assert_eq!(dom0.read(&format!("/local/domain/{other}/data/a")), Ok("1".into()));
    assert_eq!(xs.read("data/a"), Err(Errno::Einval), "it has no connection");
}
