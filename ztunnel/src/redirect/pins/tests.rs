use std::path::{Path, PathBuf};

use nix::sys::stat::makedev;

use super::{BpfMount, PinDir, bpf_mounts, descends_from_first, is_received, is_shared, known_to_the_host, root_mount};

const MOUNTS: &str = "23 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
    48 23 0:39 / /sys/fs/bpf rw,relatime shared:3 - bpf bpf rw,mode=700\n\
    garbage\n\
    49 23 0:40 / /x rw - tmpfs bpf rw\n";

#[test]
fn bpf_file_systems_are_told_by_type_and_not_by_source() {
    assert_eq!(bpf_mounts(MOUNTS), [BpfMount { point: "/sys/fs/bpf".into(), device: makedev(0, 39) }]);
}

#[test]
fn only_a_file_system_that_process_1_has_outlives_the_daemon() {
    let answer = known_to_the_host(true, MOUNTS, makedev(0, 39)).unwrap();
    assert!(answer.contains("/sys/fs/bpf"), "{answer}");
    assert!(known_to_the_host(true, MOUNTS, makedev(0, 41)).is_err(), "another one, at whatever path");
    assert!(known_to_the_host(true, "", makedev(0, 39)).is_err());
}

#[test]
fn mount_namespaces_are_told_apart_by_their_root() {
    assert_eq!(root_mount(MOUNTS), Some("23"));
    assert_eq!(root_mount("garbage"), None);
}

/// Process 1 of a container proves nothing: it may be the daemon itself.
#[test]
fn in_a_pid_namespace_of_its_own_nothing_is_proved() {
    let reason = known_to_the_host(false, MOUNTS, makedev(0, 39)).unwrap_err();
    assert!(reason.contains("hostPID"), "{reason}");
}

#[test]
fn process_1_of_a_node_in_a_container_is_an_ancestor_of_the_daemon_and_that_of_its_own_container_is_not() {
    let with = |parents: &[(u32, u32)], process| {
        let parents: std::collections::HashMap<u32, u32> = parents.iter().copied().collect();
        descends_from_first(process, |of| parents.get(&of).map(|parent| format!("Name:\tx\nPPid:\t{parent}\n")))
    };
    assert!(with(&[(90, 80), (80, 1), (1, 0)], 90), "by the container runtime");
    assert!(!with(&[(1, 0)], 1), "it is process 1");
    assert!(!with(&[(90, 0), (1, 0)], 90), "a pod with a PID namespace for all its containers");
    assert!(!with(&[(90, 80)], 90), "its parent can't be looked at");
    assert!(!with(&[(90, 91), (91, 90)], 90));
}

#[test]
fn a_mount_is_the_hosts_as_well_where_the_mounts_below_it_are_peers() {
    let own = "70 1 0:50 / / rw - overlay o rw\n71 70 0:20 /fs/bpf /sys/fs/bpf rw shared:7 master:2 - sysfs sysfs rw\n";
    let host = "20 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n21 20 0:20 / /sys rw shared:7 - sysfs sysfs rw\n";
    let path = Path::new("/sys/fs/bpf/ztunnel");
    assert!(is_shared(own, host, path));
    assert!(!is_shared(&own.replace("shared:7 ", ""), host, path), "without mountPropagation: Bidirectional");
    assert!(!is_shared(own, host, Path::new("/var/bpf")));
    assert!(!is_shared(own, &host.replace("shared:7", "shared:8"), path));
    // mountPropagation: HostToContainer
    let own = own.replace("shared:7 master:2", "master:7");
    assert!(is_received(&own, host, path) && !is_shared(&own, host, path));
    assert!(!is_received(&own.replace("master:7 ", ""), host, path), "without mountPropagation");
    assert!(!is_received(&own, &host.replace("shared:7", "shared:8"), path));
}

#[test]
fn pods_are_known_by_steer_and_by_the_guards_of_their_devices() {
    let base = tempfile::tempdir().unwrap();
    let pins = PinDir::at(base.path());
    std::fs::create_dir_all(pins.root().join("pods")).unwrap();
    std::fs::write(pins.pod(7), "").unwrap();
    for cookie in [7, 8] {
        std::fs::create_dir_all(pins.devices(cookie)).unwrap();
        std::fs::write(pins.devices(cookie).join("2-egress"), "").unwrap();
    }
    assert_eq!(pins.pods().unwrap(), [7, 8]);
    pins.remove_pod(7).unwrap();
    pins.remove_pod(7).unwrap();
    assert_eq!(pins.pods().unwrap(), [8]);
    let other = base.path().join("v99");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::create_dir_all(base.path().join("vain")).unwrap();
    let mut layouts = pins.layouts().unwrap();
    layouts.sort();
    let mut expected: Vec<PathBuf> = vec![pins.root().to_owned(), other.clone()];
    expected.sort();
    assert_eq!(layouts, expected);
    pins.remove_other_layouts().unwrap();
    assert!(pins.root().exists() && !other.exists() && base.path().join("vain").exists());
}
