//! What AuthorizationPolicy and PeerAuthentication have in common.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_saphyr::Spanned;

use super::bounded::Unique;
use super::field::FieldError;

/// A manifest of the group. What it says beyond its fields would be lost, so nothing may.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "some fields are checked by being read")]
pub(super) struct Object<Spec> {
    api_version: ApiVersion,
    kind: IgnoredAny,
    #[serde(default)]
    pub(super) metadata: Metadata,
    pub(super) spec: Option<Spec>,
    status: Option<IgnoredAny>,
}

/// The versions of Istio's group `security.istio.io`, which mean the same.
#[derive(Deserialize)]
enum ApiVersion {
    #[serde(rename = "security.istio.io/v1")]
    V1,
    #[serde(rename = "security.istio.io/v1beta1")]
    V1Beta1,
}

/// The metadata of a policy. A misspelt `namespace` would have it protect others than it was written for.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Metadata {
    pub(super) annotations: Option<BTreeMap<String, String>>,
    pub(super) creation_timestamp: Option<Time>,
    name: Option<IgnoredAny>,
    namespace: Option<IgnoredAny>,
    labels: Option<IgnoredAny>,
    cluster_name: Option<IgnoredAny>,
    deletion_grace_period_seconds: Option<IgnoredAny>,
    deletion_timestamp: Option<IgnoredAny>,
    finalizers: Option<IgnoredAny>,
    generate_name: Option<IgnoredAny>,
    generation: Option<IgnoredAny>,
    managed_fields: Option<IgnoredAny>,
    owner_references: Option<IgnoredAny>,
    resource_version: Option<IgnoredAny>,
    self_link: Option<IgnoredAny>,
    uid: Option<IgnoredAny>,
}

/// Whose pods are meant.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Selector {
    match_labels: Option<Unique<Spanned<String>>>,
}

/// Most labels of a selector; Istio takes as many.
const MOST_LABELS: usize = 4096;

/// The labels that a selector asks for; none where it is missing or empty.
pub(super) fn labels(selector: Option<Selector>) -> Result<BTreeMap<String, String>, FieldError> {
    let labels = selector.and_then(|selector| selector.match_labels).map(|labels| labels.0).unwrap_or_default();
    let too_many = labels.len() > MOST_LABELS;
    let label = |(key, value): (String, Spanned<String>)| {
        let wrong = match () {
            () if too_many => format!("has more than {MOST_LABELS} labels, the most that are read"),
            () if key.is_empty() => "a label's name is empty".to_owned(),
            () if key.contains('*') || value.value.contains('*') => {
                format!("{key:?}: {:?} has a wildcard, which no label matches: write the label as it is", value.value)
            }
            () => return Ok((key, value.value)),
        };
        Err(FieldError::new(&value, "spec.selector.matchLabels", wrong))
    };
    labels.into_iter().map(label).collect()
}
