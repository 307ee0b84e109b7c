//! `x-ztunnel-refusal`: why a stream was refused, for the log of the node that requested it. It is sent to peers of the mesh
//! only, which have been authenticated before; Istio's ztunnel ignores it.

use http::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};

use crate::model::close::CloseReason;

/// The header's name.
pub const REFUSAL: HeaderName = HeaderName::from_static("x-ztunnel-refusal");

/// The longest value: reason, space, detail.
const LONGEST: usize = 512;
/// The longest reason.
const LONGEST_REASON: usize = 64;
/// The characters that are encoded in a detail, in addition to all that are not ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// Why a stream was refused: `<reason> <detail>`. In the detail, `%` and all characters outside of printable ASCII are
/// percent-encoded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HboneRefusal {
    /// The label of a [`CloseReason`], or another word of `a-z`, `0-9` and `_`, at most 64.
    pub reason: String,
    /// A text for people; may be empty. The part that does not fit is cut off, and control characters become spaces.
    pub detail: String,
}

impl HboneRefusal {
    /// A reason with a detail.
    #[must_use]
    pub fn new(reason: CloseReason, detail: impl Into<String>) -> Self {
        Self { reason: reason.label().to_owned(), detail: detail.into() }
    }

    /// The reason, if this version knows it.
    #[must_use]
    pub fn close_reason(&self) -> Option<CloseReason> {
        CloseReason::from_label(&self.reason)
    }

    /// Reads a header's value; `None` if it does not begin with a reason.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = value.get(..LONGEST).unwrap_or(value);
        let mut parts = value.splitn(2, |byte| *byte == b' ');
        let reason = std::str::from_utf8(parts.next()?).ok().filter(|reason| is_reason(reason))?;
        let decoded = percent_decode(parts.next().unwrap_or_default()).decode_utf8_lossy().into_owned();
        let detail = decoded.replace(char::is_control, " ").trim().to_owned();
        Some(Self { reason: reason.to_owned(), detail })
    }

    /// The header's value; `None` if the reason is not a word.
    #[must_use]
    pub fn to_header(&self) -> Option<HeaderValue> {
        if !is_reason(&self.reason) {
            return None;
        }
        let mut text = self.reason.clone();
        let detail = self.detail.trim();
        if !detail.is_empty() {
            text.push(' ');
            encode(detail, &mut text);
        }
        HeaderValue::try_from(text.trim_end()).ok()
    }
}

fn is_reason(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=LONGEST_REASON).contains(&text.len()) && text.bytes().all(allowed)
}

/// Appends whole characters while they fit. Control characters become spaces.
fn encode(detail: &str, text: &mut String) {
    let mut bytes = [0; 4];
    for character in detail.chars() {
        let character = if character.is_control() { ' ' } else { character };
        let encoded = utf8_percent_encode(character.encode_utf8(&mut bytes), ENCODED);
        let length: usize = encoded.clone().map(str::len).sum();
        if text.len() + length > LONGEST {
            return;
        }
        text.extend(encoded);
    }
}

#[cfg(test)]
mod tests {
    use super::{HboneRefusal, LONGEST};
    use crate::model::close::CloseReason;

    /// Checks the header that is sent, and that it is parsed as the same refusal.
    fn check(detail: &str, expected: &str) {
        let refusal = HboneRefusal::new(CloseReason::Denied, detail);
        let header = refusal.to_header().unwrap();
        assert_eq!(header, expected, "{detail:?}");
        assert_eq!(HboneRefusal::parse(header.as_bytes()), Some(refusal), "{detail:?}");
    }

    #[test]
    fn a_refusal_arrives_as_it_was_meant() {
        check("", "denied");
        check("by default/deny-9999: port 80", "denied by default/deny-9999: port 80");
        check("100% \u{fc}", "denied 100%25 %C3%BC");
        let known = HboneRefusal::parse(b"tunnel_failed x").unwrap();
        assert_eq!(known.close_reason(), Some(CloseReason::TunnelFailed));
        assert_eq!(HboneRefusal::parse(b"something_new").unwrap().close_reason(), None);
    }

    #[test]
    fn nothing_but_text_in_one_line_goes_through() {
        let refusal = HboneRefusal::new(CloseReason::Denied, " a\r\nb: c\t\u{0} ");
        assert_eq!(refusal.to_header().unwrap(), "denied a  b: c");
        assert_eq!(HboneRefusal::parse(b"denied a%0Ab%00%1b[1m%ff%zz%4").unwrap().detail, "a b  [1m\u{fffd}%zz%4");
        for bad in [&b""[..], b" a", b"Denied", b"a-b", b"a%20b", b"\xff", &[b'a'; 65]] {
            assert_eq!(HboneRefusal::parse(bad), None, "{bad:?}");
        }
        assert_eq!(HboneRefusal { reason: "a b".into(), detail: String::new() }.to_header(), None);
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        let header = HboneRefusal::new(CloseReason::Denied, "\u{fc}".repeat(1000)).to_header().unwrap();
        assert!(header.len() <= LONGEST && header.len() > LONGEST - 6, "{}", header.len());
        let detail = HboneRefusal::parse(header.as_bytes()).unwrap().detail;
        assert!(detail.chars().all(|character| character == '\u{fc}'), "{detail}");
        assert!(HboneRefusal::parse(&[b'a'; 9000]).is_none());
        assert_eq!(
            HboneRefusal::parse(format!("a {}", "b".repeat(9000)).as_bytes()).unwrap().detail.len(),
            LONGEST - 2
        );
    }
}
