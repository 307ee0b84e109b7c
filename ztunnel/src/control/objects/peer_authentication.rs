//! Istio's PeerAuthentication: whether the clients of some workloads must have an identity.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::bounded::Unique;
use super::port::port_text;
use super::report::{FieldError, FieldErrors, Report};
use super::security::{Object, Selector, labels};
use crate::control::field::FieldPath;
use crate::model::labels::Labels;
use crate::model::policy::MtlsMode;

/// The object.
pub(in crate::control) type PeerAuthentication = Object<Spec>;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::control) struct Spec {
    selector: Option<Selector>,
    mtls: Option<Mtls>,
    port_level_mtls: Option<Unique<Option<Mtls>>>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(deny_unknown_fields)]
struct Mtls {
    mode: Option<Mode>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Mode {
    Unset,
    Disable,
    Permissive,
    Strict,
}

/// The content of the object; the workloads that it selects depend on the root namespace.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) struct PeerAuthenticationManifest {
    /// Time of creation, in Unix seconds.
    pub(in crate::control) created: Option<i64>,
    /// The labels of its selector; empty if it has no selector.
    pub(in crate::control) selector: Labels,
    pub(in crate::control) mode: Option<MtlsMode>,
    pub(in crate::control) ports: BTreeMap<u16, Option<MtlsMode>>,
}

pub(super) fn read(policy: PeerAuthentication, report: &mut Report) -> Result<PeerAuthenticationManifest, FieldError> {
    let spec = policy.spec.unwrap_or_default();
    let mut errors = FieldErrors::default();
    let selector = errors.take(labels(spec.selector)).unwrap_or_default();
    let mode = mode(spec.mtls);
    let mut ports = BTreeMap::new();
    for (key, value) in spec.port_level_mtls.into_iter().flat_map(|ports| ports.0) {
        let wrong = |message| FieldError::new(FieldPath::of("spec.portLevelMtls").key(&key), message);
        let Some(number) = errors.take(port_text(&key).map_err(wrong)) else { continue };
        if ports.insert(number, self::mode(value)).is_some() {
            errors.push(wrong(format!("port {number} is there twice: remove one of the two")));
        }
    }
    errors.finish()?;
    if mode == Some(MtlsMode::Disable) || ports.values().any(|mode| *mode == Some(MtlsMode::Disable)) {
        report.warn(
            "mode DISABLE is treated as PERMISSIVE: plaintext is accepted, and connections between pods of the mesh \
             keep mutual TLS; write PERMISSIVE",
        );
    }
    let created = policy.metadata.creation_timestamp.map(|time| time.0.as_second());
    Ok(PeerAuthenticationManifest { created, selector, mode, ports })
}

fn mode(mtls: Option<Mtls>) -> Option<MtlsMode> {
    match mtls?.mode? {
        Mode::Unset => None,
        Mode::Disable => Some(MtlsMode::Disable),
        Mode::Permissive => Some(MtlsMode::Permissive),
        Mode::Strict => Some(MtlsMode::Strict),
    }
}
