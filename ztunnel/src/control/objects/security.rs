//! The common parts of AuthorizationPolicy and PeerAuthentication.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::bounded::Unique;
use super::report::{FieldError, FieldErrors};
use crate::control::field::FieldPath;
use crate::model::labels::Labels;

/// An object of the group. Unknown fields are refused, since their meaning would be lost.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "some fields are checked by being read")]
pub(in crate::control) struct Object<Spec> {
    api_version: ApiVersion,
    kind: IgnoredAny,
    #[serde(default)]
    pub(super) metadata: Metadata,
    pub(super) spec: Option<Spec>,
    status: Option<IgnoredAny>,
}

/// The versions of Istio's group `security.istio.io`. They have the same meaning.
#[derive(Deserialize)]
enum ApiVersion {
    #[serde(rename = "security.istio.io/v1")]
    V1,
    #[serde(rename = "security.istio.io/v1beta1")]
    V1Beta1,
}

/// The metadata of a policy. Unknown fields are refused: with a misspelled `namespace` the policy would select other
/// workloads than intended.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(in crate::control) struct Metadata {
    pub(super) annotations: Option<BTreeMap<String, String>>,
    pub(super) creation_timestamp: Option<Time>,
    name: Option<String>,
    namespace: Option<String>,
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

impl Metadata {
    /// `namespace` and `name`.
    pub(super) fn named(&self) -> (Option<&str>, Option<&str>) {
        (self.namespace.as_deref(), self.name.as_deref())
    }
}

/// The pods that are selected.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::control) struct Selector {
    match_labels: Option<Unique<String>>,
}

/// The most labels of a selector; Istio has the same limit.
const MOST_LABELS: usize = 4096;

/// The labels of a selector; empty if the selector is missing or empty.
pub(super) fn labels(selector: Option<Selector>) -> Result<Labels, FieldError> {
    let labels = selector.and_then(|selector| selector.match_labels).map(|labels| labels.0).unwrap_or_default();
    let field = || FieldPath::of("spec.selector.matchLabels");
    if labels.len() > MOST_LABELS {
        let message = format!("has more than {MOST_LABELS} labels, the most that are read");
        return Err(FieldError::new(field(), message));
    }
    let label = |(key, value): (String, String)| {
        let wrong = match () {
            () if key.is_empty() => "a label's name is empty".to_owned(),
            () if key.contains('*') || value.contains('*') => {
                format!("{key:?}: {value:?} has a wildcard, which no label matches: write the label as it is")
            }
            () => return Ok((key, value)),
        };
        Err(FieldError::new(field().key(&key), wrong))
    };
    let mut errors = FieldErrors::default();
    let valid = labels.into_iter().filter_map(|one| errors.take(label(one))).collect();
    errors.finish().map(|()| valid)
}
