//! The kernel's side of the node daemon: two connect hooks that mark the sockets of enrolled pods, and one socket lookup
//! program per pod that steers packets to the daemon's listeners. See the crate docs of `ztunnel` for the whole picture.
//!
//! Entry points only; `connect` and `steer` hold what they do, `maps` what they know, `count` what they tell.
#![no_std]
#![no_main]
#![expect(clippy::needless_pass_by_value, reason = "the entry points' signatures are those of the macros")]

mod connect;
mod count;
mod maps;
mod steer;

use aya_ebpf::{
    macros::{cgroup_sock_addr, sk_lookup},
    programs::{SkLookupContext, SockAddrContext},
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
