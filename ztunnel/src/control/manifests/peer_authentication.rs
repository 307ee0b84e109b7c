//! Istio's PeerAuthentication: whether the clients of some workloads must have an identity.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::Report;
use super::bounded::Unique;
use super::field::FieldError;
use super::security::{Object, Selector, labels};
use crate::model::policy::MtlsMode;

/// The manifest.
pub(super) type PeerAuthentication = Object<Spec>;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    selector: Option<Selector>,
    mtls: Option<Mtls>,
    port_level_mtls: Option<Unique<Spanned<Option<Mtls>>>>,
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

/// What it says itself; whom it protects depends on which namespace is the root.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PeerAuthenticationManifest {
    /// Unix seconds.
    pub(super) created: Option<i64>,
    /// The labels of its selector; empty: it has none.
    pub(super) selector: BTreeMap<String, String>,
    pub(super) mode: Option<MtlsMode>,
    pub(super) ports: BTreeMap<u16, Option<MtlsMode>>,
}

pub(super) fn read(
    policy: PeerAuthentication,
    report: &mut Report<'_>,
) -> Result<PeerAuthenticationManifest, FieldError> {
    let spec = policy.spec.unwrap_or_default();
    let selector = labels(spec.selector)?;
    let mode = mode(spec.mtls);
    let mut ports = BTreeMap::new();
    for (key, value) in spec.port_level_mtls.into_iter().flat_map(|ports| ports.0) {
        let field = "spec.portLevelMtls";
        let number = port(&key).map_err(|message| FieldError::new(&value, field, message))?;
        if ports.insert(number, self::mode(value.value)).is_some() {
            return Err(FieldError::new(&value, field, format!("port {number} is there twice: remove one of the two")));
        }
    }
    if mode == Some(MtlsMode::Disable) || ports.values().any(|mode| *mode == Some(MtlsMode::Disable)) {
        report.warn(
            "mode DISABLE counts as PERMISSIVE: plaintext is let in, and the tunnels between pods of the mesh stay \
             mutual TLS; write PERMISSIVE",
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

/// Reads a port, which manifests of policies write as text.
pub(super) fn port(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|port| digits && *port != 0);
    number.ok_or_else(|| format!("{text:?} is not a port from 1 to 65535"))
}
