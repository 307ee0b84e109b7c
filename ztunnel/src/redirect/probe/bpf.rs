//! Probes of BPF: first single features, then the daemon's own programs.

use std::{error::Error, fs::File, io};

use aya::{
    Ebpf,
    maps::MapType,
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};
use nix::{libc, sched::CloneFlags};

use super::{
    capabilities::Capabilities,
    requirement::{Found, Requirement},
};
use crate::{
    model::cause::causes,
    redirect::{
        guard::{self, GUARDS},
        hooks::{self, HOOKS},
        load::{self, LoadError},
        syns::HOLD,
    },
};

/// The helpers that connect4 and connect6 call.
const CONNECT_HELPERS: [(&str, BpfHelper); 4] = [
    ("get_netns_cookie", BpfHelper::BPF_FUNC_get_netns_cookie),
    ("setsockopt", BpfHelper::BPF_FUNC_setsockopt),
    ("sk_storage_get", BpfHelper::BPF_FUNC_sk_storage_get),
    ("map_lookup_elem", BpfHelper::BPF_FUNC_map_lookup_elem),
];
/// The helpers that setsockopt calls.
const OPTION_HELPERS: [(&str, BpfHelper); 3] = [
    ("get_netns_cookie", BpfHelper::BPF_FUNC_get_netns_cookie),
    ("sk_storage_get", BpfHelper::BPF_FUNC_sk_storage_get),
    ("map_lookup_elem", BpfHelper::BPF_FUNC_map_lookup_elem),
];
/// The helpers that steer calls.
const STEER_HELPERS: [(&str, BpfHelper); 3] = [
    ("map_lookup_elem", BpfHelper::BPF_FUNC_map_lookup_elem),
    ("sk_assign", BpfHelper::BPF_FUNC_sk_assign),
    ("sk_release", BpfHelper::BPF_FUNC_sk_release),
];
/// The helpers that hold calls.
const HOLD_HELPERS: [(&str, BpfHelper); 4] = [
    ("map_lookup_elem", BpfHelper::BPF_FUNC_map_lookup_elem),
    ("skb_load_bytes", BpfHelper::BPF_FUNC_skb_load_bytes),
    ("ktime_get_ns", BpfHelper::BPF_FUNC_ktime_get_ns),
    ("ringbuf_output", BpfHelper::BPF_FUNC_ringbuf_output),
];
/// The helper that all programs call if they have to log.
const LOG_HELPERS: [(&str, BpfHelper); 1] = [("ringbuf_output", BpfHelper::BPF_FUNC_ringbuf_output)];
const MAPS: [(&str, MapType); 6] = [
    ("hash", MapType::Hash),
    ("percpu_hash", MapType::PerCpuHash),
    ("lpm_trie", MapType::LpmTrie),
    ("sockhash", MapType::SockHash),
    ("sk_storage", MapType::SkStorage),
    ("ringbuf", MapType::RingBuf),
];

/// The kernel features that the programs need, one by one. They give the reason if the kernel refuses the programs.
pub(super) fn features(held: Capabilities) -> Vec<Requirement> {
    const KERNEL: &str =
        "no capture; run a kernel of 5.17 or later with CONFIG_CGROUP_BPF, in the host's user namespace";
    const UNGUARDED: &str = "the guards of captured pods. Without guards, TCP from these sources bypasses \
         the daemon: raw and packet sockets (CAP_NET_RAW), sockets that had a source route before the pod \
         was enrolled, and routes that the pod has made (CAP_NET_ADMIN); and a neighbour can reach the pod \
         from the pod's own IPv6 address; run a kernel of 6.6 or later with CONFIG_NET_XGRESS";
    let (connect, option, steer) = (ProgramType::CgroupSockAddr, ProgramType::CgroupSockopt, ProgramType::SkLookup);
    const EARLY: &str = "held connects: connects of pods succeed before their destination is reached, and are reset if it is not; run a kernel of \
         6.6 or later with CONFIG_NET_XGRESS";
    let guards = guard::supported().map(|()| "known to the kernel".to_owned()).map_err(|error| error.to_string());
    let log = helpers(connect, &LOG_HELPERS).and_then(|_| helpers(steer, &LOG_HELPERS));
    let maps = supported(MAPS.map(|(name, kind)| (name, is_map_supported(kind))));
    vec![
        Requirement::must("BPF program type cgroup_sock_addr", program_type(connect), KERNEL),
        Requirement::must("BPF program type cgroup_sockopt", program_type(option), KERNEL),
        Requirement::must("BPF program type sk_lookup", program_type(steer), KERNEL),
        Requirement::must("BPF helpers of connect4/6", helpers(connect, &CONNECT_HELPERS), KERNEL),
        Requirement::must("BPF helpers of setsockopt", helpers(option, &OPTION_HELPERS), KERNEL),
        Requirement::must("BPF helpers of steer", helpers(steer, &STEER_HELPERS), KERNEL),
        Requirement::must("BPF map types", maps, KERNEL),
        Requirement::must("BPF type information (BTF)", btf(held), KERNEL),
        Requirement::should("held connects", hold(&guards), EARLY),
        Requirement::should("BPF links to devices (tcx)", guards, UNGUARDED),
        Requirement::should("BPF log", log, "the log of the BPF programs' decisions; run a kernel of 5.17 or later"),
    ]
}

fn program_type(kind: ProgramType) -> Found {
    supported([("known to the kernel", is_program_supported(kind))])
}

fn helpers(kind: ProgramType, helpers: &[(&'static str, BpfHelper)]) -> Found {
    supported(helpers.iter().map(|(name, helper)| (*name, is_helper_supported(kind, *helper))))
}

/// What `hold` needs: a link to a device, and two helpers.
fn hold(links: &Found) -> Found {
    links.clone()?;
    helpers(ProgramType::SchedClassifier, &HOLD_HELPERS)
}

/// The names of all features, or of the missing ones. If the kernel refuses one trial, it refuses the others, too.
fn supported<E: Error>(tried: impl IntoIterator<Item = (&'static str, Result<bool, E>)>) -> Found {
    let (mut there, mut absent) = (Vec::new(), Vec::new());
    for (name, result) in tried {
        match result {
            Ok(true) => there.push(name),
            Ok(false) => absent.push(name),
            Err(error) => return Err(format!("can't be tried: {}", causes(&error))),
        }
    }
    if absent.is_empty() { Ok(there.join(", ")) } else { Err(format!("not there: {}", absent.join(", "))) }
}

/// Socket storage must describe its value in BTF. The kernel's own BTF is not needed: no program reads kernel
/// structures.
fn btf(held: Capabilities) -> Found {
    if !held.may_load_bpf() {
        return Err("can't be tried without CAP_BPF".to_owned());
    }
    match aya::features().btf() {
        Some(_) => Ok("the kernel takes the programs' BTF".to_owned()),
        None => Err("the kernel takes no BTF from this process".to_owned()),
    }
}

/// The programs themselves: whether this build has them, and whether the kernel accepts and attaches them.
pub(super) fn programs() -> Vec<Requirement> {
    let built_in = if load::is_built_in() { Ok("yes".to_owned()) } else { Err("no".to_owned()) };
    let mut object = load::load_unpinned().map_err(|error| match error {
        // The text leaves out the advice of `LoadError`: it recommends this probe.
        LoadError::Object(error) => causes(&error),
        other => causes(&other),
    });
    let loaded = object.as_mut().map_err(|reason| reason.clone()).and_then(verify);
    let tried = |attach: fn(&mut Ebpf) -> Found, object: &mut Result<Ebpf, String>| match (object, &loaded) {
        (Ok(object), Ok(_)) => attach(object),
        _ => Err("can't be tried: the programs do not load".to_owned()),
    };
    let (cgroup, netns) = (tried(attach_to_no_cgroup, &mut object), tried(attach_to_scratch_netns, &mut object));
    const LINKS: &str = "no capture; run a kernel of 5.17 or later with CONFIG_CGROUP_BPF and CONFIG_NET_NS";
    vec![
        Requirement::must("BPF programs in this binary", built_in, "no capture; build with `cargo xtask build`"),
        Requirement::must(
            "BPF programs load",
            loaded,
            "no capture; run a kernel of 5.17 or later, and report the verifier's message",
        ),
        Requirement::must("BPF link to a cgroup", cgroup, LINKS),
        Requirement::must("BPF link to a network namespace", netns, LINKS),
    ]
}

/// Loads every program into the kernel, and those of devices if the kernel supports them.
fn verify(object: &mut Ebpf) -> Found {
    let refused = |name: &str, error: LoadError| match error {
        LoadError::Program { source, .. } => format!("{name}: {}", refusal(&source)),
        other => causes(&other),
    };
    let mut loaded = Vec::new();
    for (name, _) in HOOKS {
        hooks::load(object, name).map_err(|error| refused(name, error))?;
        loaded.push(name);
    }
    let steer = load::steer_of(object).map_err(|error| causes(&error))?;
    steer.load().map_err(|error| format!("steer: {}", refusal(&error)))?;
    loaded.push("steer");
    if guard::supported().is_ok() {
        for name in GUARDS.into_iter().chain([HOLD]) {
            load::load_classifier(object, name).map_err(|error| refused(name, error))?;
            loaded.push(name);
        }
    }
    Ok(loaded.join(", "))
}

fn connect_hook<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr, ProgramError> {
    object.program_mut(name).ok_or(ProgramError::UnexpectedProgramType)?.try_into()
}

/// An attachment to the real root would put a hook into every connect of the node, even if only for a moment. So a file
/// is used that is no cgroup. A kernel with such links answers that the descriptor is bad; any other answers that the
/// request is invalid.
fn attach_to_no_cgroup(object: &mut Ebpf) -> Found {
    let attached = File::open("/proc/self/status").map_err(ProgramError::IOError).and_then(|no_cgroup| {
        connect_hook(object, "connect4").and_then(|program| program.attach(no_cgroup, CgroupAttachMode::Single))
    });
    match attached {
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EBADF) => {
            Ok("known to the kernel".to_owned())
        }
        Err(error) => Err(refusal(&error)),
        Ok(_) => Err("the kernel accepted a file as a cgroup".to_owned()),
    }
}

/// Attaches to a new network namespace, which is removed with the thread that made it.
fn attach_to_scratch_netns(object: &mut Ebpf) -> Found {
    let steer = load::steer_of(object).map_err(|error| causes(&error))?;
    let attach = || -> Found {
        let failed = |error: io::Error| format!("no network namespace to try it on: {error}");
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
        let netns = File::open("/proc/thread-self/ns/net").map_err(failed)?;
        steer.attach(netns).map_err(|error| refusal(&error))?;
        Ok("attached to a new one".to_owned())
    };
    std::thread::scope(|scope| scope.spawn(attach).join())
        .unwrap_or_else(|_| Err("the probe was interrupted".to_owned()))
}

/// Why the kernel refused a program. The verifier's log may have thousands of lines; only the complaint at its end is
/// used.
fn refusal(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => match complaint(&verifier_log.to_string()) {
            Some(line) => format!("{io_error}: {line}"),
            None => io_error.to_string(),
        },
        other => causes(other),
    }
}

fn complaint(log: &str) -> Option<String> {
    const STATISTICS: [&str; 3] = ["processed ", "verification time ", "stack depth "];
    let is_statistics = |line: &str| STATISTICS.iter().any(|start| line.starts_with(start));
    log.lines().rev().map(str::trim).find(|line| !line.is_empty() && !is_statistics(line)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::{complaint, supported};
    use std::io;

    #[test]
    fn absent_features_are_named_and_a_refusal_is_said_once() {
        let found = |tried: Vec<(&'static str, io::Result<bool>)>| supported(tried);
        assert_eq!(found(vec![("a", Ok(true)), ("b", Ok(true))]), Ok("a, b".to_owned()));
        assert_eq!(found(vec![("a", Ok(true)), ("b", Ok(false)), ("c", Ok(false))]), Err("not there: b, c".to_owned()));
        let refused = || Err(io::Error::other("refused"));
        assert_eq!(found(vec![("a", refused()), ("b", refused())]), Err("can't be tried: refused".to_owned()));
    }

    #[test]
    fn the_verifier_is_quoted_with_its_last_complaint() {
        let log = "0: R1=ctx()\n; code\n17: (61) r0 = *(u32 *)(r1 +64)\ninvalid bpf_context access off=64 size=4\n\
                   verification time 20 usec\nstack depth 72+0+0\nprocessed 18 insns (limit 1000000)\n\n";
        assert_eq!(complaint(log).as_deref(), Some("invalid bpf_context access off=64 size=4"));
        assert_eq!(complaint("processed 0 insns\n"), None);
    }
}
