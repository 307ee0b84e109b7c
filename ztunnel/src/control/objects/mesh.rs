//! Istio's mesh-wide settings: the ConfigMap `istio`, whose key `mesh` holds YAML.

use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use serde::Deserialize;

use super::name::check_name;
use super::report::FieldError;
use crate::control::field::FieldPath;
use crate::control::yaml;
use crate::model::identity::TrustDomain;

/// The namespace of the mesh-wide settings, and the root namespace unless the settings name another.
pub const ROOT_NAMESPACE: &str = "istio-system";
/// Name of the ConfigMap.
pub const MESH_CONFIG: &str = "istio";

/// Annotation of that ConfigMap: the pods whose connections follow the addresses of a ServiceEntry with endpoints.
pub(in crate::control) const ENTRIES_LEAD: &str = "traffic.ambient.mesh/service-entries-lead";

/// The settings that are read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::control) struct MeshSettings {
    /// Connections to unknown destinations are refused.
    pub(in crate::control) registry_only: bool,
    /// The trust domain in the settings.
    pub(in crate::control) trust_domain: Option<TrustDomain>,
    /// The namespaces to which services without an `exportTo` of their own are exported; empty: all namespaces.
    pub(in crate::control) export_to: Vec<String>,
    /// The namespace whose policies apply to the whole mesh, if the settings name one.
    pub(in crate::control) root_namespace: Option<Arc<str>>,
    /// Other names of the trust domain; they have no effect.
    pub(in crate::control) trust_domain_aliases: Vec<String>,
    /// A ServiceEntry of any namespace applies to the pods of all namespaces to which it is exported, as in Istio.
    pub(in crate::control) entries_lead_everyone: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct MeshConfig {
    outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    trust_domain: Option<String>,
    default_service_export_to: Option<Vec<String>>,
    root_namespace: Option<String>,
    trust_domain_aliases: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct OutboundTrafficPolicy {
    mode: Option<Mode>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Mode {
    AllowAny,
    RegistryOnly,
}

pub(super) fn read(config_map: &ConfigMap) -> Result<MeshSettings, FieldError> {
    let text = config_map.data.as_ref().and_then(|data| data.get("mesh")).map(String::as_str).unwrap_or_default();
    let failed = |field: &FieldPath, message| FieldError::new(FieldPath::of("data.mesh").join(field), message);
    let config: Option<MeshConfig> = yaml::read(text).map_err(|error| {
        let yaml::Error { place, field, message, .. } = error;
        let line = place.map(|(line, _)| format!(" (line {line} of that text)")).unwrap_or_default();
        failed(&field.unwrap_or_default(), format!("{message}{line}"))
    })?;
    let config = config.unwrap_or_default();
    let lead = config_map.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ENTRIES_LEAD));
    let entries_lead_everyone = match lead.map(|text| text.trim()) {
        None | Some("" | "own-namespace") => false,
        Some("exported") => true,
        Some(other) => {
            let message = format!("{other:?} is neither \"own-namespace\" nor \"exported\"");
            return Err(FieldError::new(FieldPath::of("metadata.annotations").key(ENTRIES_LEAD), message));
        }
    };
    let trust_domain = config.trust_domain.filter(|text| !text.is_empty());
    let trust_domain = trust_domain.map(|text| TrustDomain::from_str(&text)).transpose();
    let root_namespace = config.root_namespace.filter(|text| !text.is_empty());
    let wrong_root = |error| failed(&FieldPath::of("rootNamespace"), error);
    root_namespace.as_deref().map_or(Ok(()), check_name).map_err(wrong_root)?;
    Ok(MeshSettings {
        entries_lead_everyone,
        root_namespace: root_namespace.map(Arc::from),
        trust_domain_aliases: config.trust_domain_aliases.unwrap_or_default(),
        registry_only: config.outbound_traffic_policy.and_then(|policy| policy.mode) == Some(Mode::RegistryOnly),
        export_to: config.default_service_export_to.unwrap_or_default(),
        trust_domain: trust_domain.map_err(|error| failed(&FieldPath::of("trustDomain"), error.to_string()))?,
    })
}
