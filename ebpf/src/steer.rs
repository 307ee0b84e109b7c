//! Steers the packets of one pod's netns to the daemon's listeners.
//!
//! | packet | verdict |
//! |---|---|
//! | destination is neither the pod's nor loopback | outbound listener |
//! | destination is the pod's, came over the loopback interface | the daemon's delivery or loopback: to the application |
//! | destination and source are the pod's | the pod connects to itself: to the application |
//! | destination is the pod's, port 15008 | HBONE listener |
//! | destination is the pod's, and its port or all ports are excluded | to the application |
//! | destination is the pod's, anything else | inbound listener |
//! | the listener does not exist | dropped; the kernel answers with a reset, but never from a foreign IPv4 address |

use aya_ebpf::programs::SkLookupContext;
use aya_log_ebpf::debug;
use ebpf_common::{
    AF_INET, AF_INET6, Addr, Direction, ExcludedPort, HBONE_PORT, Listener, LocalAddr, Purpose, Verdict, is_loopback,
    mapped, worker_of,
};

use crate::{
    count::count,
    maps::{COOKIE, EXCLUDED_PORTS, LISTENERS, LOCAL_ADDRS, PODS},
};

const DROP: u32 = 0;
const PASS: u32 = 1;
const IPPROTO_TCP: u32 = 6;
/// `lo` is the first interface of every netns.
const LOOPBACK_IFINDEX: u32 = 1;

#[inline(always)]
pub(crate) fn steer(ctx: &SkLookupContext) -> u32 {
    // SAFETY: the context is valid for the length of the program.
    let (protocol, family) = unsafe { ((*ctx.lookup).protocol, (*ctx.lookup).family) };
    if protocol != IPPROTO_TCP || (family != AF_INET && family != AF_INET6) {
        return PASS;
    }
    let cookie = COOKIE.load();
    let verdict = judge(ctx, cookie, family);
    let verdict = match verdict {
        Verdict::Outbound => assign(ctx, cookie, family, Purpose::Outbound, verdict),
        Verdict::Inbound => assign(ctx, cookie, family, Purpose::Inbound, verdict),
        Verdict::Hbone => assign(ctx, cookie, family, Purpose::Hbone, verdict),
        other => other,
    };
    count(cookie, verdict);
    debug!(ctx, "steer netns={} verdict={}", cookie, verdict as u32);
    if matches!(verdict, Verdict::NoListener) { DROP } else { PASS }
}

#[inline(always)]
fn judge(ctx: &SkLookupContext, cookie: u64, family: u32) -> Verdict {
    let local = local_addr(ctx, family);
    if !is_loopback(&local) && !is_own(cookie, &local) {
        return Verdict::Outbound;
    }
    // SAFETY: the context is valid for the length of the program.
    let (ifindex, port) = unsafe { ((*ctx.lookup).ingress_ifindex, (*ctx.lookup).local_port) };
    if ifindex == LOOPBACK_IFINDEX {
        return Verdict::Delivered;
    }
    if is_own(cookie, &remote_addr(ctx, family)) {
        return Verdict::SelfCall;
    }
    if port == u32::from(HBONE_PORT) {
        return Verdict::Hbone;
    }
    if excludes(cookie, port) || excludes(cookie, u32::from(ExcludedPort::EVERY)) {
        return Verdict::ExcludedInbound;
    }
    Verdict::Inbound
}

#[inline(always)]
fn excludes(cookie: u64, port: u32) -> bool {
    // SAFETY: only the presence of the value counts.
    unsafe { EXCLUDED_PORTS.get(ExcludedPort { cookie, direction: Direction::Inbound as u32, port }) }.is_some()
}

#[inline(always)]
fn assign(ctx: &SkLookupContext, cookie: u64, family: u32, purpose: Purpose, verdict: Verdict) -> Verdict {
    // SAFETY: entries of PODS are only replaced as a whole.
    let Some(pod) = (unsafe { PODS.get(cookie) }) else {
        return Verdict::NoListener;
    };
    // SAFETY: the context is valid for the length of the program.
    let port = u16::from_be(unsafe { (*ctx.lookup).remote_port });
    let worker = worker_of(port, pod.workers) as u16;
    let key = Listener { cookie, purpose: purpose as u32, family: family as u16, worker };
    match LISTENERS.redirect_sk_lookup(ctx, key, 0) {
        Ok(()) => verdict,
        Err(_) => Verdict::NoListener,
    }
}

#[inline(always)]
fn is_own(cookie: u64, addr: &Addr) -> bool {
    // SAFETY: only the presence of the value counts.
    unsafe { LOCAL_ADDRS.get(LocalAddr { cookie, addr: *addr }) }.is_some()
}

#[inline(always)]
fn local_addr(ctx: &SkLookupContext, family: u32) -> Addr {
    // SAFETY: the context is valid for the length of the program.
    unsafe {
        if family == AF_INET {
            return mapped((*ctx.lookup).local_ip4.to_ne_bytes());
        }
        addr6((&raw const (*ctx.lookup).local_ip6).cast())
    }
}

#[inline(always)]
fn remote_addr(ctx: &SkLookupContext, family: u32) -> Addr {
    // SAFETY: as above.
    unsafe {
        if family == AF_INET {
            return mapped((*ctx.lookup).remote_ip4.to_ne_bytes());
        }
        addr6((&raw const (*ctx.lookup).remote_ip6).cast())
    }
}

/// Four separate reads of four bytes, as the verifier requires for a context.
///
/// # Safety
/// `words` must point to the four words of an address in the program's context.
#[inline(always)]
unsafe fn addr6(words: *const u32) -> Addr {
    // SAFETY: by the caller.
    let [a, b, c, d] = unsafe {
        [
            words.read_volatile().to_ne_bytes(),
            words.add(1).read_volatile().to_ne_bytes(),
            words.add(2).read_volatile().to_ne_bytes(),
            words.add(3).read_volatile().to_ne_bytes(),
        ]
    };
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}
