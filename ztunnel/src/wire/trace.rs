//! `traceparent`: the id of a CONNECT request (W3C Trace Context, version 00). This daemon sends one, as Istio's ztunnel does;
//! it neither logs nor uses a received one.

use std::fmt;

use http::{HeaderName, HeaderValue};

/// The header's name.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A request's id, made of random bits. A connection that tries another endpoint gets another id. It is never taken from an
/// application's data, and never sampled: the last field is `00` when it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// The trace id; never 0.
    pub trace: u128,
    /// The parent id; never 0.
    pub parent: u64,
}

impl TraceParent {
    /// From random bits.
    #[must_use]
    pub fn new(trace: u128, parent: u64) -> Self {
        // Zero is invalid in the standard.
        Self { trace: trace.max(1), parent: parent.max(1) }
    }

    /// Reads a header's value: `00-<32 hex>-<16 hex>-<2 hex>`, with any version and flags.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut parts = value.split(|byte| *byte == b'-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || hex(flags, 2).is_none() || hex(version, 2)? == 0xff {
            return None;
        }
        let (trace, parent) = (hex(trace, 32)?, u64::try_from(hex(parent, 16)?).ok()?);
        (trace != 0 && parent != 0).then_some(Self { trace, parent })
    }

    /// The header's value.
    #[must_use]
    pub fn to_header(self) -> HeaderValue {
        // The text has hexadecimal digits and dashes only, so this can't fail.
        HeaderValue::try_from(self.to_string()).unwrap_or(HeaderValue::from_static(""))
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-00", self.trace, self.parent)
    }
}

fn hex(digits: &[u8], length: usize) -> Option<u128> {
    let digits = Some(digits).filter(|digits| digits.len() == length)?;
    digits.iter().try_fold(0, |number, digit| Some(number << 4 | u128::from(char::from(*digit).to_digit(16)?)))
}

#[cfg(test)]
mod tests {
    use super::TraceParent;

    /// Checks the header as it is written again, or `!`.
    fn check(text: &str, expected: &str) {
        let got = TraceParent::parse(text.as_bytes()).map_or("!".to_owned(), |trace| trace.to_string());
        assert_eq!(got, expected, "{text:?}");
    }

    #[test]
    fn traceparents() {
        const ISTIO: &str = "00-8f2c15b32a34cab27798d2a5e8b21f76-6daa5a33122fcd01-00";
        check(ISTIO, ISTIO);
        check(&ISTIO.to_uppercase(), ISTIO);
        check("cc-8f2c15b32a34cab27798d2a5e8b21f76-6daa5a33122fcd01-01", ISTIO);
        for bad in [
            "",
            "-",
            "---",
            "00-8f2c15b32a34cab27798d2a5e8b21f76-6daa5a33122fcd01",
            "00-8f2c15b32a34cab27798d2a5e8b21f76-6daa5a33122fcd01-0",
            "00-8f2c15b32a34cab27798d2a5e8b21f76-6daa5a33122fcd01-00-",
            "ff-8f2c15b32a34cab27798d2a5e8b21f76-6daa5a33122fcd01-00",
            "00-00000000000000000000000000000000-6daa5a33122fcd01-00",
            "00-8f2c15b32a34cab27798d2a5e8b21f76-0000000000000000-00",
            "00-+f2c15b32a34cab27798d2a5e8b21f76-6daa5a33122fcd01-00",
            "00-8f2c15b32a34cab27798d2a5e8b21f7-66daa5a33122fcd01-00",
            "00-8f2c15b32a34cab27798d2a5e8b21f7g-6daa5a33122fcd01-00",
            "00_8f2c15b32a34cab27798d2a5e8b21f76_6daa5a33122fcd01_00",
            " 0-8f2c15b32a34cab27798d2a5e8b21f76-6daa5a33122fcd01-00",
        ] {
            check(bad, "!");
        }
        assert_eq!(TraceParent::new(0, 0), TraceParent { trace: 1, parent: 1 });
    }
}
