use std::task::Poll;
use std::time::Duration;

use xen_abi::XenbusState;

use super::*;
use crate::xenstored::Errno;

#[test]
fn vdevs_have_libxls_numbers() {
    assert_eq!(vdev_number("xvda"), Some(51712));
    assert_eq!(vdev_number("xvdb1"), Some(51729));
    assert_eq!(vdev_number("xvdp"), Some(51952));
    assert_eq!(vdev_number("xvdq"), Some(268_439_552));
    assert_eq!(vdev_number("xvdaa"), Some(268_442_112));
    assert_eq!(vdev_number("xvda16"), Some(1 << 28 | 16));
    for vdev in ["xvd", "sda", "xvda256", "xvdaaaaaaa", "xvd1"] {
        assert_eq!(vdev_number(vdev), None, "{vdev}");
    }
}

fn device() -> (Machine, Device) {
    let machine = Machine::new(1);
    let backend = create_domain(&machine, DomainKind::DriverDomain);
    let frontend = create_domain(&machine, DomainKind::Guest);
    (machine, Device::new(backend, frontend, 51712))
}

fn set_state(machine: &Machine, device: Device, state: &str) {
    let path = format!("{}/state", device.backend_path());
    machine.xs(device.backend).write(&path, state).unwrap();
}

#[test]
fn an_attach_waits_for_state_2_and_the_rights_are_libxls() {
    let (machine, device) = device();
    let spec = DiskSpec::new("xvda", "ram,size=1M");
    let mut attach = Operation::attach(&machine, device, &spec);
    assert_eq!(attach.poll(), Poll::Pending);
    let (be, fe) = (machine.xs(device.backend), machine.xs(device.frontend));
    let be_path = device.backend_path();
    assert_eq!(be.read(&format!("{be_path}/params")), Ok("ram,size=1M".into()));
    assert_eq!(fe.read(&format!("{be_path}/params")), Ok("ram,size=1M".into()));
    assert_eq!(fe.write(&format!("{be_path}/state"), "2"), Err(Errno::Eacces));
    let fe_path = device.frontend_path();
    assert_eq!(be.read(&format!("{fe_path}/state")), Ok("1".into()));
    assert_eq!(be.write(&format!("{fe_path}/state"), "4"), Err(Errno::Eacces));
    // The parents of the backend's directory are dom0's.
    let parent = format!("/local/domain/{}/backend/vbd", device.backend);
    assert_eq!(be.directory(&parent), Ok(vec![device.frontend.to_string()]));
    assert_eq!(be.rm(&parent), Err(Errno::Eacces));
    // 14 nodes of the device, 13 of libxl__domain_make() that are the domain's own.
    assert_eq!(machine.xenstored().nr_nodes(device.backend), 14 + 13);

    set_state(&machine, device, "4");
    assert_eq!(attach.poll(), Poll::Pending, "exactly 2");
    set_state(&machine, device, "2");
    assert_eq!(attach.poll(), Poll::Ready(Ok(())));
    let again = Operation::attach(&machine, device, &spec).poll();
    assert_eq!(again, Poll::Ready(Err(ToolstackError::Exists)));
}

#[test]
fn an_attach_gives_up_after_ten_seconds_and_leaves_all_as_it_is() {
    let (machine, device) = device();
    let mut attach = Operation::attach(&machine, device, &DiskSpec::new("xvda", "none"));
    machine.advance(Duration::from_secs(10));
    let error = ToolstackError::TimedOut {
        wanted: XenbusState::InitWait,
        found: Some(XenbusState::Initialising),
    };
    assert_eq!(attach.poll(), Poll::Ready(Err(error)));
    assert!(machine.xs(DOM0).exists(&device.backend_path()));
}

#[test]
fn a_detach_sees_6_and_then_the_directory_go() {
    let (machine, device) = device();
    device.add(&machine, &DiskSpec::new("xvda", "none")).unwrap();
    let mut detach = Operation::detach(&machine, device, Detach::Polite);
    let be_path = device.backend_path();
    let be = machine.xs(device.backend);
    assert_eq!(be.read(&format!("{be_path}/state")), Ok("5".into()));
    assert_eq!(be.read(&format!("{be_path}/online")), Ok("0".into()));
    assert_eq!(detach.poll(), Poll::Pending);
    set_state(&machine, device, "6");
    assert_eq!(detach.poll(), Poll::Pending);
    assert!(machine.xs(device.frontend).exists(&device.frontend_path()));
    be.rm(&be_path).unwrap();
    assert_eq!(detach.poll(), Poll::Ready(Ok(())));
    assert!(!machine.xs(DOM0).exists(&device.frontend_path()));
    let vbd = format!("/local/domain/{}/backend", device.backend);
    assert!(!machine.xs(DOM0).exists(&vbd), "empty parents go as well");
}

#[test]
fn a_directory_that_goes_before_6_was_seen_fails_the_detach() {
    let (machine, device) = device();
    device.add(&machine, &DiskSpec::new("xvda", "none")).unwrap();
    let mut detach = Operation::detach(&machine, device, Detach::Polite);
    set_state(&machine, device, "6");
    machine.xs(device.backend).rm(&device.backend_path()).unwrap();
    let error = ToolstackError::StateRemoved { wanted: XenbusState::Closed };
    assert_eq!(detach.poll(), Poll::Ready(Err(error)));
}

#[test]
fn a_forced_detach_removes_the_frontends_directory_first() {
    let (machine, device) = device();
    device.add(&machine, &DiskSpec::new("xvda", "none")).unwrap();
    let mut detach = Operation::detach(&machine, device, Detach::Forced);
    assert!(!machine.xs(DOM0).exists(&device.frontend_path()));
    machine.advance(Duration::from_secs(10));
    let error =
        ToolstackError::TimedOut { wanted: XenbusState::Closed, found: Some(XenbusState::Closing) };
    assert_eq!(detach.poll(), Poll::Ready(Err(error)));
    assert!(!machine.xs(DOM0).exists(&device.backend_path()), "dom0 cleans up");
}

#[test]
fn at_6_already_only_online_is_written() {
    let (machine, device) = device();
    device.add(&machine, &DiskSpec::new("xvda", "none")).unwrap();
    set_state(&machine, device, "6");
    let mut detach = Operation::detach(&machine, device, Detach::Polite);
    assert_eq!(device.backend_state(&machine), Some(XenbusState::Closed));
    assert_eq!(detach.poll(), Poll::Pending, "the directory is still there");
}
