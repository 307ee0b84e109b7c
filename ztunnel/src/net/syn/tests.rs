//! Packets are built as the kernel builds them, and no bytes are taken for a SYN that are none.

use std::net::IpAddr;

use proptest::prelude::*;

use super::{NotASyn, Syn, Unreachable, add, finish, pseudo_header};

/// The SYN of an IPv4 connect, 10.0.0.1:40000 to 10.0.0.2:80, as `tcpdump -x` shows it on the loopback device: the TCP checksum
/// is a partial one.
const V4: [u8; 60] = [
    0x45, 0x00, 0x00, 0x3c, 0x8b, 0x5e, 0x40, 0x00, 0x40, 0x06, 0x9b, 0x5b, 10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0x00,
    0x50, 0x01, 0x02, 0x03, 0x04, 0, 0, 0, 0, 0xa0, 0x02, 0xff, 0xd7, 0x14, 0x33, 0x00, 0x00, 0x02, 0x04, 0xff, 0xd7,
    0x04, 0x02, 0x08, 0x0a, 0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0, 0x01, 0x03, 0x03, 0x07,
];

fn v6(extension: bool) -> (Vec<u8>, usize) {
    let mut bytes = vec![0x60, 0x0a, 0xbc, 0xde, 0, 40, if extension { 60 } else { 6 }, 64];
    bytes.extend("fd00::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    bytes.extend("fd00::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
    if extension {
        bytes.extend([6, 0, 1, 4, 0, 0, 0, 0]);
    }
    let at = bytes.len();
    bytes.extend(&V4[20..]);
    (bytes, at)
}

/// The sum over a valid checksum and the bytes that it covers is 0 in one's complement.
fn is_valid(sum: u32, bytes: &[u8]) -> bool {
    finish(add(sum, bytes)) == 0
}

fn assert_tcp(packet: &[u8], header: usize) {
    let (from, to): (IpAddr, IpAddr) = if header == 20 {
        let octets = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).unwrap();
        assert!(is_valid(0, &packet[..20]), "the checksum of the IP header");
        assert_eq!(u16::from_be_bytes([packet[2], packet[3]]) as usize, packet.len());
        (octets(12).into(), octets(16).into())
    } else {
        let octets = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).unwrap();
        assert_eq!(u16::from_be_bytes([packet[4], packet[5]]) as usize, packet.len() - 40);
        assert_eq!(packet[6], 6);
        (octets(8).into(), octets(24).into())
    };
    let tcp = &packet[header..];
    assert!(is_valid(pseudo_header(from, to, 6, tcp.len()), tcp), "the checksum of the TCP header");
}

#[test]
fn a_syn_is_put_back_with_its_options_and_a_whole_checksum() {
    let syn = Syn::parse(&V4, 20).unwrap();
    assert_eq!(syn.flow().peer.to_string(), "10.0.0.1:40000");
    assert_eq!(syn.flow().dst.to_string(), "10.0.0.2:80");
    assert_eq!(syn.sequence(), 0x0102_0304);
    let again = syn.again();
    assert_tcp(&again, 20);
    assert_eq!(&again[20..36], &V4[20..36]);
    assert_eq!(&again[38..], &V4[38..], "the options");
    assert_eq!(Syn::parse(&again, 20).unwrap().again(), again);
}

#[test]
fn data_and_extension_headers_are_left_out() {
    let mut with_data = V4.to_vec();
    with_data.extend(b"GET / HTTP/1.1");
    with_data[3] += 14;
    assert_eq!(Syn::parse(&with_data, 20).unwrap().again(), Syn::parse(&V4, 20).unwrap().again());
    let ((plain, at), (extended, beyond)) = (v6(false), v6(true));
    let again = Syn::parse(&extended, beyond).unwrap().again();
    assert_eq!(again, Syn::parse(&plain, at).unwrap().again());
    assert_tcp(&again, 40);
    assert_eq!(&again[..4], &plain[..4], "the flow label");
}

#[test]
fn a_reset_acknowledges_the_syn_in_the_name_of_its_destination() {
    for (bytes, at) in [(V4.to_vec(), 20), v6(false)] {
        let reset = Syn::parse(&bytes, at).unwrap().reset();
        assert_tcp(&reset, at);
        let tcp = &reset[at..];
        assert_eq!(&tcp[..4], &[0, 80, 0x9c, 0x40]);
        assert_eq!(&tcp[4..12], &[0, 0, 0, 0, 1, 2, 3, 5], "sequence number 0, and the next one of the SYN");
        assert_eq!(tcp[13], 0x14);
    }
}

#[test]
fn an_icmp_error_has_the_syn_in_it() {
    let table = [
        (V4.to_vec(), 20, Unreachable::Network, [3, 0]),
        (V4.to_vec(), 20, Unreachable::Host, [3, 1]),
        (v6(false).0, 40, Unreachable::Network, [1, 0]),
        (v6(false).0, 40, Unreachable::Host, [1, 3]),
        (V4.to_vec(), 20, Unreachable::Prohibited, [3, 13]),
        (v6(false).0, 40, Unreachable::Prohibited, [1, 1]),
    ];
    for (bytes, at, why, expected) in table {
        let syn = Syn::parse(&bytes, at).unwrap();
        let packet = syn.unreachable(why);
        let icmp = &packet[at..];
        assert_eq!(icmp[..2], expected);
        assert_eq!(&icmp[8..], syn.again());
        let own = syn.source();
        let sum = if at == 20 { 0 } else { pseudo_header(own, own, 58, icmp.len()) };
        assert!(is_valid(sum, icmp));
        assert!(at == 40 || is_valid(0, &packet[..20]));
    }
}

#[test]
fn other_packets_are_no_syns() {
    let with = |at: usize, byte: u8| {
        let mut bytes = V4;
        bytes[at] = byte;
        Syn::parse(&bytes, 20)
    };
    assert_eq!(with(33, 0x12), Err(NotASyn::Flags));
    assert_eq!(with(33, 0x10), Err(NotASyn::Flags));
    assert_eq!(with(32, 0x40), Err(NotASyn::Tcp), "shorter than a header");
    assert_eq!(with(32, 0xf0), Err(NotASyn::Tcp), "longer than the packet");
    assert_eq!(with(0, 0x46), Err(NotASyn::Ip));
    assert_eq!(with(0, 0x75), Err(NotASyn::Ip));
    assert_eq!(Syn::parse(&V4, 19), Err(NotASyn::Ip));
    assert_eq!(Syn::parse(&V4[..39], 20), Err(NotASyn::Tcp));
    assert_eq!(Syn::parse(&[], 0), Err(NotASyn::Ip));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..160), tcp in 0_usize..200) {
        if let Ok(syn) = Syn::parse(&bytes, tcp) {
            for packet in [syn.again(), syn.reset(), syn.unreachable(Unreachable::Host)] {
                prop_assert!(packet.len() >= 40);
            }
        }
    }

    #[test]
    fn every_sequence_number_and_port_survives(sequence in any::<[u8; 4]>(), ports in any::<[u8; 4]>()) {
        let mut bytes = V4;
        bytes[20..24].copy_from_slice(&ports);
        bytes[24..28].copy_from_slice(&sequence);
        let syn = Syn::parse(&bytes, 20).unwrap();
        assert_tcp(&syn.again(), 20);
        assert_tcp(&syn.reset(), 20);
        prop_assert_eq!(syn.sequence(), u32::from_be_bytes(sequence));
    }
}
