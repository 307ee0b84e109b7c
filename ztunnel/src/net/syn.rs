//! A SYN that was taken from a pod's network namespace, and the packets that answer it: the SYN itself, a reset, or an ICMP error.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    time::Duration,
};

use ebpf_common::HELD_BYTES;
use thiserror::Error;

use crate::model::{
    addr::{OrigDst, PeerAddr},
    flow::{Direction, Flow},
};

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_ICMP_V6: u8 = 58;
const HOP_LIMIT: u8 = 64;
const RST_ACK: u8 = 0x14;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The SYN of a connect that waits for its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syn {
    peer: SocketAddr,
    dst: SocketAddr,
    sequence: u32,
    /// The IP header, without IPv6 extension headers, as the pod has sent it.
    ip: Vec<u8>,
    /// The TCP header with its options.
    tcp: Vec<u8>,
}

/// Why bytes are not a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotASyn {
    /// They are not the beginning of an IP packet.
    #[error("no IP header")]
    Ip,
    /// The TCP header is not complete.
    #[error("no complete TCP header")]
    Tcp,
    /// The flags are not those of a SYN.
    #[error("not the first packet of a connection")]
    Flags,
}

/// What a destination's network answers if the destination can't be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// There is no route to it: `ENETUNREACH`.
    Network,
    /// It does not answer on its link: `EHOSTUNREACH`.
    Host,
    /// A router or a filter forbids it: `EACCES` in IPv6, `EHOSTUNREACH` in IPv4.
    Prohibited,
}

/// The SYNs that are taken from one pod.
pub trait SynSource: Send {
    /// Waits for SYNs, and passes each of them on. Ends only with an error.
    fn read<'a>(&'a mut self, take: &'a mut dyn FnMut(Syn)) -> Pin<Box<dyn Future<Output = io::Error> + 'a>>;
}

/// A SYN that has waited longer than this was left by a daemon that did not run. Its client has sent it again, or does so within
/// the next tenth of a second: the first repetition comes after a second.
pub const SYN_VALID: Duration = Duration::from_millis(900);

impl Syn {
    /// Reads the headers of a packet. `tcp` is the offset of the TCP header, after IPv6 extension headers.
    ///
    /// # Errors
    /// When the bytes are not the headers of a SYN.
    pub fn parse(bytes: &[u8], tcp: usize) -> Result<Self, NotASyn> {
        let (ip, source, destination) = addresses(bytes)?;
        if tcp < ip.len() {
            return Err(NotASyn::Ip);
        }
        let segment = bytes.get(tcp..).unwrap_or_default();
        let header = segment.first_chunk::<TCP_HEADER>().ok_or(NotASyn::Tcp)?;
        let [s0, s1, d0, d1, q0, q1, q2, q3, _, _, _, _, words, flags, ..] = *header;
        if flags & (SYN | ACK) != SYN {
            return Err(NotASyn::Flags);
        }
        let length = usize::from(words >> 4) * 4;
        if length < TCP_HEADER {
            return Err(NotASyn::Tcp);
        }
        let tcp = segment.get(..length).ok_or(NotASyn::Tcp)?.to_vec();
        Ok(Self {
            peer: SocketAddr::new(source, u16::from_be_bytes([s0, s1])),
            dst: SocketAddr::new(destination, u16::from_be_bytes([d0, d1])),
            sequence: u32::from_be_bytes([q0, q1, q2, q3]),
            ip: ip.to_vec(),
            tcp,
        })
    }

    /// The connection that the pod asks for.
    #[must_use]
    pub fn flow(&self) -> Flow {
        Flow { direction: Direction::Outbound, peer: PeerAddr::new(self.peer), dst: OrigDst::new(self.dst) }
    }

    /// The initial sequence number. Another one is another attempt to connect.
    #[must_use]
    pub fn sequence(&self) -> u32 {
        self.sequence
    }

    /// The address to which the SYN goes.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        self.dst.ip()
    }

    /// The address of the pod, to which every answer goes.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.peer.ip()
    }

    /// The SYN itself. Data of TCP Fast Open is left out: the client sends it again.
    #[must_use]
    pub fn again(&self) -> Vec<u8> {
        let mut packet = self.ip.clone();
        if self.peer.is_ipv4() {
            set_v4_length(&mut packet, V4_HEADER + self.tcp.len());
        } else {
            set_v6(&mut packet, PROTOCOL_TCP, self.tcp.len());
        }
        let mut tcp = self.tcp.clone();
        self.set_tcp_checksum(&mut tcp, self.peer.ip(), self.dst.ip());
        packet.extend_from_slice(&tcp);
        packet
    }

    /// The reset with which the destination refuses.
    #[must_use]
    pub fn reset(&self) -> Vec<u8> {
        let (from, to) = (self.dst, self.peer);
        let mut tcp = vec![0; TCP_HEADER];
        let acknowledged = self.sequence.wrapping_add(1);
        put(&mut tcp, 0, &from.port().to_be_bytes());
        put(&mut tcp, 2, &to.port().to_be_bytes());
        put(&mut tcp, 8, &acknowledged.to_be_bytes());
        put(&mut tcp, 12, &[(TCP_HEADER as u8 / 4) << 4, RST_ACK]);
        self.set_tcp_checksum(&mut tcp, from.ip(), to.ip());
        let mut packet = ip_header(from.ip(), to.ip(), PROTOCOL_TCP, tcp.len());
        packet.extend_from_slice(&tcp);
        packet
    }

    /// The ICMP error that says that the destination can't be reached. The kernel of the pod sends such errors in the pod's own
    /// name, and so does this one.
    #[must_use]
    pub fn unreachable(&self, why: Unreachable) -> Vec<u8> {
        let own = self.peer.ip();
        let is_v4 = own.is_ipv4();
        let (kind, code) = match (is_v4, why) {
            (true, Unreachable::Network) => (3, 0),
            (true, Unreachable::Host) => (3, 1),
            (true, Unreachable::Prohibited) => (3, 13),
            (false, Unreachable::Network) => (1, 0),
            (false, Unreachable::Host) => (1, 3),
            (false, Unreachable::Prohibited) => (1, 1),
        };
        let mut icmp = vec![0; ICMP_HEADER];
        put(&mut icmp, 0, &[kind, code]);
        icmp.extend_from_slice(&self.again());
        let sum = if is_v4 { 0 } else { pseudo_header(own, own, PROTOCOL_ICMP_V6, icmp.len()) };
        let checksum = finish(add(sum, &icmp));
        put(&mut icmp, 2, &checksum.to_be_bytes());
        let mut packet = ip_header(own, own, if is_v4 { PROTOCOL_ICMP } else { PROTOCOL_ICMP_V6 }, icmp.len());
        packet.extend_from_slice(&icmp);
        packet
    }

    fn set_tcp_checksum(&self, tcp: &mut [u8], from: IpAddr, to: IpAddr) {
        put(tcp, 16, &[0, 0]);
        let checksum = finish(add(pseudo_header(from, to, PROTOCOL_TCP, tcp.len()), tcp));
        put(tcp, 16, &checksum.to_be_bytes());
    }
}

/// The IP header without options and extension headers, and its addresses.
fn addresses(bytes: &[u8]) -> Result<(&[u8], IpAddr, IpAddr), NotASyn> {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => {
            let header = bytes.first_chunk::<V4_HEADER>().ok_or(NotASyn::Ip)?;
            let [first, .., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
            // The hook on `setsockopt` refuses IPv4 options.
            if first != 0x45 {
                return Err(NotASyn::Ip);
            }
            let (source, destination) = (Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3));
            Ok((header, source.into(), destination.into()))
        }
        Some(6) => {
            let header = bytes.first_chunk::<V6_HEADER>().ok_or(NotASyn::Ip)?;
            let (_, rest) = header.split_at(8);
            let (source, destination) = rest.split_at(16);
            let address = |octets: &[u8]| <[u8; 16]>::try_from(octets).map(Ipv6Addr::from).map_err(|_| NotASyn::Ip);
            Ok((header, address(source)?.into(), address(destination)?.into()))
        }
        _ => Err(NotASyn::Ip),
    }
}

fn set_v4_length(header: &mut [u8], length: usize) {
    put(header, 2, &u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    put(header, 10, &[0, 0]);
    let checksum = finish(add(0, header));
    put(header, 10, &checksum.to_be_bytes());
}

fn set_v6(header: &mut [u8], protocol: u8, length: usize) {
    put(header, 4, &u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    put(header, 6, &[protocol]);
}

/// A header of this family for a packet with `length` bytes after it.
fn ip_header(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = [0; V4_HEADER];
            // Version and length; do not fragment.
            put(&mut header, 0, &[0x45]);
            put(&mut header, 6, &[0x40]);
            put(&mut header, 8, &[HOP_LIMIT, protocol]);
            put(&mut header, 12, &from.octets());
            put(&mut header, 16, &to.octets());
            set_v4_length(&mut header, V4_HEADER + length);
            header.to_vec()
        }
        (from, to) => {
            let mut header = vec![0; V6_HEADER];
            put(&mut header, 0, &[0x60]);
            set_v6(&mut header, protocol, length);
            put(&mut header, 7, &[HOP_LIMIT]);
            put(&mut header, 8, &octets(from));
            put(&mut header, 24, &octets(to));
            header
        }
    }
}

/// The sum over the part of the IP header that the checksums of TCP and ICMPv6 cover.
fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> u32 {
    let addresses = add(add(0, &octets(from)), &octets(to));
    addresses + u32::from(protocol) + u32::try_from(length).unwrap_or_default()
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Adds words of two bytes to a sum. A packet has at most some hundred words, so the sum does not overflow.
fn add(sum: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(sum, |sum, word| match *word {
        [high, low] => sum + u32::from(u16::from_be_bytes([high, low])),
        [high] => sum + u32::from(u16::from_be_bytes([high, 0])),
        _ => sum,
    })
}

fn finish(mut sum: u32) -> u16 {
    while let high @ 1.. = sum >> 16 {
        sum = (sum & 0xffff) + high;
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// Writes bytes at a place that the caller knows to exist.
fn put(packet: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = packet.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

const _: () = assert!(V6_HEADER + 60 <= HELD_BYTES);

#[cfg(test)]
mod tests;
