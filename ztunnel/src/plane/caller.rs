//! The node that makes a call.

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

/// Why the node of a caller is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stranger {
    /// The token is not accepted, for this reason.
    Refused(String),
    /// The token cannot be checked now.
    Unavailable(String),
}

impl Stranger {
    /// The gRPC status for the caller.
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
