use std::path::{Path, PathBuf};

use nix::sys::stat::makedev;

use super::{BpfMount, FIRST_PID_NAMESPACE, PinDir, bpf_mounts, known_to_the_host, root_mount};

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
    let first = Path::new(FIRST_PID_NAMESPACE);
    let answer = known_to_the_host(first, MOUNTS, makedev(0, 39)).unwrap();
    assert!(answer.contains("/sys/fs/bpf"), "{answer}");
    assert!(known_to_the_host(first, MOUNTS, makedev(0, 41)).is_err(), "another one, at whatever path");
    assert!(known_to_the_host(first, "", makedev(0, 39)).is_err());
}

#[test]
fn mount_namespaces_are_told_apart_by_their_root() {
    assert_eq!(root_mount(MOUNTS), Some("23"));
    assert_eq!(root_mount("garbage"), None);
}

/// Process 1 of a container is no witness: it may be the daemon itself.
#[test]
fn in_a_pid_namespace_of_its_own_nothing_is_proved() {
    let reason = known_to_the_host(Path::new("pid:[4026532299]"), MOUNTS, makedev(0, 39)).unwrap_err();
    assert!(reason.contains("hostPID"), "{reason}");
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
