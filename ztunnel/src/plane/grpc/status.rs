//! The status with which a call ends.

use http::{HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// The codes of gRPC that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// Success.
    Ok = 0,
    /// The request is not valid.
    InvalidArgument = 3,
    /// The caller was too slow.
    DeadlineExceeded = 4,
    /// The caller may not have what it asks for.
    PermissionDenied = 7,
    /// The caller has used up its quota.
    ResourceExhausted = 8,
    /// The caller's state does not fit; it must start again.
    Aborted = 10,
    /// The method does not exist, or the message is compressed.
    Unimplemented = 12,
    /// A fault of this program.
    Internal = 13,
    /// Try again later, or elsewhere.
    Unavailable = 14,
    /// The caller has not proved who it is.
    Unauthenticated = 16,
}

/// A code, and a reason for the reader of the caller's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The code.
    pub code: Code,
    /// The reason.
    pub message: String,
}

/// Bytes that `grpc-message` has to escape: everything but printable ASCII, and `%`.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');
/// Characters of the reason that are sent. Both ends limit header lists.
const LONGEST: usize = 1 << 10;

impl Status {
    /// A status.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The status of success.
    #[must_use]
    pub fn ok() -> Self {
        Self::new(Code::Ok, "")
    }

    /// Writes the status into headers or trailers.
    pub(super) fn put(&self, headers: &mut HeaderMap) {
        headers.insert("grpc-status", HeaderValue::from(self.code as u16));
        let short: String = self.message.chars().take(LONGEST).collect();
        let text = utf8_percent_encode(&short, ESCAPED).to_string();
        if let (false, Ok(value)) = (text.is_empty(), HeaderValue::try_from(text)) {
            headers.insert("grpc-message", value);
        }
    }
}
