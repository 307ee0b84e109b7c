//! Ports in objects, which have them as texts and as numbers of several widths.

/// A number that is a port.
pub(super) fn port_number(value: impl TryInto<u16>) -> Option<u16> {
    value.try_into().ok().filter(|port| *port != 0)
}

/// Reads a port, which policies write as text.
pub(super) fn port_text(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|port| digits && *port != 0);
    number.ok_or_else(|| format!("{text:?} is not a port from 1 to 65535"))
}

/// Whether a port is one of TCP: as Kubernetes has it, one without a protocol is.
pub(super) fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol.is_empty() || protocol == "TCP")
}
