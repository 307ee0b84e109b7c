//! Problems with the resources of a control plane.

use std::sync::Arc;

use crate::istio::discovery::AUTHORIZATION;
use crate::model::origin::Origin;
use crate::model::problem::{Problem, Severity};

/// The number of problems of one kind that are reported one by one. Of further ones only the number is reported.
const MOST: usize = 100;

/// A problem with one resource.
pub(super) fn of_resource(name: &Arc<str>, type_url: &str, message: String, severity: Severity) -> Problem {
    let object = (type_url == AUTHORIZATION).then(|| format!("AuthorizationPolicy {name}"));
    Problem { origin: Origin::Resource { name: Arc::clone(name) }, object, message, severity }
}

/// A problem of the control plane as a whole.
pub(super) fn of_plane(plane: &str, message: String, severity: Severity) -> Problem {
    Problem { origin: Origin::Resource { name: plane.into() }, object: None, message, severity }
}

/// The first of many problems, and the number of further ones.
pub(super) fn first(plane: &str, what: &str, problems: impl ExactSizeIterator<Item = Problem>) -> Vec<Problem> {
    let more = problems.len().saturating_sub(MOST);
    let mut list: Vec<Problem> = problems.take(MOST).collect();
    if more > 0 {
        list.push(of_plane(plane, format!("{more} more {what} are not listed"), Severity::Warning));
    }
    list
}
