//! Settings of the whole mesh.

use std::sync::Arc;

use super::resource;
use crate::istio::detail::FORMAT;
use crate::istio::discovery::{Resource, SETTINGS};
use crate::istio::settings::{NAME, Settings};
use crate::model::policy::UnreadPolicies;

/// The one resource of its type, without a version.
#[must_use]
pub fn settings(registry_only: bool, unread: &UnreadPolicies) -> Resource {
    let text = |(namespace, source): (&Arc<str>, &Arc<str>)| (namespace.to_string(), source.to_string());
    let settings = Settings {
        registry_only,
        detail: FORMAT,
        unread_anywhere: unread.anywhere.as_ref().map(ToString::to_string),
        unread_namespaces: unread.namespaces.iter().map(text).collect(),
    };
    resource(NAME.to_owned(), SETTINGS, &settings)
}
