//! The facts about one connection on which decisions depend.

use super::addr::{OrigDst, PeerAddr};

/// The direction of a connection, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The pod connects.
    Outbound,
    /// Another end connects to the pod.
    Inbound,
}

impl Direction {
    /// Both directions.
    pub const ALL: [Direction; 2] = [Direction::Outbound, Direction::Inbound];

    /// The name in logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        }
    }
}

/// A connection that was steered to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The direction.
    pub direction: Direction,
    /// The socket that connected.
    pub peer: PeerAddr,
    /// The original destination.
    pub dst: OrigDst,
}
