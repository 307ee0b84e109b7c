//! Settings of the whole mesh.

use super::reading::{Flaw, Read, decode, same_name};
use crate::istio::discovery::Resource;
use crate::istio::settings::{NAME, Settings};
use crate::model::policy::UnreadPolicies;

/// The content of the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingsFacts {
    /// Whether only known destinations may be connected to.
    pub registry_only: bool,
    /// The [format](crate::istio::detail::FORMAT) of the details that the control plane sends; 0: it sends none.
    pub detail: u32,
    /// Policies that could never be read. A control plane without details sends a policy in their place.
    pub unread: UnreadPolicies,
}

/// Reads the one resource of the type [`SETTINGS`](crate::istio::discovery::SETTINGS).
///
/// # Errors
/// The resource cannot be used.
pub fn settings(resource: &Resource) -> Result<Read<SettingsFacts>, Flaw> {
    same_name(resource, NAME)?;
    let Settings { registry_only, detail, unread_anywhere, unread_namespaces } = decode(resource)?;
    let namespaces = unread_namespaces.into_iter().map(|(namespace, source)| (namespace.into(), source.into()));
    let unread = UnreadPolicies { anywhere: unread_anywhere.map(Into::into), namespaces: namespaces.collect() };
    Ok(Read { value: SettingsFacts { registry_only, detail, unread }, remarks: Vec::new() })
}
