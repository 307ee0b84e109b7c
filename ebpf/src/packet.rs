//! Finds the TCP header of a packet on a device, after all headers before it.

use aya_ebpf::programs::TcContext;
use ebpf_common::{Addr, mapped};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const IPPROTO_HOP_OPTIONS: u8 = 0;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_AUTHENTICATION: u8 = 51;
const IPPROTO_DESTINATION_OPTIONS: u8 = 60;

/// The most VLAN tags that are skipped: a receiver removes a tag of VLAN 0 without any configuration.
const MOST_TAGS: usize = 2;
/// The most IPv6 extension headers that are skipped.
const MOST_EXTENSIONS: usize = 8;
/// The length of a TCP header without options. A fragment that begins within it may contain the flags.
const TCP_HEADER: u16 = 20;
const FLAGS_AT: u32 = 13;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A device that carries Ethernet frames.
pub(crate) const ETHERNET: u32 = 14;
/// A device that carries IP packets without a header before them.
pub(crate) const BARE_IP: u32 = 0;

/// The meaning of a packet for the guards.
pub(crate) enum Seen {
    /// Not TCP over IP, or not the first packet of a connection.
    Other,
    /// The first packet of a connection, with the addresses in the IP header.
    Syn {
        source: Addr,
        destination: Addr,
        /// The destination port, in host order.
        port: u16,
        /// The offset of the TCP header.
        at: u32,
    },
    /// TCP with IPv4 options or an IPv6 routing header, which may lead it to another host than its connection's.
    Detour,
    /// TCP whose flags are not where every implementation writes them.
    Hidden,
}

/// A TCP header, and facts from the headers before it.
struct Tcp {
    at: u32,
    source: Addr,
    destination: Addr,
    detour: bool,
}

/// The result of the search for a TCP header.
enum Found {
    Tcp(Tcp),
    Other,
    Hidden,
}

/// Looks at a packet whose link-layer header has `link` bytes.
#[inline(always)]
pub(crate) fn look(ctx: &TcContext, link: u32) -> Seen {
    if is_plainly_other(ctx, link as usize) {
        return Seen::Other;
    }
    let tcp = match ip(ctx, link) {
        Found::Tcp(tcp) => tcp,
        Found::Other => return Seen::Other,
        Found::Hidden => return Seen::Hidden,
    };
    let Some(flags) = byte(ctx, tcp.at + FLAGS_AT) else {
        return Seen::Hidden;
    };
    if tcp.detour {
        return Seen::Detour;
    }
    if !is_syn(flags) {
        return Seen::Other;
    }
    let Some(port) = short(ctx, tcp.at + 2) else {
        return Seen::Hidden;
    };
    Seen::Syn { source: tcp.source, destination: tcp.destination, port, at: tcp.at }
}

/// Whether a packet is of the most usual kind: TCP of an established connection, with no unusual header before it.
/// Reads the packet in place, since a helper call for each part costs ten times as much.
#[inline(always)]
fn is_plainly_other(ctx: &TcContext, link: usize) -> bool {
    const V4: usize = 20;
    const V6: usize = 40;
    let (data, end) = (ctx.data(), ctx.data_end());
    // A byte within the bounds that have been compared before.
    // SAFETY: each call comes after a comparison of its offset with the end of the packet, as the verifier proves.
    let at = |place: usize| unsafe { *((data + place) as *const u8) };
    if data + link + V4 + FLAGS_AT as usize >= end {
        return false;
    }
    match at(link) {
        // Without options, and not a fragment, not even the first.
        0x45 if is_type(&at, link, ETHERTYPE_IPV4) && (at(link + 6) & 0x3f) | at(link + 7) == 0 => {
            at(link + 9) != IPPROTO_TCP || !is_syn(at(link + V4 + FLAGS_AT as usize))
        }
        first if first >> 4 == 6 && is_type(&at, link, ETHERTYPE_IPV6) && at(link + 6) == IPPROTO_TCP => {
            data + link + V6 + (FLAGS_AT as usize) < end && !is_syn(at(link + V6 + FLAGS_AT as usize))
        }
        _ => false,
    }
}

#[inline(always)]
fn is_type(at: &impl Fn(usize) -> u8, link: usize, kind: u16) -> bool {
    link == BARE_IP as usize || (at(link - 2) == (kind >> 8) as u8 && at(link - 1) == kind as u8)
}

/// Whether these flags are of the first packet of a connection.
#[inline(always)]
const fn is_syn(flags: u8) -> bool {
    flags & (SYN | ACK) == SYN
}

#[inline(always)]
fn ip(ctx: &TcContext, link: u32) -> Found {
    let (kind, at) = if link == BARE_IP { (version(ctx), 0) } else { network_header(ctx, link) };
    match kind {
        ETHERTYPE_IPV4 => ipv4(ctx, at),
        ETHERTYPE_IPV6 => ipv6(ctx, at),
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => Found::Hidden,
        _ => Found::Other,
    }
}

/// The type and offset of the header after the link-layer header. The type is read from the frame, since a packet
/// socket may claim any other. The type of a VLAN tag means that there are more tags than are skipped.
#[inline(always)]
fn network_header(ctx: &TcContext, link: u32) -> (u16, u32) {
    let (mut kind, mut at) = (short(ctx, link - 2).unwrap_or(0), link);
    for _ in 0..MOST_TAGS {
        if kind == ETHERTYPE_VLAN || kind == ETHERTYPE_QINQ {
            kind = short(ctx, at + 2).unwrap_or(0);
            at += 4;
        }
    }
    (kind, at)
}

/// The type of a packet by its first byte.
#[inline(always)]
fn version(ctx: &TcContext) -> u16 {
    match byte(ctx, 0).unwrap_or(0) >> 4 {
        4 => ETHERTYPE_IPV4,
        6 => ETHERTYPE_IPV6,
        _ => 0,
    }
}

#[inline(always)]
fn ipv4(ctx: &TcContext, at: u32) -> Found {
    let Ok(header) = ctx.load::<[u8; 20]>(at as usize) else {
        return Found::Other;
    };
    if header[9] != IPPROTO_TCP {
        return Found::Other;
    }
    let fragment = (u16::from_be_bytes([header[6], header[7]]) & 0x1fff) << 3;
    if fragment != 0 {
        return if fragment < TCP_HEADER { Found::Hidden } else { Found::Other };
    }
    let length = u32::from(header[0] & 0xf) << 2;
    Found::Tcp(Tcp {
        at: at + length,
        source: mapped([header[12], header[13], header[14], header[15]]),
        destination: mapped([header[16], header[17], header[18], header[19]]),
        // To find out which option it is would take a loop; TCP needs none of them.
        detour: length > 20,
    })
}

#[inline(always)]
fn ipv6(ctx: &TcContext, at: u32) -> Found {
    let Ok(next) = ctx.load::<u8>(at as usize + 6) else {
        return Found::Other;
    };
    let (mut next, mut here, mut detour) = (next, at + 40, false);
    for _ in 0..=MOST_EXTENSIONS {
        match next {
            IPPROTO_TCP => {
                let Ok([source, destination]) = ctx.load::<[Addr; 2]>(at as usize + 8) else {
                    return Found::Other;
                };
                return Found::Tcp(Tcp { at: here, source, destination, detour });
            }
            IPPROTO_FRAGMENT => {
                let (Some(following), Some(place)) = (byte(ctx, here), short(ctx, here + 2)) else {
                    return Found::Other;
                };
                let fragment = place & 0xfff8;
                if fragment != 0 {
                    // A first fragment without the flags is dropped, and without it this fragment is useless.
                    let hides = following == IPPROTO_TCP && fragment < TCP_HEADER;
                    return if hides { Found::Hidden } else { Found::Other };
                }
                next = following;
                here += 8;
            }
            IPPROTO_HOP_OPTIONS | IPPROTO_ROUTING | IPPROTO_DESTINATION_OPTIONS | IPPROTO_AUTHENTICATION => {
                let (Some(following), Some(length)) = (byte(ctx, here), byte(ctx, here + 1)) else {
                    return Found::Hidden;
                };
                let length = u32::from(length);
                here += if next == IPPROTO_AUTHENTICATION { (length + 2) << 2 } else { (length + 1) << 3 };
                detour |= next == IPPROTO_ROUTING;
                next = following;
            }
            _ => return Found::Other,
        }
    }
    Found::Hidden
}

#[inline(always)]
fn byte(ctx: &TcContext, at: u32) -> Option<u8> {
    ctx.load::<u8>(at as usize).ok()
}

/// Two bytes in network order.
#[inline(always)]
fn short(ctx: &TcContext, at: u32) -> Option<u16> {
    ctx.load::<[u8; 2]>(at as usize).ok().map(u16::from_be_bytes)
}
