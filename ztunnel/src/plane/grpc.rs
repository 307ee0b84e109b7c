//! gRPC over HTTP/2, the server's side of it, as far as two calls need it: length-prefixed messages both ways, and a status at
//! the end.
//!
//! It stands on `h2` itself: what is sent to thousands of nodes is one copy of encoded bytes, of which each stream holds no more
//! than a chunk outside of the windows that its reader grants.

mod messages;
mod replies;
mod status;

pub use messages::{LargeMessages, Messages};
pub(super) use replies::refuse;
pub use replies::{Replies, Stalled};
pub use status::{Code, Status};
