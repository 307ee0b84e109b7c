//! Why a connection is denied, as text.

use std::fmt;
use std::sync::Arc;

use super::words;
use crate::model::policy::Action;
use crate::model::workload::NamespacedName;

/// Why a connection is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The policy, or the lack of one, that denies it.
    pub cause: Cause,
    /// The client has no identity, and the port is a probe's port of the pod: the connection is allowed if the client is the
    /// kubelet.
    pub at_probe: bool,
}

/// The reason for which a connection is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Some policies could never be read.
    Unread {
        /// The source that may contain them, such as a file.
        source: Arc<str>,
    },
    /// The connection is plaintext, and the mode is STRICT.
    Strict {
        /// The PeerAuthentication.
        policy: NamespacedName,
        /// The port, if the entry for this port decided.
        port: Option<u16>,
    },
    /// A rule of a DENY or CUSTOM policy matched.
    Matched {
        /// The AuthorizationPolicy.
        policy: NamespacedName,
        /// Its action: DENY or CUSTOM.
        action: Action,
        /// Index of the rule in the policy.
        rule: usize,
        /// The fields of the rule that matched, with the values of the connection.
        clauses: String,
    },
    /// ALLOW policies apply, and none matched.
    NotAllowed {
        /// The first few of these policies.
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
