//! These tests use folders instead of cgroups: the number of a cgroup is the inode of its folder.

use super::*;

/// A tree of folders, and the number of each.
struct Tree(tempfile::TempDir);

impl Tree {
    fn of(paths: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        paths.iter().for_each(|path| fs::create_dir_all(root.path().join(path)).unwrap());
        Self(root)
    }

    fn id(&self, path: &str) -> u64 {
        fs::metadata(self.0.path().join(path)).unwrap().ino()
    }

    fn kubelet(&self, cgroup: KubeletCgroup) -> Kubelet {
        Kubelet::new(cgroup, Some(self.0.path().to_owned()))
    }
}

fn is_kubelet(kubelet: &Kubelet, uid: Option<u32>, cgroup: Option<u64>) -> bool {
    kubelet.judge(SocketOwner { uid, cgroup }) == Client::Kubelet
}

#[test]
fn root_outside_of_pods_and_containers_is_the_kubelet() {
    const POD: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let outside = ["", "system.slice/kubelet.service", "kubelet", "user.slice/user-0.slice/session-1.scope"];
    let of_id = format!("docker/{POD}");
    let inside = [
        "kubepods/burstable/pod1/c1",
        "kubepods.slice/kubepods-pod1.slice/cri-containerd-1.scope",
        "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice",
        "system.slice/docker-1.scope",
        "system.slice/crio-1.scope",
        "machine.slice/libpod-1.scope/container",
        &of_id,
        POD,
    ];
    let tree = Tree::of(&[&outside[..], &inside[..]].concat());
    let kubelet = tree.kubelet(KubeletCgroup::OutsideOfPods);
    for _again in 0..2 {
        for path in outside {
            assert!(is_kubelet(&kubelet, Some(0), Some(tree.id(path))), "{path}");
            assert!(!is_kubelet(&kubelet, Some(65534), Some(tree.id(path))), "{path}");
        }
        for path in inside {
            assert!(!is_kubelet(&kubelet, Some(0), Some(tree.id(path))), "{path}");
        }
    }
    assert!(!is_kubelet(&kubelet, Some(0), Some(1)), "a cgroup that is gone");
}

#[test]
fn a_cgroup_that_was_named_is_the_only_one() {
    let tree = Tree::of(&["kubelet.slice/kubelet.service/sub", "system.slice/other.service"]);
    let kubelet = tree.kubelet("/kubelet.slice/kubelet.service".parse().unwrap());
    for path in ["kubelet.slice/kubelet.service", "kubelet.slice/kubelet.service/sub"] {
        assert!(is_kubelet(&kubelet, Some(0), Some(tree.id(path))), "{path}");
        assert!(!is_kubelet(&kubelet, Some(1000), Some(tree.id(path))), "{path}");
    }
    for path in ["", "kubelet.slice", "system.slice/other.service"] {
        assert!(!is_kubelet(&kubelet, Some(0), Some(tree.id(path))), "{path:?}");
    }
}

#[test]
fn where_the_cgroup_is_not_told_the_user_still_counts() {
    let tree = Tree::of(&["kubelet.slice"]);
    for cgroup in [KubeletCgroup::OutsideOfPods, "/kubelet.slice".parse().unwrap(), "/missing".parse().unwrap()] {
        for kubelet in [tree.kubelet(cgroup.clone()), Kubelet::new(cgroup.clone(), None)] {
            assert!(is_kubelet(&kubelet, Some(0), None), "{cgroup:?}");
            assert!(!is_kubelet(&kubelet, Some(65534), None), "{cgroup:?}");
            assert!(!is_kubelet(&kubelet, None, None), "{cgroup:?}");
        }
    }
}

/// Kernels before 6.17 report user 0 for a socket that its process has closed, whichever user that was.
#[test]
fn where_the_user_is_not_told_only_a_cgroup_that_was_named_counts() {
    let tree = Tree::of(&["system.slice/kubelet.service"]);
    let id = tree.id("system.slice/kubelet.service");
    assert!(!is_kubelet(&tree.kubelet(KubeletCgroup::OutsideOfPods), None, Some(id)));
    assert!(is_kubelet(&tree.kubelet("/system.slice/kubelet.service".parse().unwrap()), None, Some(id)));
}

#[test]
fn only_paths_of_cgroups_are_taken() {
    let below = |path: &str| Ok(KubeletCgroup::Below(path.to_owned()));
    assert_eq!("/system.slice/kubelet.service".parse(), below("system.slice/kubelet.service"));
    assert_eq!("/kubelet/".parse(), below("kubelet"));
    assert_eq!("/".parse(), below(""));
    for bad in ["", "kubelet", "/../x", "/a//b", "//"] {
        let refused = bad.parse::<KubeletCgroup>();
        assert!(refused.is_err_and(|error| error.to_string().contains("/system.slice/kubelet.service")), "{bad:?}");
    }
}
