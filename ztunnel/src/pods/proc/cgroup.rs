//! Finds the pod of a process by its cgroups: the content of `/proc/PID/cgroup`. Pure.
//!
//! The kubelet gives each pod a cgroup, below `kubepods`:
//!
//! - driver cgroupfs: `/kubepods/burstable/pod<UID>/<container>`
//! - driver systemd: `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<UID with _ for ->.slice/<container>`
//!
//! A reader in a cgroup namespace of its own sees paths relative to it: `/../../pod<UID>/<container>`.
//!
//! Below the cgroup of its container, a process with the right to write there can make cgroups with any name, such as
//! the name of another pod's cgroup. So only the **first** component that names a pod counts. The kubelet has made the
//! components before it.

/// The pod of a process, by its cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Belongs {
    /// It belongs to no pod.
    ToNone,
    /// It belongs to the pod with this UID.
    To(String),
    /// Two hierarchies name different pods.
    ToSeveral,
}

/// Reads the lines `ID:CONTROLLERS:PATH`: one for cgroup v2, and one for each hierarchy of cgroup v1.
pub(super) fn pod_of(lines: &str) -> Belongs {
    let mut found: Option<String> = None;
    for path in lines.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
        let Some(uid) = uid_in(path) else { continue };
        match &found {
            Some(other) if *other != uid => return Belongs::ToSeveral,
            _ => found = Some(uid),
        }
    }
    found.map_or(Belongs::ToNone, Belongs::To)
}

/// The UID of the pod into whose cgroup a path leads.
fn uid_in(path: &str) -> Option<String> {
    // Whether the kubelet has made all components so far: its own cgroup was seen, or only classes of service.
    let (mut below_kubepods, mut only_classes) = (false, true);
    for part in path.split('/') {
        match part {
            "" | ".." | "burstable" | "besteffort" => continue,
            _ if is_handed_over(part) => return None,
            _ => {}
        }
        if let Some(uid) = of_systemd(part) {
            return Some(uid);
        }
        if let Some(uid) = part.strip_prefix("pod").filter(|uid| is_uid(uid)) {
            // Elsewhere any user may have made it.
            return (below_kubepods || only_classes).then(|| uid.to_owned());
        }
        below_kubepods |= part.contains("kubepods");
        only_classes = false;
    }
    None
}

/// `…kubepods…-pod<UID>.slice`, where the UID has `_` for `-`.
fn of_systemd(part: &str) -> Option<String> {
    let (before, uid) = part.strip_suffix(".slice")?.rsplit_once("-pod")?;
    let uid = uid.replace('_', "-");
    (before.split('-').any(|word| word == "kubepods") && is_uid(&uid)).then_some(uid)
}

/// The API server makes UIDs by RFC 4122. The UID of a static pod is a hash.
fn is_uid(text: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'));
    match text.len() {
        32 => is_hex(text),
        36 => {
            let lengths = [8, 4, 4, 4, 12];
            let mut parts = text.split('-');
            lengths.iter().all(|length| parts.next().is_some_and(|part| part.len() == *length && is_hex(part)))
                && parts.next().is_none()
        }
        _ => false,
    }
}

/// Cgroups that systemd delegates to users and services of the machine. They can make any cgroups below them.
fn is_handed_over(part: &str) -> bool {
    part == "user.slice" || part.starts_with("user-") || part.ends_with(".service")
}

#[cfg(test)]
mod tests {
    use super::{Belongs, pod_of};

    const A: &str = "8e2f1c5a-0b7d-4c1e-9f3a-5d6e7f8091a2";
    const B: &str = "11111111-2222-3333-4444-555555555555";

    /// Compares the pod of these lines. In them, `A` and `B` stand for two UIDs, and `A_` and `B_` for the same UIDs in
    /// systemd's form.
    fn check(lines: &str, expected: &str) {
        let text = lines
            .replace("{A}", A)
            .replace("{B}", B)
            .replace("{A_}", &A.replace('-', "_"))
            .replace("{B_}", &B.replace('-', "_"));
        let shown = match pod_of(&text) {
            Belongs::ToNone => "none".to_owned(),
            Belongs::ToSeveral => "several".to_owned(),
            Belongs::To(uid) => uid.replace(A, "A").replace(B, "B"),
        };
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn every_form_of_the_kubelet_is_known() {
        check("0::/kubepods/burstable/pod{A}/0123\n", "A");
        check("0::/kubepods/pod{A}/0123", "A");
        check("0::/kubepods/besteffort/pod{A}\n", "A");
        check(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{A_}.slice/cri-containerd-01.scope",
            "A",
        );
        check("0::/kubepods.slice/kubepods-pod{A_}.slice/crio-01.scope/container", "A");
        // A node in a container.
        check("0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{A_}.slice/x", "A");
        check("0::/docker/0123/kubelet/kubepods/burstable/pod{A}/0123", "A");
        check("0::/k8s-n1/kubepods/pod{A}/0123", "A");
        // Seen from the cgroup namespace of a pod.
        check("0::/../../pod{A}/0123", "A");
        check("0::/../../../burstable/pod{A}/0123", "A");
        check("0::/../../../../kubepods.slice/kubepods-pod{A_}.slice/x", "A");
        check("0::/../kubepods-besteffort-pod{A_}.slice/x", "A");
        // cgroup v1, alone and beside an unused v2.
        check(
            "12:pids:/kubepods/pod{A}/x\n11:cpu,cpuacct:/kubepods/pod{A}/x\n1:name=systemd:/kubepods/pod{A}/x\n0::/\n",
            "A",
        );
        check("3:devices:/system.slice\n0::/kubepods/pod{A}/x\n", "A");
        // Static pods.
        check("0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/x", "0123456789abcdef0123456789abcdef");
    }

    #[test]
    fn what_is_no_pods_is_none() {
        for lines in [
            "",
            "garbage",
            "0::",
            "0::/",
            "0::/../..",
            "0::/init.scope",
            "0::/system.slice/kubelet.service",
            "0::/kubepods/burstable",
            "0::/kubepods.slice/kubepods-burstable.slice",
            "0::/kubepods/podinfo/x",
            "0::/kubepods/pod{A}x/y",
            "0::/kubepods/pod{A}-/y",
            "0::/kubepods/PoD{A}/y",
            "0::/kubepods/kubepods-pod{A}x.slice/y",
            "0::/machine.slice/libpod_pod_{A}.slice/x",
        ] {
            check(lines, "none");
        }
    }

    #[test]
    fn only_the_first_pod_in_a_path_counts() {
        check("0::/kubepods/pod{A}/0123/kubepods/pod{B}/0123", "A");
        check("0::/kubepods/burstable/pod{A}/pod{B}", "A");
        check("0::/kubepods/pod{A}/kubepods-burstable-pod{B_}.slice/x", "A");
        check("0::/kubepods.slice/kubepods-pod{A_}.slice/cri-containerd-1.scope/kubepods/pod{B}/x", "A");
        check("0::/../../pod{A}/0123/kubepods/pod{B}", "A");
    }

    #[test]
    fn hierarchies_that_disagree_count_for_none() {
        check("2:cpu:/kubepods/pod{A}/x\n1:name=systemd:/kubepods/pod{B}/x\n", "several");
        check("2:cpu:/kubepods/pod{A}/x\n0::/kubepods.slice/kubepods-pod{B_}.slice\n", "several");
    }

    #[test]
    fn cgroups_of_users_and_services_of_the_machine_take_nobodys_name() {
        check("0::/user.slice/user-1000.slice/user@1000.service/kubepods/pod{A}/x", "none");
        check("0::/user.slice/kubepods-pod{A_}.slice", "none");
        check("0::/../../../user.slice/user-1000.slice/pod{A}", "none");
        check("0::/system.slice/web.service/pod{A}", "none");
        check("0::/system.slice/web.service/kubepods/pod{A}", "none");
        check("0::/system.slice/pod{A}", "none");
        check("0::/../../system.slice/web.service/pod{A}", "none");
    }
}
