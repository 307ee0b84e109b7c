//! `forwarded`: the client of the connection, and the service name that it requested.

use std::{fmt, net::SocketAddr};

use http::{HeaderName, HeaderValue};

use super::authority::{self, Authority};

/// The header's name.
pub const FORWARDED: HeaderName = HeaderName::from_static("forwarded");

/// A longer header is ignored. The longest header that Istio writes has 320 bytes.
const LONGEST: usize = 1024;

/// `for="10.0.0.1:4000";host=web.demo.svc.cluster.local`.
///
/// It is used for telemetry only, because a peer can write anything into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Forwarded {
    /// The socket that connected to the peer. This daemon always sends it. A peer may have left it out, or written something
    /// else.
    pub client: Option<SocketAddr>,
    /// The service that the client requested: in lower case, without port.
    pub host: Option<String>,
}

impl Forwarded {
    /// A client's connection, and the service that the client requested.
    #[must_use]
    pub fn new(client: SocketAddr, host: Option<String>) -> Self {
        Self { client: Some(client), host }
    }

    /// Reads a header's value: parts between semicolons. The first part of each name is used.
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        let mut forwarded = Self::default();
        let Some(text) = std::str::from_utf8(value).ok().filter(|text| text.len() <= LONGEST && text.is_ascii()) else {
            return forwarded;
        };
        let part = |name: &str| text.split(';').find_map(|part| part.trim_ascii().strip_prefix(name));
        forwarded.client = part("for=").and_then(|address| match unquoted(address).parse() {
            Ok(Authority::Address(address)) => Some(address),
            _ => None,
        });
        forwarded.host = part("host=").and_then(|host| service_host(unquoted(host)));
        forwarded
    }

    /// The header's value; `None` if nothing is known.
    #[must_use]
    pub fn to_header(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(self.to_string()).ok().filter(|value| !value.is_empty())
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(client) = self.client {
            write!(f, "for=\"{}\"", authority::plain(client))?;
        }
        // A host that would be parsed as something else is not sent.
        if let Some(host) = self.host.as_deref().and_then(service_host) {
            write!(f, "{}host={host}", if self.client.is_some() { ";" } else { "" })?;
        }
        Ok(())
    }
}

fn unquoted(text: &str) -> &str {
    text.trim_ascii().trim_matches('"')
}

/// Accepts the host names of services, and the wildcards of ServiceEntries.
fn service_host(text: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'*');
    let is_host = (1..=authority::LONGEST_HOST).contains(&text.len()) && text.bytes().all(allowed);
    is_host.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::Forwarded;

    /// Checks the header as it is written again.
    fn check(text: &str, expected: &str) {
        assert_eq!(Forwarded::parse(text.as_bytes()).to_string(), expected, "{text:?}");
    }

    #[test]
    fn istios_forms_are_read_and_written_again() {
        for same in
            [r#"for="127.0.0.2:52331";host=wpsvc.default.svc.cluster.local"#, r#"for="[::1]:80""#, "host=*.example.com"]
        {
            check(same, same);
        }
    }

    #[test]
    fn what_is_not_understood_is_skipped() {
        check("", "");
        check(r#"host="Web.Demo""#, "host=web.demo");
        check("proto=http; host=web ;host=other", "host=web");
        check("Host=web", "");
        check("for=unknown;host=web", "host=web");
        check("for=10.0.0.1;host=web", "host=web");
        check("for=web:80", "");
        check(r#"for="10.0.0.1:80", for="10.0.0.2:80""#, "");
        check("host=web:80", "");
        check("host=", "");
        check("host=a b", "");
        check("host=\u{e4};for=\"10.0.0.1:80\"", "");
        check(&format!("host={}", "a".repeat(254)), "");
        check(&format!("host=a;{}", ";".repeat(1024)), "");
        assert_eq!(Forwarded::parse(b"\xff\xfe"), Forwarded::default());
        assert_eq!(Forwarded::default().to_header(), None);
    }

    #[test]
    fn a_host_that_would_mean_something_else_is_not_sent() {
        let client = "[::ffff:10.0.0.1]:80".parse().unwrap();
        let forwarded = Forwarded::new(client, Some("web;for=\"10.0.0.9:1\"\r\n".into()));
        assert_eq!(forwarded.to_header().unwrap(), r#"for="10.0.0.1:80""#);
    }
}
