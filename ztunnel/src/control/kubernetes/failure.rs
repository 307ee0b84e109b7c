//! Failed requests to the API server, with the cause and the remedy.

use std::fmt;
use std::sync::Arc;

use kube::core::Status;

use super::resource::ResourceType;
use crate::model::cause::causes;

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The attempted operation: `list`, `watch`, `create`.
    pub verb: &'static str,
    /// The type of the objects.
    pub resource: ResourceType,
    /// The API server.
    pub server: Arc<str>,
    /// Why the request failed.
    pub reason: Reason,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// No RBAC rule allows it.
    Forbidden(String),
    /// The API server does not accept the caller's token or certificate.
    Unauthenticated(String),
    /// The API server does not know the object, or the type.
    NotFound(String),
    /// An object of this name exists already, or the object has changed meanwhile.
    Conflict(String),
    /// The API server does not have the requested version any more.
    Expired(String),
    /// The API server reports another error.
    Refused(String),
    /// The API server can't be reached, or the connection broke.
    Unreachable(String),
    /// There was no answer in time.
    Silent,
    /// The answer is invalid.
    Answer(String),
}

impl Reason {
    pub(super) fn of_status(status: &Status) -> Self {
        let text = || match (status.message.as_str(), status.reason.as_str()) {
            ("", "") => format!("status {}", status.code),
            ("", reason) => reason.to_owned(),
            (message, _) => printable(message),
        };
        match (status.code, status.reason.as_str()) {
            (401, _) => Self::Unauthenticated(text()),
            (403, _) => Self::Forbidden(text()),
            (404, _) => Self::NotFound(text()),
            (409, _) => Self::Conflict(text()),
            (410, _) | (_, "Expired" | "Gone") => Self::Expired(text()),
            _ => Self::Refused(text()),
        }
    }

    pub(super) fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(status),
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => Self::Answer(printable(&causes(error))),
            other => Self::Unreachable(printable(&causes(other))),
        }
    }

    /// The value of the metric label.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Forbidden(_) => "forbidden",
            Self::Unauthenticated(_) => "unauthenticated",
            Self::NotFound(_) => "not_found",
            Self::Conflict(_) => "conflict",
            Self::Expired(_) => "expired",
            Self::Refused(_) => "refused",
            Self::Unreachable(_) => "unreachable",
            Self::Silent => "timeout",
            Self::Answer(_) => "invalid_answer",
        }
    }
}

/// The attempted operation, its object, the cause and the remedy.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, resource, server, reason } = self;
        write!(f, "cannot {verb} {resource} at {server}: ")?;
        match reason {
            Reason::Forbidden(text) => {
                let ResourceType { group, plural, .. } = resource;
                let verbs = if matches!(*verb, "list" | "watch") {
                    "\"list\", \"watch\"".to_owned()
                } else {
                    format!("{verb:?}")
                };
                write!(
                    f,
                    "{text}: allow it by RBAC with the rule apiGroups: [{group:?}], resources: [{plural:?}], verbs: [{verbs}]"
                )
            }
            Reason::Unauthenticated(text) => {
                write!(f, "{text}: the token or certificate of the client is not accepted, or has expired")
            }
            Reason::Unreachable(text) => write!(f, "{text}; trying again"),
            Reason::Silent => f.write_str("no answer in time; trying again"),
            Reason::Answer(text) => write!(f, "the answer cannot be read: {text}"),
            Reason::NotFound(text) | Reason::Conflict(text) | Reason::Expired(text) | Reason::Refused(text) => {
                f.write_str(text)
            }
        }
    }
}

impl std::error::Error for Failure {}

/// Shortens a text and replaces control characters, for logs.
fn printable(text: &str) -> String {
    const LONGEST: usize = 1 << 10;
    text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::super::resource::{PODS, SERVICE_ENTRIES};
    use super::{Failure, Reason};

    #[test]
    fn a_right_that_is_missing_is_named_with_its_rule() {
        let reason = Reason::of_status(&Status { code: 403, message: "pods is forbidden".into(), ..Status::default() });
        let failure = Failure { verb: "list", resource: PODS, server: "https://api:6443".into(), reason };
        assert_eq!(
            failure.to_string(),
            "cannot list pods at https://api:6443: pods is forbidden: allow it by RBAC with the rule apiGroups: [\"\"], \
             resources: [\"pods\"], verbs: [\"list\", \"watch\"]"
        );
        let failure = Failure { verb: "create", resource: SERVICE_ENTRIES, ..failure };
        assert!(
            failure.to_string().ends_with(
                "apiGroups: [\"networking.istio.io\"], resources: [\"serviceentries\"], verbs: [\"create\"]"
            )
        );
    }

    #[test]
    fn statuses_are_told_apart() {
        let of = |code, reason: &str| {
            Reason::of_status(&Status { code, reason: reason.to_owned(), ..Status::default() }).label()
        };
        let table = [(401, ""), (403, ""), (404, ""), (409, "AlreadyExists"), (410, ""), (500, "Expired"), (500, "")];
        let labels = ["unauthenticated", "forbidden", "not_found", "conflict", "expired", "expired", "refused"];
        assert_eq!(table.map(|(code, reason)| of(code, reason)), labels);
        let odd = Status { code: 500, message: "a\u{1b}[1m\n".repeat(1000), ..Status::default() };
        let Reason::Refused(text) = Reason::of_status(&odd) else { panic!("refused") };
        assert!(text.len() <= 1024 && !text.contains(char::is_control));
    }
}
