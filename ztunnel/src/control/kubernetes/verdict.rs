//! Reads a single object and decides whether it can be used: for the mesh and for the status of the object.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::object::Object;
use super::resource::{AUTHORIZATION_POLICIES, ResourceType};
use crate::control::field::FieldPath;
use crate::control::manifests::typed;
use crate::control::objects::{self, Interner, Kind, Remark, Said};
use crate::model::problem::Severity;

/// The largest length of a message about one object, in bytes.
const LONGEST: usize = 2048;

/// Why an object can't be used.
pub(super) struct Fault {
    pub(super) field: Option<FieldPath>,
    pub(super) message: String,
}

/// Reads an object.
///
/// # Errors
/// The object can't be used.
pub(super) fn read(kind: Kind, object: &mut Object, texts: &mut Interner) -> Result<Said, Fault> {
    if let Some(fault) = object.fault() {
        return Err(Fault { field: None, message: fault.to_string() });
    }
    let tree = object.tree_mut();
    // A panic about one object must not affect the others.
    let reading = AssertUnwindSafe(|| {
        let resource = typed(kind, tree).map_err(|error| Fault { field: error.field, message: error.message })?;
        objects::read(resource, texts).map_err(|error| Fault { field: Some(error.field), message: error.message })
    });
    catch_unwind(reading).unwrap_or_else(|_| {
        let message = "the parser failed on this object: this is a bug, please report it with the object".to_owned();
        Err(Fault { field: None, message })
    })
}

/// The report to the author of a policy: whether the policy is enforced as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The policy is enforced completely.
    pub is_accepted: bool,
    /// The reason in one word, as in conditions.
    pub reason: &'static str,
    /// The fault, its consequence and the remedy.
    pub message: String,
}

/// The verdict about an AuthorizationPolicy or a PeerAuthentication. It depends on the object only, so all replicas have the
/// same verdict.
#[must_use]
pub fn verdict(resource: ResourceType, policy: &Object) -> Verdict {
    let kind = if resource == AUTHORIZATION_POLICIES { Kind::Authorization } else { Kind::PeerAuthentication };
    let mut policy = policy.clone();
    let refused = |reason, message: String| Verdict { is_accepted: false, reason, message: excerpt(&message) };
    match read(kind, &mut policy, &mut Interner::default()) {
        Ok(Said { remarks, .. }) => {
            let told = remarks.into_iter().filter(|Remark { severity, .. }| *severity != Severity::Info);
            let told: Vec<String> = told.map(|Remark { message, .. }| message).collect();
            if told.is_empty() {
                let message = "the nodes of the pods that it selects enforce it at layer 4".to_owned();
                return Verdict { is_accepted: true, reason: "Accepted", message };
            }
            refused("UnsupportedValue", told.join("; "))
        }
        Err(Fault { field, message }) => {
            let field = field.map(|field| format!("{field}: ")).unwrap_or_default();
            refused(
                "Invalid",
                format!(
                    "{field}{message}; the last valid version of the object stays in force; if there is \
                     none, the pods that the policy may select accept only health probes"
                ),
            )
        }
    }
}

fn excerpt(text: &str) -> String {
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let mut end = LONGEST;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}\u{2026}", text.get(..end).unwrap_or_default())
}
