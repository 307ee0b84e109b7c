//! Why a connection may not be, in words.

use std::fmt;
use std::sync::Arc;

use super::words::{self, MOST};
use super::{Connection, Guard};
use crate::model::policy::{Action, AuthorizationPolicy};
use crate::model::workload::NamespacedName;

/// That a connection may not be, and where it is written.
#[derive(Clone, Copy, Debug)]
pub struct Denied<'a> {
    pub(super) guard: &'a Guard,
    pub(super) ground: Ground<'a>,
}

/// What decided, as the guard holds it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ground<'a> {
    Unread(&'a Arc<str>),
    Strict { policy: &'a NamespacedName, port: Option<u16> },
    Matched { policy: &'a AuthorizationPolicy, rule: usize },
    NotAllowed,
}

impl Denied<'_> {
    /// Why, in words.
    #[must_use]
    pub fn told(&self, connection: &Connection) -> Denial {
        let port = connection.destination.port();
        let cause = match self.ground {
            Ground::Unread(source) => Cause::Unread { source: Arc::clone(source) },
            Ground::Strict { policy, port } => Cause::Strict { policy: policy.clone(), port },
            Ground::Matched { policy, rule } => Cause::Matched {
                policy: policy.name.clone(),
                action: policy.action,
                rule,
                clauses: policy.rules.get(rule).map(|rule| words::matched(rule, connection)).unwrap_or_default(),
            },
            Ground::NotAllowed => {
                let (policies, more) = self.guard.allowing(port, MOST);
                Cause::NotAllowed { policies: policies.into_iter().cloned().collect(), more }
            }
        };
        Denial { cause, at_probe: connection.source.is_none() && self.guard.is_probed(port) }
    }
}

/// Why a connection may not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// What decided.
    pub cause: Cause,
    /// The client has no identity, and the port is one that a probe of the pod's asks at: it would be let in if it were the kubelet.
    pub at_probe: bool,
}

/// What decided against a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Some policies could never be read.
    Unread {
        /// The source that may hold them, such as a file.
        source: Arc<str>,
    },
    /// Plaintext where it must not be.
    Strict {
        /// The PeerAuthentication.
        policy: NamespacedName,
        /// Its entry for this port, if that decided.
        port: Option<u16>,
    },
    /// A rule matched.
    Matched {
        /// The AuthorizationPolicy.
        policy: NamespacedName,
        /// What it does: DENY or CUSTOM.
        action: Action,
        /// Index of the rule.
        rule: usize,
        /// What of it matched what.
        clauses: String,
    },
    /// There are ALLOW policies, and none matched.
    NotAllowed {
        /// The first of them.
        policies: Vec<NamespacedName>,
        /// How many more there are.
        more: usize,
    },
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Unread { source } => write!(f, "policies of {source} are not known: it could never be read"),
            Cause::Strict { policy, port } => {
                write!(f, "PeerAuthentication {policy}")?;
                if let Some(port) = port {
                    write!(f, ", portLevelMtls[{port}]")?;
                }
                f.write_str(": STRICT, and the client has no identity")
            }
            Cause::Matched { policy, action, rule, clauses } => {
                write!(f, "AuthorizationPolicy {policy} ({}), rules[{rule}]: {clauses}", action.name())
            }
            Cause::NotAllowed { policies, more } => {
                let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
                write!(f, "no ALLOW policy matched: {}", words::list(&names, *more, ", "))
            }
        }
    }
}
