//! The destination of a CONNECT: an address or a host name, always with a port.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use thiserror::Error;

use crate::model::addr::canonical;

/// The destination in the `:authority` of a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// `10.0.0.1:80` or `[fd00::1]:80`. Canonical: never an IPv4-mapped address, never a zone.
    Address(SocketAddr),
    /// `web.demo.svc.cluster.local:80`.
    Host {
        /// A host name (RFC 1123) in lower case, without a dot at its end.
        host: String,
        /// Never 0 when parsed.
        port: u16,
    },
}

impl Authority {
    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        Self::Address(plain(address))
    }
}

/// Why a text is not an authority.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AuthorityError {
    /// There is no port, or the port is not a number from 1 to 65535.
    #[error("{0:?} has no port from 1 to 65535, it must be ADDRESS:PORT, [ADDRESS]:PORT or HOST:PORT")]
    Port(String),
    /// The brackets do not contain an IPv6 address. Zones (`%eth0`) are not accepted: they are valid on one machine only.
    #[error("{0:?} has no IPv6 address in its brackets (zones are not accepted)")]
    Bracketed(String),
    /// It is neither an IPv4 address nor a host name. User names are not accepted.
    #[error("{0:?} is neither an address nor a host name, with a port")]
    Host(String),
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        let (host, port) = text.rsplit_once(':').ok_or_else(|| AuthorityError::Port(excerpt(text)))?;
        let port = parse_port(port).ok_or_else(|| AuthorityError::Port(excerpt(text)))?;
        if let Some(rest) = host.strip_prefix('[') {
            let address = rest.strip_suffix(']').and_then(|address| address.parse::<Ipv6Addr>().ok());
            let address = address.ok_or_else(|| AuthorityError::Bracketed(excerpt(text)))?;
            return Ok(SocketAddr::new(IpAddr::V6(address), port).into());
        }
        if let Ok(address) = host.parse() {
            return Ok(Self::Address(SocketAddr::new(IpAddr::V4(address), port)));
        }
        let host = host_name(host).ok_or_else(|| AuthorityError::Host(excerpt(text)))?;
        Ok(Self::Host { host, port })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => plain(*address).fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// The address without zone and flow label, which have no meaning on another machine.
pub(super) fn plain(address: SocketAddr) -> SocketAddr {
    canonical(SocketAddr::new(address.ip(), address.port()))
}

fn parse_port(text: &str) -> Option<u16> {
    // `parse` alone would accept a sign.
    let is_number = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_number && *port != 0)
}

/// The longest host name in DNS.
pub(super) const LONGEST_HOST: usize = 253;

/// A host name of RFC 1123 in lower case.
fn host_name(text: &str) -> Option<String> {
    if text.is_empty() || text.len() > LONGEST_HOST {
        return None;
    }
    let is_label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // The last label of a domain is never a number: such a text is a malformed or unusual IPv4 address.
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let is_host = text.split('.').all(is_label) && !text.rsplit('.').next().is_some_and(is_number);
    is_host.then(|| text.to_ascii_lowercase())
}

/// The part of a peer's text that may be shown in an error.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::Authority;

    /// Checks how the text is parsed; an error begins with `!`.
    fn check(text: &str, expected: &str) {
        let got = match text.parse::<Authority>() {
            Ok(authority @ Authority::Address(_)) => authority.to_string(),
            Ok(authority @ Authority::Host { .. }) => format!("host {authority}"),
            Err(error) => format!("!{error}"),
        };
        assert!(if expected == "!" { got.starts_with('!') } else { got == expected }, "{text:?}: {got}");
    }

    #[test]
    fn addresses() {
        check("10.0.0.1:80", "10.0.0.1:80");
        check("10.0.0.1:00080", "10.0.0.1:80");
        check("[fd00::1]:65535", "[fd00::1]:65535");
        check("[FD00:0::1]:80", "[fd00::1]:80");
        check("[::ffff:10.0.0.1]:80", "10.0.0.1:80");
        for bad in [
            "",
            ":",
            "10.0.0.1",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "10.0.0.1:+80",
            "10.0.0.1: 80",
            "10.0.0.1:80 ",
            "10.0.0.1:000080",
            "10.0.0.256:80",
            "10.1:80",
            "0x0a.1:80",
            "fd00::1:80",
            "[fd00::1]",
            "[fd00::1]80",
            "[fd00::1%1]:80",
            "[fd00::1%eth0]:80",
            "[10.0.0.1]:80",
            "[[fd00::1]]:80",
            "[]:80",
            "user@10.0.0.1:80",
        ] {
            check(bad, "!");
        }
    }

    #[test]
    fn host_names() {
        check("Web.Demo.svc.cluster.LOCAL:80", "host web.demo.svc.cluster.local:80");
        check("a:1", "host a:1");
        check("1a.example:1", "host 1a.example:1");
        check(&format!("{}.x:80", "a".repeat(63)), &format!("host {}.x:80", "a".repeat(63)));
        for bad in [
            "web",
            "web:http",
            ":80",
            ".web:80",
            "web.:80",
            "a..b:80",
            "-a:80",
            "a-:80",
            "a_b:80",
            "a b:80",
            "user@web:80",
            "u:p@web:80",
            "*.example.com:80",
            "ä.example:80",
            "web/x:80",
            "web:80/",
        ] {
            check(bad, "!");
        }
        check(&format!("{}.x:80", "a".repeat(64)), "!");
        check(&format!("{}x:80", "a.".repeat(127)), "!");
        check(&format!("{}x:80", "a.".repeat(126)), &format!("host {}x:80", "a.".repeat(126)));
    }
}
