//! Addresses in objects.

use std::net::IpAddr;

/// Parses an address. Addresses that do not name one other host are refused.
pub(super) fn usable_address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.trim().parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    let address = address.to_canonical();
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() || broadcast {
        return Err(format!("{address} is a loopback, unspecified, multicast or broadcast address"));
    }
    Ok(address)
}
