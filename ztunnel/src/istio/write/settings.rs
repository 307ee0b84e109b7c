//! Settings of the whole mesh.

use super::resource;
use crate::istio::discovery::{Resource, SETTINGS};
use crate::istio::settings::{NAME, Settings};

/// The one resource of its type, without a version.
#[must_use]
pub fn settings(registry_only: bool) -> Resource {
    resource(NAME.to_owned(), SETTINGS, &Settings { registry_only })
}
