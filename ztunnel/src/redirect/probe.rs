//! Finds out by trial whether the machine has the features that the daemon needs. A version number says nothing about
//! back-ports, options that were left out, or a container's limits.
//!
//! A probe leaves no trace. Its objects (sockets, maps, programs, one network namespace) have no name and are gone when
//! it returns. Changes of the machine are not made; the probe only asks whether they would be allowed.

mod bpf;
mod capabilities;
mod requirement;

use std::{io, os::fd::AsFd as _, path::Path};

use ebpf_common::mark;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage, rule::RuleMessage};
use netlink_packet_sock_diag::inet::SocketId;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    fcntl::{AT_FDCWD, AtFlags},
    libc,
    sys::resource::{Resource, getrlimit},
    unistd::{AccessFlags, faccessat},
};

pub use self::requirement::{Requirement, State};
use self::{capabilities::Capabilities, requirement::Found};
use super::{
    cgroup, foreign,
    pins::{self, MountPlace},
    proc_sys, survey, sysctl,
};
use crate::net::{
    netns::Netns,
    socket::{self, Family},
};

/// Two descriptors for each connection: enough for some 30,000 connections.
const WANTED_FILES: u64 = 65_536;

/// Functions of the daemon that need further capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Pods are found by their processes (`--pods kubernetes`).
    pub processes: bool,
    /// The CNI plugin is installed on the node (`--cni-install`).
    pub cni_plugin: bool,
}

/// Probes all requirements, in the order in which the daemon needs them.
#[must_use]
pub fn requirements(pin_dir: &Path, uses: Uses) -> Vec<Requirement> {
    let held = Capabilities::of_this_process();
    let mut all = capabilities(held, uses);
    all.extend(bpf::features(held));
    all.extend(bpf::programs());
    all.extend([
        cgroup_root(),
        bpf_file_system(pin_dir, held),
        lasting_pins(pin_dir, held),
        other_installations(pin_dir),
    ]);
    all.extend(namespaces());
    all.extend(sockets());
    all.extend(routing());
    all.push(open_files());
    all
}

/// Names of the capabilities that this process lacks and without which the daemon can't do its work.
#[must_use]
pub fn missing_capabilities(uses: Uses) -> Vec<&'static str> {
    let missing = capabilities(Capabilities::of_this_process(), uses).into_iter();
    missing.filter(|requirement| requirement.state == State::Missing).map(|requirement| requirement.name).collect()
}

fn capabilities(held: Capabilities, uses: Uses) -> Vec<Requirement> {
    let plain = |bit| if held.has(bit) { Ok("held".to_owned()) } else { Err("not held".to_owned()) };
    let bpf = if held.has(Capabilities::BPF) || !held.may_load_bpf() {
        plain(Capabilities::BPF)
    } else {
        Ok("not held, and not needed: CAP_SYS_ADMIN includes it".to_owned())
    };
    let mut all = vec![
        Requirement::must(
            "CAP_BPF",
            bpf,
            "no BPF program or map can be made; add it to the container's or the unit's capabilities",
        ),
        Requirement::must(
            "CAP_NET_ADMIN",
            plain(Capabilities::NET_ADMIN),
            "no capture: marks, rules, routes, transparent sockets; add it to the container's or the unit's capabilities",
        ),
        Requirement::must(
            "CAP_SYS_ADMIN",
            plain(Capabilities::SYS_ADMIN),
            "no pod's network namespace can be entered, no bpffs mounted; add it to the container's or the unit's capabilities",
        ),
        Requirement::must(
            "CAP_NET_RAW",
            net_raw(held, bind_to_loopback()),
            "no delivery to applications: this kernel requires it for SO_BINDTODEVICE; add it to the \
             capabilities",
        ),
    ];
    if uses.processes {
        all.push(Requirement::must(
            "CAP_SYS_PTRACE",
            plain(Capabilities::SYS_PTRACE),
            "no pod is enrolled: the network namespaces of its processes cannot be opened; add it to the container's or the unit's \
             capabilities",
        ));
        let in_root_of_the_node = if uses.cni_plugin { Requirement::must } else { Requirement::should };
        all.push(in_root_of_the_node(
            "CAP_SYS_CHROOT",
            plain(Capabilities::SYS_CHROOT),
            "the CNI plugin cannot be tried on the node and is not installed, and no bpffs can be mounted on the node; add it to the \
             container's or the unit's capabilities",
        ));
    }
    all
}

/// Of the socket options that the daemon sets, only SO_BINDTODEVICE has ever needed CAP_NET_RAW (before Linux 5.7). For
/// the others CAP_NET_ADMIN is enough.
fn net_raw(held: Capabilities, bound: io::Result<()>) -> Found {
    if held.has(Capabilities::NET_RAW) {
        return Ok("held".to_owned());
    }
    match bound {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err("not held, and SO_BINDTODEVICE is refused without it".to_owned())
        }
        _ => Ok("not held, and not needed on this kernel".to_owned()),
    }
}

fn bind_to_loopback() -> io::Result<()> {
    socket::tcp(Family::V4)?.bind_device(Some(b"lo"))
}

fn cgroup_root() -> Requirement {
    let found = cgroup::open_root().and_then(|_| cgroup::root());
    let found = found.map(|path| path.display().to_string()).map_err(|error| error.to_string());
    Requirement::must(
        "cgroup v2 root",
        found,
        "no pod's connects are captured; mount cgroup v2, and give a container the host's cgroup namespace",
    )
}

/// Hooks of ztunnel that do not belong to the pins of this directory.
fn other_installations(pin_dir: &Path) -> Requirement {
    let asked = cgroup::open_root().map_err(|error| error.to_string()).and_then(|root| {
        let others = foreign::others(&pins::PinDir::at(pin_dir), root.as_fd());
        others.map_err(|error| format!("the kernel does not tell which BPF programs are attached: {error}"))
    });
    let found = asked.and_then(|others| match others.is_empty() {
        true => Ok("none".to_owned()),
        false => Err(others.join("; ")),
    });
    Requirement::should(
        "other installations of ztunnel",
        found,
        "pods that another installation captures are refused; if it is this one, give its --bpf-pin; else stop it, and run \
         `ztunnel cleanup` with the --bpf-pin and --state that it had",
    )
}

fn bpf_file_system(pin_dir: &Path, held: Capabilities) -> Requirement {
    let found = if pins::on_bpffs(pin_dir) {
        let existing = pin_dir.ancestors().find(|path| path.exists()).unwrap_or(pin_dir);
        match writable(existing) {
            Ok(()) => Ok(format!("mounted at {}", existing.display())),
            Err(error) => Err(format!("{} can't be written: {error}", existing.display())),
        }
    } else if !is_known_file_system("bpf") {
        Err("not supported by the kernel".to_owned())
    } else if held.has(Capabilities::SYS_ADMIN) {
        Ok(format!("none at {}; the daemon mounts one", pin_dir.display()))
    } else {
        Err(format!("none at {}, and CAP_SYS_ADMIN is needed to mount one", pin_dir.display()))
    };
    Requirement::must(
        "BPF file system",
        found,
        "capture would not outlive the daemon, so it refuses to start; mount a bpffs there, or give CAP_SYS_ADMIN",
    )
}

fn lasting_pins(pin_dir: &Path, held: Capabilities) -> Requirement {
    // If no BPF file system is mounted yet, the daemon mounts it, so that the host has it.
    let found = if pins::on_bpffs(pin_dir) { pins::survives(pin_dir) } else { will_last(pin_dir, held) };
    Requirement::must(
        "pins outlive the daemon",
        found,
        "captured pods are open once the daemon is gone, so it refuses to start; mount bpffs on the host and give the daemon that \
         mount, or run it with --bpf-pin-private",
    )
}

/// Whether the host will have the BPF file system that the daemon mounts.
fn will_last(pin_dir: &Path, held: Capabilities) -> Found {
    match pins::mount_place(pin_dir)? {
        MountPlace::Here => Ok("the mount of the daemon will be visible on the host".to_owned()),
        MountPlace::OnTheHost if held.has(Capabilities::SYS_CHROOT) && held.has(Capabilities::SYS_PTRACE) => {
            Ok("the daemon will mount it on the host, and will see the mount".to_owned())
        }
        MountPlace::OnTheHost => {
            Err("the daemon cannot mount it on the host without CAP_SYS_CHROOT and CAP_SYS_PTRACE".to_owned())
        }
    }
}

fn is_known_file_system(name: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.split_whitespace().last() == Some(name))
}

/// The check is for the effective user, and includes a read-only mount of the file system.
fn writable(path: &Path) -> io::Result<()> {
    Ok(faccessat(AT_FDCWD, path, AccessFlags::W_OK, AtFlags::AT_EACCESS)?)
}

fn namespaces() -> Vec<Requirement> {
    let cookie = socket::netns_cookie().map(|cookie| format!("this one is {cookie}"));
    let netns = Netns::current();
    let entered = netns.as_ref().map(|_| "entered its own".to_owned()).map_err(ToString::to_string);
    let listed = netns.as_ref().map_err(ToString::to_string).and_then(|netns| {
        let listed = survey::connections(netns).map_err(|error| error.to_string())?;
        Ok(format!("{} listed here", listed.len()))
    });
    let cut = netns.as_ref().map_err(ToString::to_string).and_then(|netns| {
        survey::cut(netns, &[nobodys_connection()]).map_err(|error| error.to_string())?;
        Ok("known to the kernel".to_owned())
    });
    vec![
        Requirement::must(
            "entering network namespaces",
            entered,
            "no pod can be enrolled; give CAP_SYS_ADMIN and allow setns (seccomp)",
        ),
        Requirement::must(
            "netns cookie (SO_NETNS_COOKIE)",
            cookie.map_err(|error| error.to_string()),
            "pods can't be told apart; run a kernel of 5.17 or later",
        ),
        Requirement::should(
            "listing connections",
            listed,
            "probes of the kubelet are refused where policy requires an identity, and connections from \
             before a pod's enrolment are not counted; CONFIG_INET_DIAG (modules inet_diag, tcp_diag)",
        ),
        Requirement::should(
            "cutting connections",
            cut,
            "connections from before a pod's enrolment can't be cut; CONFIG_INET_DIAG_DESTROY",
        ),
    ]
}

/// A connection between addresses for documentation. A kernel that can cut connections answers that it does not exist.
fn nobodys_connection() -> SocketId {
    SocketId {
        source_address: [192, 0, 2, 1].into(),
        source_port: 1,
        destination_address: [192, 0, 2, 2].into(),
        destination_port: 1,
        ..SocketId::new_v4()
    }
}

fn sockets() -> Vec<Requirement> {
    const OPTIONS: &str = "no listener or no delivery in a pod; give CAP_NET_ADMIN, run a kernel of 5.17 or later";
    let v6 = match socket::tcp(Family::V6) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Requirement::should(
            "socket options, IPv6",
            Err("this machine has no IPv6".to_owned()),
            "pods have no IPv6 to capture; boot without ipv6.disable=1 if they should",
        ),
        _ => Requirement::must("socket options, IPv6", socket_options(Family::V6), OPTIONS),
    };
    vec![Requirement::must("socket options, IPv4", socket_options(Family::V4), OPTIONS), v6]
}

/// The options that need privileges or a recent kernel, tried on a socket that is never bound to an address.
fn socket_options(family: Family) -> Found {
    let socket = socket::tcp(family).map_err(|error| error.to_string())?;
    let transparent = if family == Family::V4 { "IP_TRANSPARENT" } else { "IPV6_TRANSPARENT" };
    let set = [
        (transparent, socket::set_transparent(&socket, family)),
        ("SO_MARK", socket.set_mark(mark::UPSTREAM)),
        ("SO_BINDTODEVICE", socket.bind_device(Some(b"lo"))),
        ("IP_BIND_ADDRESS_NO_PORT", socket::bind_without_port(&socket)),
    ];
    let refused: Vec<_> =
        set.iter().filter_map(|(name, result)| Some(format!("{name}: {}", result.as_ref().err()?))).collect();
    if refused.is_empty() { Ok(set.map(|(name, _)| name).join(", ")) } else { Err(refused.join(", ")) }
}

fn routing() -> Vec<Requirement> {
    const RULES: &str = "marked packets are not routed to the daemon; run a kernel with policy routing";
    let v6 = match rule_count(AddressFamily::Inet6) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) && !Path::new("/proc/sys/net/ipv6").exists() => {
            Ok("not needed: this machine has no IPv6".to_owned())
        }
        other => rules_found(other),
    };
    vec![
        Requirement::must(
            "sysctls for marks",
            sysctls(),
            "replies are not routed by their marks; make /proc/sys writable for the daemon, or allow fsopen (seccomp); give CAP_NET_ADMIN",
        ),
        Requirement::must("policy routing, IPv4", rules_found(rule_count(AddressFamily::Inet)), RULES),
        Requirement::must("policy routing, IPv6", v6, RULES),
    ]
}

fn rules_found(count: io::Result<usize>) -> Found {
    count.map(|count| format!("{count} rules here")).map_err(|error| error.to_string())
}

fn sysctls() -> Found {
    let wanted: Vec<_> = sysctl::WANTED.into_iter().filter(|name| !sysctl::is_absent_family(name)).collect();
    let (mut refused, mut is_direct) = (Vec::new(), true);
    for name in &wanted {
        match proc_sys::is_writable_directly(name) {
            Ok(directly) => is_direct &= directly,
            Err(error) => refused.push(format!("{name}: {error}")),
        }
    }
    match (refused.is_empty(), is_direct) {
        (false, _) => Err(refused.join(", ")),
        (true, true) => Ok(wanted.join(", ")),
        (true, false) => {
            Ok(format!("{}, through a procfs of the daemon's own, as /proc/sys is read-only", wanted.join(", ")))
        }
    }
}

/// The number of routing rules of an IP family in this network namespace.
fn rule_count(family: AddressFamily) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut request = NetlinkMessage::new(header, RouteNetlinkMessage::GetRule(rule).into());
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut count = 0;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(_)) => count += 1,
                NetlinkPayload::Done(_) => return Ok(count),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            rest = rest.get(length.max(1)..).unwrap_or_default();
        }
    }
}

fn open_files() -> Requirement {
    let found = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard >= WANTED_FILES => Ok(format!("hard limit {hard}")),
        Ok((_, hard)) => Err(format!("hard limit {hard}, less than {WANTED_FILES}")),
        Err(errno) => Err(io::Error::from(errno).to_string()),
    };
    Requirement::should(
        "open files (RLIMIT_NOFILE)",
        found,
        "connections beyond half the limit; raise the hard limit (LimitNOFILE= of the unit, ulimit -Hn)",
    )
}

#[cfg(test)]
mod tests;
