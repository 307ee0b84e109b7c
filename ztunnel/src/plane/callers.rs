//! The node that makes a call, whichever kind of token proves it.

use std::net::IpAddr;

use tokio::sync::watch;

use super::{
    caller::{Caller, Stranger},
    nodes::NodeTokens,
    reviewed::ReviewedNodes,
};

/// Finds the node that makes a call. Clones share their state.
#[derive(Clone, Debug)]
pub enum Callers {
    /// A token for each node, from a directory.
    Tokens(NodeTokens),
    /// Tokens of service accounts, which the Kubernetes API reviews.
    Reviewed(ReviewedNodes),
}

impl Callers {
    /// The node to which a token belongs. `from` is the address that the call came from.
    ///
    /// # Errors
    /// The token belongs to no node, or it cannot be checked now.
    pub async fn authenticate(&self, token: &[u8], from: IpAddr) -> Result<Caller, Stranger> {
        match self {
            Self::Tokens(tokens) => tokens.authenticate(token).ok_or_else(|| {
                let why = "the token of the call belongs to no node: put the token of the node into the \
                     directory of --node-tokens";
                Stranger::Refused(why.to_owned())
            }),
            Self::Reviewed(nodes) => nodes.authenticate(token, from).await,
        }
    }

    /// Whether a caller's token is still accepted.
    #[must_use]
    pub fn knows(&self, caller: &Caller) -> bool {
        match self {
            Self::Tokens(tokens) => tokens.knows(caller),
            Self::Reviewed(nodes) => nodes.knows(caller),
        }
    }

    /// A receiver that is notified when the tokens change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        match self {
            Self::Tokens(tokens) => tokens.changes(),
            Self::Reviewed(nodes) => nodes.changes(),
        }
    }

    /// The number of known tokens of nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.len(),
            Self::Reviewed(nodes) => nodes.len(),
        }
    }

    /// Whether no token is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
