//! Values of flags with units: durations, sizes, and listen addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// Units of time, in seconds, largest first.
const TIMES: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
/// Units of size, in bytes: powers of two with the largest first, then powers of ten, then bytes.
const SIZES: [(&str, u64); 11] = [
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
    ("K", 1_000),
    ("B", 1),
];

/// A time in whole seconds: `10s`, `1m30s`, `24h`, or a plain number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub u64);

/// A size in bytes: `256Ki`, `4Mi`, `1G`, or a plain number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Why a text is not a value with a unit.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnitError {
    /// It is not a duration.
    #[error("{0:?} is not a duration in whole seconds: write a number with a unit, such as 10s, 1m, 1h30m or 1d")]
    Duration(String),
    /// It is not a size.
    #[error("{0:?} is not a size: write a number with a unit, such as 65536, 256Ki, 4Mi or 1G")]
    Size(String),
    /// It is not an address.
    #[error(
        "{0:?} is not an address with a port: write IP:PORT, such as 127.0.0.1:15000 or [::]:15020, or localhost:PORT"
    )]
    Address(String),
}

impl Seconds {
    /// The duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl FromStr for Seconds {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Duration(text.to_owned());
        if let Some(seconds) = number(text) {
            return Ok(Self(seconds));
        }
        // `500ms` is not a whole number of seconds; `2000ms` is two seconds.
        if let Some(milliseconds) = text.strip_suffix("ms").and_then(number) {
            return if milliseconds.is_multiple_of(1_000) { Ok(Self(milliseconds / 1_000)) } else { Err(wrong()) };
        }
        let (mut rest, mut seconds, mut units) = (text, 0u64, TIMES.iter());
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let (count, after) = rest.split_at(digits);
            let (unit, factor) = units.find(|(unit, _)| after.starts_with(unit)).ok_or_else(wrong)?;
            let part = number(count).and_then(|count| count.checked_mul(*factor)).ok_or_else(wrong)?;
            seconds = seconds.checked_add(part).ok_or_else(wrong)?;
            rest = after.strip_prefix(unit).unwrap_or_default();
        }
        if text.is_empty() { Err(wrong()) } else { Ok(Self(seconds)) }
    }
}

/// Uses the fewest units: `90s`, `2m`, `1d`.
impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = TIMES.iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        let (unit, factor) = fits.unwrap_or(&("s", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl Bytes {
    /// The number of bytes, limited to the largest `usize`.
    #[must_use]
    pub fn count(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (count, unit) = text.split_at(digits);
        let factor = match unit {
            "" => Some(1),
            unit => SIZES.iter().find(|(known, _)| *known == unit).map(|(_, factor)| *factor),
        };
        let bytes = factor.and_then(|factor| number(count)?.checked_mul(factor));
        bytes.map(Self).ok_or_else(|| UnitError::Size(text.to_owned()))
    }
}

/// Uses the largest unit that gives a whole number: `256Ki`, `65535`.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = SIZES.iter().take(3).find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        let (unit, factor) = fits.unwrap_or(&("", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

/// Parses digits only, without a sign.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Parses a value of a flag, which must be within these bounds.
pub(super) fn within<T>(bounds: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr<Err = UnitError> + PartialOrd + fmt::Display + Copy + Send + Sync + 'static,
{
    move |text| {
        let value: T = text.parse().map_err(|error: UnitError| error.to_string())?;
        if bounds.contains(&value) {
            return Ok(value);
        }
        let (first, last) = (bounds.start(), bounds.end());
        Err(format!("{value} is not between {first} and {last}"))
    }
}

/// Parses an address with a port. `localhost` is the IPv4 loopback address; no other name is resolved.
pub(super) fn address(text: &str) -> Result<SocketAddr, UnitError> {
    let local = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    let local = local.map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    local.or_else(|| text.parse().ok()).ok_or_else(|| UnitError::Address(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{Bytes, Seconds, address, within};

    #[test]
    fn durations() {
        let table = [
            ("10", Some((10, "10s"))),
            ("10s", Some((10, "10s"))),
            ("0", Some((0, "0s"))),
            ("90s", Some((90, "90s"))),
            ("1m", Some((60, "1m"))),
            ("1m30s", Some((90, "90s"))),
            ("1h30m", Some((5_400, "90m"))),
            ("24h", Some((86_400, "1d"))),
            ("1d12h", Some((129_600, "36h"))),
            ("2000ms", Some((2, "2s"))),
            ("500ms", None),
            ("", None),
            ("s", None),
            ("-1", None),
            ("+1", None),
            ("1s1m", None),
            ("1m1m", None),
            ("1.5s", None),
            ("1 s", None),
            ("1y", None),
            ("18446744073709551615d", None),
        ];
        for (text, expected) in table {
            let read = text.parse::<Seconds>().ok();
            assert_eq!(read.map(|time| (time.0, time.to_string())), expected.map(|(s, t)| (s, t.to_owned())), "{text}");
        }
    }

    #[test]
    fn sizes() {
        let table = [
            ("65536", Some((65_536, "64Ki"))),
            ("65535", Some((65_535, "65535"))),
            ("256Ki", Some((262_144, "256Ki"))),
            ("4Mi", Some((4_194_304, "4Mi"))),
            ("4MiB", Some((4_194_304, "4Mi"))),
            ("1G", Some((1_000_000_000, "1000000000"))),
            ("1k", Some((1_000, "1000"))),
            ("0", Some((0, "0"))),
            ("1kb", None),
            ("", None),
            ("Ki", None),
            ("-1", None),
            ("1.5Mi", None),
            ("18446744073709551615Ki", None),
        ];
        for (text, expected) in table {
            let read = text.parse::<Bytes>().ok();
            assert_eq!(read.map(|size| (size.0, size.to_string())), expected.map(|(s, t)| (s, t.to_owned())), "{text}");
        }
    }

    #[test]
    fn bounds_are_told_with_units() {
        let read = within(Seconds(1)..=Seconds(600));
        assert_eq!(read("10m"), Ok(Seconds(600)));
        assert_eq!(read("11m"), Err("11m is not between 1s and 10m".to_owned()));
        assert!(read("x").unwrap_err().contains("10s, 1m"));
    }

    #[test]
    fn addresses() {
        assert_eq!(address("localhost:15000").unwrap().to_string(), "127.0.0.1:15000");
        assert_eq!(address("[::]:15020").unwrap().to_string(), "[::]:15020");
        for bad in ["localhost", "nowhere:1", "15000", "localhost:99999", ":15000", "127.0.0.1"] {
            assert!(address(bad).unwrap_err().to_string().contains("localhost:PORT"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(number in any::<u64>()) {
            assert_eq!(Seconds(number).to_string().parse(), Ok(Seconds(number)));
            assert_eq!(Bytes(number).to_string().parse(), Ok(Bytes(number)));
        }
    }
}
