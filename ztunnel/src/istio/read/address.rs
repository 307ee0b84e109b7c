//! Addresses in messages.

use std::net::IpAddr;

use ipnet::IpNet;

/// Reads an address of 4 or 16 bytes; the result is canonical.
pub(super) fn address(bytes: &[u8]) -> Result<IpAddr, String> {
    let address = match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
        (Ok(v4), _) => IpAddr::from(v4),
        (_, Ok(v6)) => IpAddr::from(v6),
        _ => return Err(format!("an address has 4 or 16 bytes, this one has {}", bytes.len())),
    };
    Ok(address.to_canonical())
}

/// Reads an IP block; the result is canonical and without host bits. `length` counts the bits of the address as it was
/// sent.
pub(super) fn range(bytes: &[u8], length: u32) -> Result<IpNet, String> {
    let address = address(bytes)?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let sent = u32::try_from(bytes.len().saturating_mul(8)).unwrap_or(u32::MAX);
    let wrong = || format!("{address} has no prefix of {length} bits");
    // In an IPv4-mapped address the bits of the mapping come first.
    let own = length.checked_sub(sent.saturating_sub(bits)).ok_or_else(wrong)?;
    let prefix = u8::try_from(own).map_err(|_| wrong())?;
    IpNet::new(address, prefix).map(|net| net.trunc()).map_err(|_| wrong())
}

/// Whether an address can be that of another host: not loopback, unspecified, multicast or broadcast.
pub(super) fn is_usable(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || is_broadcast)
}

/// A port from 1 to 65535.
pub(super) fn port(number: u32) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(0) | Err(_) => Err(format!("{number} is not a port: ports go from 1 to 65535")),
        Ok(port) => Ok(port),
    }
}
