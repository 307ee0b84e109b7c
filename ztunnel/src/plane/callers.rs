//! Whose a call is, by whatever proves it.

use std::net::IpAddr;

use tokio::sync::watch;

use super::{
    caller::{Caller, Stranger},
    nodes::NodeTokens,
    reviewed::ReviewedNodes,
};

/// Says whose a call is. Clones are the same.
#[derive(Clone, Debug)]
pub enum Callers {
    /// A token for each node, from a directory.
    Tokens(NodeTokens),
    /// Tokens of service accounts, which the Kubernetes API reviews.
    Reviewed(ReviewedNodes),
}

impl Callers {
    /// The node whose token this is, which came from an address.
    ///
    /// # Errors
    /// The token is of no node, or nobody can tell now.
    pub async fn authenticate(&self, token: &[u8], from: IpAddr) -> Result<Caller, Stranger> {
        match self {
            Self::Tokens(tokens) => tokens.authenticate(token).ok_or_else(|| {
                let why = "the token of the call is of no node: put the token of the node into the directory of --node-tokens";
                Stranger::Refused(why.to_owned())
            }),
            Self::Reviewed(nodes) => nodes.authenticate(token, from).await,
        }
    }

    /// Whether a caller's token still counts.
    #[must_use]
    pub fn knows(&self, caller: &Caller) -> bool {
        match self {
            Self::Tokens(tokens) => tokens.knows(caller),
            Self::Reviewed(nodes) => nodes.knows(caller),
        }
    }

    /// Learns of changes of the tokens.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        match self {
            Self::Tokens(tokens) => tokens.changes(),
            Self::Reviewed(nodes) => nodes.changes(),
        }
    }

    /// How many tokens of nodes are known.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.len(),
            Self::Reviewed(nodes) => nodes.len(),
        }
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
