//! How a call ends.

use http::{HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// gRPC's codes, as far as they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// It is done.
    Ok = 0,
    /// The request makes no sense.
    InvalidArgument = 3,
    /// The caller was too slow.
    DeadlineExceeded = 4,
    /// The caller may not have what it asks for.
    PermissionDenied = 7,
    /// The caller has had its share.
    ResourceExhausted = 8,
    /// The caller's state does not fit; it must begin anew.
    Aborted = 10,
    /// There is no such call, or the message is compressed.
    Unimplemented = 12,
    /// A fault of this program.
    Internal = 13,
    /// Try again later, or elsewhere.
    Unavailable = 14,
    /// The caller has not proved who it is.
    Unauthenticated = 16,
}

/// A code, and why, for whoever reads the caller's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The code.
    pub code: Code,
    /// Why.
    pub message: String,
}

/// What `grpc-message` cannot have as it is: everything but printable ASCII, and `%`.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');
/// What is told of the reason. Header lists are limited at both ends.
const LONGEST: usize = 1 << 10;

impl Status {
    /// A status.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// That all is well.
    #[must_use]
    pub fn ok() -> Self {
        Self::new(Code::Ok, "")
    }

    /// Writes it into headers or trailers.
    pub(super) fn put(&self, headers: &mut HeaderMap) {
        headers.insert("grpc-status", HeaderValue::from(self.code as u16));
        let short: String = self.message.chars().take(LONGEST).collect();
        let text = utf8_percent_encode(&short, ESCAPED).to_string();
        if let (false, Ok(value)) = (text.is_empty(), HeaderValue::try_from(text)) {
            headers.insert("grpc-message", value);
        }
    }
}
