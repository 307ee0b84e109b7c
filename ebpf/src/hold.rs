//! Takes the SYNs of captured connects from the loopback device of one pod, and passes them to the daemon.
//!
//! The daemon connects to the destination first. Then it puts the SYN back with the mark INJECTED, or answers it as the
//! destination would have answered. The connect of the application waits meanwhile, and has the result that it would have
//! without the daemon. The kernel repeats a SYN that has no answer, so a lost one costs a second.
//!
//! | packet | verdict |
//! |---|---|
//! | mark CAPTURE without INJECTED, a SYN from an address of the pod | passed to the daemon, and dropped |
//! | the same, while the ring buffer is full | dropped |
//! | the same, with more header bytes than a record has | passes: the daemon accepts it before it connects |
//! | any other | passes |

use aya_ebpf::{
    helpers::{bpf_ktime_get_ns, bpf_skb_load_bytes},
    programs::TcContext,
};
use ebpf_common::{HELD_BYTES, HeldSyn, capture::Exceptions as _, mark};

use crate::{
    maps::{COOKIE, Exceptions, HELD_SYNS},
    packet::{self, ETHERNET, Seen},
};

/// TC_ACT_UNSPEC: the next program of the device decides.
const NEXT: i32 = -1;
/// TC_ACT_SHOT.
const DROP: i32 = 2;
/// The place of the length of the TCP header, in the upper half of a byte, in words of four bytes.
const LENGTH_AT: usize = 12;
const _: () = assert!(HELD_BYTES.is_power_of_two());

#[inline(always)]
pub(crate) fn arriving(ctx: &TcContext) -> i32 {
    // SAFETY: the context is valid for the length of the program.
    if unsafe { (*ctx.skb.skb).mark } & mark::MASK != mark::CAPTURE {
        return NEXT;
    }
    let Seen::Syn { source, at, .. } = packet::look(ctx, ETHERNET) else {
        return NEXT;
    };
    // A source that is not the pod's is forged, or one of those for which the maps had no room. The daemon judges it as it
    // judges every connection that it accepts.
    if !(Exceptions { cookie: COOKIE.load() }).is_own(&source) {
        return NEXT;
    }
    let Ok(words) = ctx.load::<u8>(at as usize + LENGTH_AT) else {
        return NEXT;
    };
    let tcp = at.wrapping_sub(ETHERNET);
    let length = tcp.wrapping_add((u32::from(words) >> 4) << 2);
    if length == 0 || length > HELD_BYTES as u32 {
        return NEXT;
    }
    // SAFETY: the helper has no conditions.
    let time = unsafe { bpf_ktime_get_ns() };
    let mut syn = HeldSyn { time, tcp, length, bytes: [0; HELD_BYTES] };
    // The verifier has to see the bounds in this register.
    let copied = ((length - 1) & (HELD_BYTES as u32 - 1)) + 1;
    // SAFETY: the record has room for as many bytes.
    let loaded = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), ETHERNET, (&raw mut syn.bytes).cast(), copied) };
    if loaded != 0 {
        return NEXT;
    }
    // Without room the SYN is dropped all the same: nothing is accepted in the daemon's place.
    let _full = HELD_SYNS.output(syn, 0);
    DROP
}
