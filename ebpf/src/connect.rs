//! Marks the sockets with which enrolled pods open connections.
//!
//! The address stays unchanged, so that `getpeername` tells the application the truth. Policy routing by the mark leads
//! the SYN to the loopback interface of the pod, where `steer` gets it.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_netns_cookie, bpf_map_lookup_elem, bpf_set_retval, bpf_setsockopt, bpf_sk_release},
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use ebpf_common::{
    AF_INET, AF_INET6, Addr, Interface, Listener, Pod, Purpose, Verdict, capture::Capture, is_mapped, mapped, mark,
};

use crate::{
    count::count,
    maps::{CAN_SET_RETVAL, Exceptions, INTERFACES, LISTENERS, PODS, is_daemons},
};

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const ENETUNREACH: i32 = 101;
const ECONNREFUSED: i32 = 111;

#[inline(always)]
pub(crate) fn connect4(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the context is valid for the length of the program.
    let ip = unsafe { (*ctx.sock_addr).user_ip4 };
    connect(ctx, &mapped(ip.to_ne_bytes()))
}

#[inline(always)]
pub(crate) fn connect6(ctx: &SockAddrContext) -> i32 {
    // SAFETY: as above. The verifier requires four separate reads of four bytes.
    let words = unsafe {
        let ip = &raw const (*ctx.sock_addr).user_ip6;
        let ip = ip.cast::<u32>();
        [ip.read_volatile(), ip.add(1).read_volatile(), ip.add(2).read_volatile(), ip.add(3).read_volatile()]
    };
    let [a, b, c, d] = [words[0].to_ne_bytes(), words[1].to_ne_bytes(), words[2].to_ne_bytes(), words[3].to_ne_bytes()];
    let addr = [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]];
    connect(ctx, &addr)
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, addr: &Addr) -> i32 {
    // SAFETY: the context is valid for the length of the program.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    if protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP {
        return ALLOW;
    }
    // SAFETY: the helper takes the program's context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: entries of PODS are only replaced as a whole; a torn read mixes two states of the same pod.
    let Some(pod) = (unsafe { PODS.get(cookie) }) else {
        return ALLOW;
    };
    if pod.flags & Pod::CAPTURE_OUTBOUND == 0 {
        return ALLOW;
    }
    // SAFETY: the context holds the socket for the length of the program.
    if unsafe { is_daemons((*ctx.sock_addr).__bindgen_anon_1.sk) } {
        count(cookie, Verdict::OwnSocket);
        return ALLOW;
    }
    // SAFETY: the context is valid for the length of the program.
    let port = u16::from_be(unsafe { (*ctx.sock_addr).user_port } as u16);
    let mut verdict = Capture::of(addr, port, &Exceptions { cookie }).verdict();
    if matches!(verdict, Verdict::Captured) {
        let speaks = if is_mapped(addr) { Pod::SPEAKS_V4 } else { Pod::SPEAKS_V6 };
        if pod.flags & speaks == 0 {
            verdict = Verdict::NoAddress;
        } else if !someone_listens(cookie, addr) {
            verdict = Verdict::NoDaemon;
        } else if !device_is_captured(ctx, cookie) {
            verdict = Verdict::NoRoute;
        }
    }
    if !set_mark(ctx, verdict) {
        verdict = Verdict::MarkFailed;
    }
    count(cookie, verdict);
    debug!(ctx, "connect netns={} verdict={}", cookie, verdict as u32);
    match verdict {
        Verdict::NoAddress | Verdict::NoRoute => refuse(ENETUNREACH),
        Verdict::NoDaemon => refuse(ECONNREFUSED),
        Verdict::MarkFailed => REFUSE,
        _ => ALLOW,
    }
}

/// Whether the capture routes apply to the socket. If the socket is bound to a device without a capture route, IPv4
/// takes the destination to be on the device's link, and the packet leaves the pod despite the rules.
#[inline(always)]
fn device_is_captured(ctx: &SockAddrContext, cookie: u64) -> bool {
    // SAFETY: the context holds the socket for the length of the program.
    let index = unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        (*sk).bound_dev_if
    };
    // SAFETY: only the presence of the value counts.
    index == 0 || unsafe { INTERFACES.get(Interface { cookie, index: u64::from(index) }) }.is_some()
}

/// Whether the daemon listens. If it does not, the packet would be dropped silently: the kernel sends no reset from an
/// IPv4 address that is not the pod's.
#[inline(always)]
fn someone_listens(cookie: u64, addr: &Addr) -> bool {
    let family = if is_mapped(addr) { AF_INET } else { AF_INET6 };
    let key = Listener { cookie, purpose: Purpose::Outbound as u32, family: family as u16, worker: 0 };
    // SAFETY: the map is a sockhash, whose look-up takes a reference on the socket; it is given back at once.
    unsafe {
        let socket = bpf_map_lookup_elem((&raw const LISTENERS).cast_mut().cast(), (&raw const key).cast());
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket);
    }
    true
}

/// Makes the connect fail with `error` if the kernel lets the program choose the error (Linux 6.1), or else with EPERM.
#[inline(always)]
fn refuse(error: i32) -> i32 {
    if CAN_SET_RETVAL.load() != 0 {
        // SAFETY: the helper takes a negative error number.
        unsafe { bpf_set_retval(-error) };
    }
    REFUSE
}

/// Sets the daemon's bits of the socket's mark according to the verdict. It also clears bits that an earlier connect of
/// the same socket, or the pod itself, has set.
#[inline(always)]
fn set_mark(ctx: &SockAddrContext, verdict: Verdict) -> bool {
    let bits = if matches!(verdict, Verdict::Captured) { mark::CAPTURE } else { 0 };
    // SAFETY: the context holds the socket for the length of the program.
    let old = unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        (*sk).mark
    };
    let mut wanted = (old & !mark::MASK) | bits;
    if wanted == old {
        return true;
    }
    // SAFETY: the option's value is four bytes on this stack.
    let error =
        unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_MARK, (&raw mut wanted).cast(), size_of::<u32>() as i32) };
    error == 0
}
