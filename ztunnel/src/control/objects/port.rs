//! Ports in objects, where they are texts, or numbers of several widths.

/// A port, if the number is in its range.
pub(super) fn port_number(value: impl TryInto<u16>) -> Option<u16> {
    value.try_into().ok().filter(|port| *port != 0)
}

/// Parses a port from a text, as policies write it.
pub(super) fn port_text(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|port| digits && *port != 0);
    number.ok_or_else(|| format!("{text:?} is not a port from 1 to 65535"))
}

/// Whether the protocol of a port is TCP. As in Kubernetes, a port without a protocol is a TCP port.
pub(super) fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol.is_empty() || protocol == "TCP")
}
