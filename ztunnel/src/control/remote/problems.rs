//! What a control plane's resources leave to be told to people.

use std::sync::Arc;

use crate::istio::discovery::AUTHORIZATION;
use crate::model::origin::Origin;
use crate::model::problem::{Problem, Severity};

/// Problems of one kind that are told one by one; of more only the number is.
const MOST: usize = 100;

/// A problem with one resource.
pub(super) fn of_resource(name: &Arc<str>, type_url: &str, message: String, severity: Severity) -> Problem {
    let object = (type_url == AUTHORIZATION).then(|| format!("AuthorizationPolicy {name}"));
    Problem { origin: Origin::Resource { name: Arc::clone(name) }, object, message, severity }
}

/// A problem with all resources, or with none.
pub(super) fn of_plane(plane: &str, message: String, severity: Severity) -> Problem {
    Problem { origin: Origin::Resource { name: plane.into() }, object: None, message, severity }
}

/// The first of many problems, and how many more there are.
pub(super) fn first(plane: &str, what: &str, problems: impl ExactSizeIterator<Item = Problem>) -> Vec<Problem> {
    let more = problems.len().saturating_sub(MOST);
    let mut list: Vec<Problem> = problems.take(MOST).collect();
    if more > 0 {
        list.push(of_plane(plane, format!("{more} more {what} are not listed"), Severity::Warning));
    }
    list
}
