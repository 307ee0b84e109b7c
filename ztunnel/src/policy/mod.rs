//! Which connections to a workload are allowed: a pure function of a snapshot and the facts about a connection.
//!
//! [`PodPolicies`] is made once for a workload and a snapshot, and then evaluates each connection. [`trace`] and
//! [`authentication`] use the same comparisons, and report all policies that were considered.
//!
//! No policy is enforced at a port that the workload excludes from inbound capture ([`Basis::ExcludedPort`]). At other ports
//! the order is:
//!
//! 1. Policies that could never be read deny every connection.
//! 2. PeerAuthentication.
//! 3. DENY and CUSTOM policies: a match denies the connection.
//! 4. ALLOW policies: if none applies, every connection is allowed; otherwise a connection needs a match.
//!
//! Policies in dry-run and AUDIT policies decide nothing ([`PodPolicies::beside`]).

mod authentication;
mod denial;
mod guard;
mod matching;
mod trace;
mod words;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub use authentication::{Authentication, ConsideredAuthentication, Counts, Level, Mode, authentication, mode};
pub use denial::{Cause, Denial};
pub use guard::{Basis, Denied, Permit, PodPolicies, UnenforcedMatch};
pub use trace::{Applies, Considered, RuleTrace, trace};

use crate::model::identity::SpiffeId;
use crate::store::policies::{Facts, Source};

/// A client's identity, with the text that policies compare. It is made once for each HBONE connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    identity: SpiffeId,
    /// The identity without `spiffe://`.
    text: Arc<str>,
}

impl Principal {
    /// From an identity that TLS has proved.
    #[must_use]
    pub fn new(identity: SpiffeId) -> Self {
        let text = identity.to_string();
        let text = text.strip_prefix("spiffe://").unwrap_or(&text).into();
        Self { identity, text }
    }

    /// The identity.
    #[must_use]
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// `TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The facts about a connection to a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The identity that the client has proved; `None` in plaintext.
    pub source: Option<Principal>,
    /// The address of the client, canonical.
    pub source_ip: IpAddr,
    /// The address and port of the workload, canonical.
    pub destination: SocketAddr,
}

impl Connection {
    /// The facts by which the index finds rules.
    fn facts(&self) -> Facts<'_> {
        let source = self.source.as_ref().map(|source| Source {
            principal: &source.text,
            namespace: &source.identity.namespace,
            service_account: &source.identity.service_account,
        });
        Facts { source, source_ip: self.source_ip, destination: self.destination }
    }

    /// The client's namespace; empty without an identity.
    fn namespace(&self) -> &str {
        self.source.as_ref().map_or("", |source| &source.identity.namespace)
    }
}

#[cfg(test)]
mod tests;
