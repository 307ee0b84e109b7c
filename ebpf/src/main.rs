//! The kernel part of the node daemon. Two connect hooks mark the sockets of enrolled pods, and a hook keeps the marks
//! on them. For each pod, one socket lookup program steers packets to the daemon's listeners, two programs guard
//! the pod's devices, and one holds SYNs until the daemon has reached their destination. `docs/capture.md` shows how they work together.
//!
//! This file has only the entry points. `connect`, `option`, `steer`, `hold` and `guard` have the programs, `packet` parses
//! packets, `maps` has the maps, and `count` counts verdicts.
#![no_std]
#![no_main]
#![expect(clippy::needless_pass_by_value, reason = "the entry points' signatures are those of the macros")]

mod connect;
mod count;
mod guard;
mod hold;
mod maps;
mod option;
mod packet;
mod steer;

use aya_ebpf::{
    macros::{cgroup_sock_addr, cgroup_sockopt, classifier, sk_lookup},
    programs::{SkLookupContext, SockAddrContext, SockoptContext, TcContext},
};

/// `connect()` of an IPv4 socket anywhere on the node.
#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    connect::connect4(&ctx)
}

/// `connect()` of an IPv6 socket anywhere on the node, IPv4-mapped destinations included.
#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    connect::connect6(&ctx)
}

/// `setsockopt()` of any socket anywhere on the node.
#[cgroup_sockopt(setsockopt)]
pub(crate) fn setsockopt(ctx: SockoptContext) -> i32 {
    option::set(&ctx)
}

/// A packet that leaves one pod over an Ethernet device.
#[classifier]
pub(crate) fn egress(ctx: TcContext) -> i32 {
    guard::leaving(&ctx, packet::ETHERNET)
}

/// A packet that leaves one pod over a device without link-layer headers.
#[classifier]
pub(crate) fn egress_ip(ctx: TcContext) -> i32 {
    guard::leaving(&ctx, packet::BARE_IP)
}

/// A packet that arrives at one pod over an Ethernet device.
#[classifier]
pub(crate) fn ingress(ctx: TcContext) -> i32 {
    guard::arriving(&ctx, packet::ETHERNET)
}

/// A packet that arrives at one pod over a device without link-layer headers.
#[classifier]
pub(crate) fn ingress_ip(ctx: TcContext) -> i32 {
    guard::arriving(&ctx, packet::BARE_IP)
}

/// A packet that arrives over the loopback device of one pod.
#[classifier]
pub(crate) fn hold(ctx: TcContext) -> i32 {
    hold::arriving(&ctx)
}

/// A packet for which one pod's netns has no established socket.
#[sk_lookup]
pub(crate) fn steer(ctx: SkLookupContext) -> u32 {
    steer::steer(&ctx)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel requires this license of programs that call GPL-only helpers (the log's ring buffer among them).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
