//! Who may connect to a workload: pure, of a snapshot and the facts about a connection.
//!
//! [`PodPolicies`] are made once for a workload and a snapshot, and then asked about each connection. [`trace`] and
//! [`authentication`] use the same comparisons, and tell everything that was considered.
//!
//! No policy is enforced at a port that the workload excludes from inbound capture ([`Basis::ExcludedPort`]). Else the order is:
//! policies that could never be read keep everyone out; then PeerAuthentication; then DENY, of which any match
//! keeps out; then ALLOW: if none applies, all may; else any match lets in. Dry-run and AUDIT decide nothing
//! ([`Guard::beside`]).

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

/// A client's identity with the text that policies compare: made once for a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    identity: SpiffeId,
    /// Without `spiffe://`.
    text: Arc<str>,
}

impl Principal {
    /// Of an identity that was proved.
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

/// What is known of a connection to a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Who the client has proved to be; in plaintext nobody.
    pub source: Option<Principal>,
    /// Where it comes from, canonical.
    pub source_ip: IpAddr,
    /// The address and port of the workload, canonical.
    pub destination: SocketAddr,
}

impl Connection {
    /// What the index of rules is asked for.
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
