//! The server's side of gRPC over HTTP/2, as far as two kinds of calls need it: length-prefixed messages in both
//! directions, and a status at the end.
//!
//! It uses `h2` directly: thousands of nodes are sent one copy of encoded bytes, and each stream holds no more than a
//! chunk of them outside of the windows that its reader grants.

mod messages;
mod replies;
mod status;

pub use messages::{LargeMessages, Messages};
pub(super) use replies::refuse;
pub use replies::{Replies, Stalled};
pub use status::{Code, Status};
