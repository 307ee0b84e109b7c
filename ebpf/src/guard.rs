//! Guards the devices of one pod, where its packets leave and arrive.
//!
//! The connect hook decides about a destination, but until the first packet a socket may still change its mark
//! (CAP_NET_RAW) or its route (a source route). A raw socket or a packet socket never connects. Every TCP connection
//! has a first packet, so the first packet is evaluated again here, where the socket can no longer change it. All other
//! packets pass; so connections from before the enrolment go on.
//!
//! | packet of an enrolled pod | verdict |
//! |---|---|
//! | leaves, first of a connection: the daemon's socket, or a destination that is not captured | passes |
//! | leaves, first of a connection, any other | dropped |
//! | leaves, TCP with IPv4 options, an IPv6 routing header, or flags that can't be found | dropped, unless the daemon's |
//! | arrives, first of a connection, from an address of the pod | dropped: for `steer` the pod would connect to itself |
//! | any other | passes |

use aya_ebpf::{helpers::bpf_sk_fullsock, programs::TcContext};
use ebpf_common::{
    Addr, Pod, Verdict,
    capture::{Capture, Exceptions as _},
};

use crate::{
    count::count,
    maps::{COOKIE, Exceptions, PODS, is_daemons},
    packet::{self, Seen},
};

/// TC_ACT_UNSPEC: the next program of the device decides.
const NEXT: i32 = -1;
/// TC_ACT_SHOT.
const DROP: i32 = 2;

/// A packet that leaves the pod.
#[inline(always)]
pub(crate) fn leaving(ctx: &TcContext, link: u32) -> i32 {
    let to = match packet::look(ctx, link) {
        Seen::Other => return NEXT,
        Seen::Syn { destination, port, .. } => Some((destination, port)),
        Seen::Detour | Seen::Hidden => None,
    };
    let cookie = COOKIE.load();
    if !is_captured(cookie) || may_leave(cookie, to.as_ref()) || is_of_daemon(ctx) {
        return NEXT;
    }
    count(cookie, Verdict::Bypass);
    DROP
}

/// A packet that arrives at the pod.
#[inline(always)]
pub(crate) fn arriving(ctx: &TcContext, link: u32) -> i32 {
    let Seen::Syn { source, .. } = packet::look(ctx, link) else {
        return NEXT;
    };
    let cookie = COOKIE.load();
    if !is_captured(cookie) || !(Exceptions { cookie }).is_own(&source) {
        return NEXT;
    }
    count(cookie, Verdict::Bypass);
    DROP
}

#[inline(always)]
fn is_captured(cookie: u64) -> bool {
    // SAFETY: entries of PODS are only replaced as a whole.
    unsafe { PODS.get(cookie) }.is_some_and(|pod| pod.flags & Pod::CAPTURE_OUTBOUND != 0)
}

/// Whether a connection to the destination is not captured. A connection to an own address of the pod does not belong
/// on a device.
#[inline(always)]
fn may_leave(cookie: u64, to: Option<&(Addr, u16)>) -> bool {
    let Some((addr, port)) = to else {
        return false;
    };
    matches!(
        Capture::of(addr, *port, &Exceptions { cookie }),
        Capture::OnLink | Capture::ExcludedPort | Capture::ExcludedAddr
    )
}

#[inline(always)]
fn is_of_daemon(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid for the length of the program, and so is the socket of its packet.
    unsafe {
        let sk = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return false;
        }
        let sk = bpf_sk_fullsock(sk);
        !sk.is_null() && is_daemons(sk)
    }
}
