//! The controller of a pod, and the pod's names in telemetry: read as Istio reads them, from owner references and
//! labels.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::intern::Interner;
use super::name::check_name;
use super::report::Report;
use crate::control::field::FieldPath;
use crate::model::workload::{Controller, ControllerKind};

/// Label of a ReplicaSet's pods: the last part of the ReplicaSet's name.
const TEMPLATE_HASH: &str = "pod-template-hash";
/// The number of digits that a CronJob appends to its name to name a Job: minutes since 1970, or seconds.
const JOB_DIGITS: std::ops::RangeInclusive<usize> = 8..=10;

pub(super) const CANONICAL_NAME: [&str; 3] = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
pub(super) const CANONICAL_REVISION: [&str; 3] =
    ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];

/// The controller of the pod with this name. An owner with an invalid name does not count.
pub(super) fn controller(
    pod: &Arc<str>,
    owners: &[OwnerReference],
    labels: &BTreeMap<String, String>,
    texts: &mut Interner,
) -> Controller {
    let owner = owners.iter().find(|owner| owner.controller == Some(true));
    let Some(owner) = owner.filter(|owner| check_name(&owner.name).is_ok()) else {
        return Controller { kind: ControllerKind::Pod, name: Arc::clone(pod) };
    };
    let whole = owner.name.as_str();
    let (kind, name) = match owner.kind.as_str() {
        "ReplicaSet" => (ControllerKind::Deployment, without_hash(whole, labels).unwrap_or(whole)),
        "Job" => match cron_job(whole) {
            Some(name) => (ControllerKind::CronJob, name),
            None => (ControllerKind::Job, whole),
        },
        "CronJob" => (ControllerKind::CronJob, whole),
        "Deployment" => (ControllerKind::Deployment, whole),
        // istiod reports the pod itself for StatefulSets, DaemonSets and all other kinds.
        _ => return Controller { kind: ControllerKind::Pod, name: Arc::clone(pod) },
    };
    Controller { kind, name: texts.text(name) }
}

fn without_hash<'a>(name: &'a str, labels: &BTreeMap<String, String>) -> Option<&'a str> {
    let hash = labels.get(TEMPLATE_HASH).filter(|hash| !hash.is_empty())?;
    name.strip_suffix(hash.as_str())?.strip_suffix('-').filter(|name| !name.is_empty())
}

fn cron_job(job: &str) -> Option<&str> {
    let (name, digits) = job.rsplit_once('-')?;
    let numbered = JOB_DIGITS.contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    (numbered && !name.is_empty()).then_some(name)
}

/// Canonical name and revision.
pub(super) fn canonical(
    controller: &Controller,
    labels: &BTreeMap<String, String>,
    texts: &mut Interner,
    report: &mut Report,
) -> (Arc<str>, Arc<str>) {
    let mut first = |keys: &[&str]| keys.iter().find_map(|key| label(labels, key, report));
    let (name, revision) = (first(&CANONICAL_NAME), first(&CANONICAL_REVISION));
    let name = name.map_or_else(|| Arc::clone(&controller.name), |name| texts.text(name));
    (name, texts.text(revision.unwrap_or("latest")))
}

/// The value of a label. It ends up in logs, metrics and headers, so a value that Kubernetes would refuse does not
/// count.
fn label<'a>(labels: &'a BTreeMap<String, String>, key: &str, report: &mut Report) -> Option<&'a str> {
    let value = labels.get(key).filter(|value| !value.is_empty())?;
    let edge = |c: char| c.is_ascii_alphanumeric();
    let allowed = |c: char| edge(c) || matches!(c, '-' | '_' | '.');
    if value.len() <= 63 && value.starts_with(edge) && value.ends_with(edge) && value.chars().all(allowed) {
        return Some(value);
    }
    report.warn_at(
        FieldPath::of("metadata.labels").key(key),
        format!("label {key}: {value:?} is not a label's value: letters, digits, '-', '_' and '.'; it is ignored"),
    );
    None
}
