//! Why a connection may not be, in words.

use std::fmt;
use std::sync::Arc;

use super::words;
use crate::model::policy::Action;
use crate::model::workload::NamespacedName;

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
            Cause::Unread { source } => write!(f, "policies of {source} are not known: it has never been readable"),
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
