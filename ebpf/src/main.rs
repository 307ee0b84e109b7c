//! The kernel's side of the node daemon: two connect hooks that mark the sockets of enrolled pods, a hook that keeps the mark on
//! them, and for each pod one socket lookup program that steers packets to the daemon's listeners and two that guard its
//! devices. See the crate docs of `ztunnel` for the whole picture.
//!
//! Entry points only; `connect`, `option`, `steer` and `guard` hold what they do, `packet` reads packets, `maps` is what they
//! know, `count` what they tell.
#![no_std]
#![no_main]
#![expect(clippy::needless_pass_by_value, reason = "the entry points' signatures are those of the macros")]

mod connect;
mod count;
mod guard;
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

/// A packet that no established socket of one pod's netns takes.
#[sk_lookup]
pub(crate) fn steer(ctx: SkLookupContext) -> u32 {
    steer::steer(&ctx)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel asks for it of programs that call GPL-only helpers (the log's ring buffer among them).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
