//! The facts about one connection that decisions see.

use super::addr::{OrigDst, PeerAddr};

/// Which way a connection goes, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The pod connects.
    Outbound,
    /// The pod is connected to.
    Inbound,
}

impl Direction {
    /// Both.
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
    /// Which way.
    pub direction: Direction,
    /// Who connected.
    pub peer: PeerAddr,
    /// Where it wanted to go.
    pub dst: OrigDst,
}
