//! Settings of the whole mesh.

use super::reading::{Flaw, Read, decode, same_name};
use crate::istio::discovery::Resource;
use crate::istio::settings::{NAME, Settings};
use crate::store::change::Setting;

/// The one resource of the type [`SETTINGS`](crate::istio::discovery::SETTINGS).
///
/// # Errors
/// Why it can't be used.
pub fn settings(resource: &Resource) -> Result<Read<Vec<Setting>>, Flaw> {
    same_name(resource, NAME)?;
    let Settings { registry_only } = decode(resource)?;
    Ok(Read { value: vec![Setting::RegistryOnly(registry_only)], remarks: Vec::new() })
}
