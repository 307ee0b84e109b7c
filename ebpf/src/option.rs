//! Prevents socket options of enrolled pods from undoing decisions of the connect hook.
//!
//! | option | on a socket of an enrolled pod |
//! |---|---|
//! | `SO_MARK` | the daemon's bits stay as they are, the others are set |
//! | `IPV6_RTHDR` and similar, `IP_OPTIONS`, on TCP | refused: the packets would take another route than the connection |
//! | `PACKET_QDISC_BYPASS`, `XDP_TX_RING` | refused: the packets would bypass `guard` |
//!
//! Sockets of the daemon, and all sockets outside enrolled pods, are not affected.

use aya_ebpf::{EbpfContext as _, bindings::bpf_sockopt, helpers::bpf_get_netns_cookie, programs::SockoptContext};
use ebpf_common::{Pod, mark};

use crate::maps::{PODS, is_daemons};

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;
/// The kernel shows the program at most one page of a value, and would otherwise set the truncated value.
const SHOWN: i32 = 4096;

const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const SOL_IP: i32 = 0;
const IP_OPTIONS: i32 = 4;
const SOL_IPV6: i32 = 41;
const IPV6_2292RTHDR: i32 = 5;
const IPV6_2292PKTOPTIONS: i32 = 6;
const IPV6_RTHDRDSTOPTS: i32 = 55;
const IPV6_RTHDR: i32 = 57;
const SOL_PACKET: i32 = 263;
const PACKET_QDISC_BYPASS: i32 = 20;
const SOL_XDP: i32 = 283;
const XDP_TX_RING: i32 = 3;

const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

/// The meaning of an option for the capture.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Harmless,
    Mark,
    /// An option of TCP sockets that changes the route of packets.
    Detour,
    /// An option that lets packets bypass the guards.
    Bypass,
}

#[inline(always)]
pub(crate) fn set(ctx: &SockoptContext) -> i32 {
    // SAFETY: the context is valid for the length of the program, and the only reference to it.
    let option = unsafe { &mut *ctx.sockopt };
    let kind = match (option.level, option.optname) {
        (SOL_SOCKET, SO_MARK) => Kind::Mark,
        (SOL_IP, IP_OPTIONS) | (SOL_IPV6, IPV6_RTHDR | IPV6_RTHDRDSTOPTS | IPV6_2292RTHDR | IPV6_2292PKTOPTIONS) => {
            Kind::Detour
        }
        (SOL_PACKET, PACKET_QDISC_BYPASS) | (SOL_XDP, XDP_TX_RING) => Kind::Bypass,
        _ => Kind::Harmless,
    };
    if kind == Kind::Harmless || !is_of_pod(ctx) {
        // 0: the kernel sets the caller's own value, untruncated.
        if option.optlen > SHOWN {
            option.optlen = 0;
        }
        return ALLOW;
    }
    match kind {
        Kind::Mark => {
            keep_bits(option);
            ALLOW
        }
        Kind::Detour if is_empty(option) || !is_tcp(option) => {
            if option.optlen > SHOWN {
                option.optlen = 0;
            }
            ALLOW
        }
        _ => REFUSE,
    }
}

/// Whether the socket belongs to an enrolled pod and is not the daemon's.
#[inline(always)]
fn is_of_pod(ctx: &SockoptContext) -> bool {
    // SAFETY: the helper takes the program's context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: entries of PODS are only replaced as a whole.
    let captured = unsafe { PODS.get(cookie) }.is_some_and(|pod| pod.flags & Pod::CAPTURE_OUTBOUND != 0);
    // SAFETY: the context holds the socket for the length of the program.
    captured && !unsafe { is_daemons((*ctx.sockopt).__bindgen_anon_1.sk) }
}

/// Whether an IPv6 option has no value, so that the option is removed. A length of 0 in the context is not enough:
/// other hooks set it to have a value taken unchanged. The kernel shows at least 16 bytes, whatever the length; every
/// routing header is longer.
#[inline(always)]
fn is_empty(option: &bpf_sockopt) -> bool {
    const LEAST_SHOWN: usize = 16;
    // SAFETY: only the pointers are compared, as the verifier requires.
    let is_short = unsafe {
        let value = option.__bindgen_anon_2.optval.cast::<u8>();
        value.add(LEAST_SHOWN + 1) > option.__bindgen_anon_3.optval_end.cast::<u8>()
    };
    is_short && option.level == SOL_IPV6 && option.optlen == 0
}

#[inline(always)]
fn is_tcp(option: &bpf_sockopt) -> bool {
    // SAFETY: the context holds the socket for the length of the program.
    let protocol = unsafe { (*option.__bindgen_anon_1.sk).protocol };
    protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP
}

/// Replaces the daemon's bits of a new mark with those of the socket's present mark.
#[inline(always)]
fn keep_bits(option: &mut bpf_sockopt) {
    // SAFETY: the context holds the socket for the length of the program, and the value is within its bounds.
    unsafe {
        let value = option.__bindgen_anon_2.optval.cast::<u32>();
        let end = option.__bindgen_anon_3.optval_end.cast::<u32>();
        if value.add(1) > end {
            // The value is too short for a mark: the kernel refuses it.
            return;
        }
        let old = (*option.__bindgen_anon_1.sk).mark;
        let wanted = value.read_unaligned();
        let kept = (wanted & !mark::MASK) | (old & mark::MASK);
        value.write_unaligned(kept);
        option.optlen = size_of::<u32>() as i32;
    }
}
