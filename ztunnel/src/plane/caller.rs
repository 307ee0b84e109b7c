//! Who a caller is.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

use super::grpc::{Code, Status};

/// The SHA-256 of a token.
pub(super) type Digest = [u8; 32];

/// The node of a caller, proved by a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The node's name.
    pub node: Arc<str>,
    pub(super) token: Digest,
}

/// Why a caller is nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stranger {
    /// The token does not count, for this reason.
    Refused(String),
    /// Whose the token is cannot be found out now.
    Unavailable(String),
}

impl Stranger {
    /// As the caller is told.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::Refused(why) => Status::new(Code::Unauthenticated, why),
            Self::Unavailable(why) => Status::new(Code::Unavailable, why),
        }
    }
}

pub(super) fn sha256(bytes: &[u8]) -> Digest {
    let mut array = [0; 32];
    array.copy_from_slice(digest(&SHA256, bytes).as_ref());
    array
}
