//! Reads a node's report of its pods.

use thiserror::Error;

use crate::istio::report::{PodReport, ReportedPod, ReportedState};
use crate::model::name::check_name;
use crate::model::workload::NamespacedName;

/// Pods in one report. A node has some hundred pods at most.
pub const MOST_PODS: usize = 256;
/// The longest part of a sender's text in a message, in characters.
const EXCERPT: usize = 300;

/// The report of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts<'a> {
    /// The pod.
    pub name: NamespacedName,
    /// Its UID, empty where the node does not know it.
    pub uid: &'a str,
    /// The reason of the node, which refuses the pod; `None`: the pod is enrolled.
    pub refusal: Option<&'a str>,
}

/// Why a report can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReportFlaw {
    /// The report has too many pods.
    #[error("the report has {0} pods, more than the limit of {MOST_PODS}")]
    TooMany(usize),
    /// A name is not valid, or a state is missing.
    #[error("the report is not valid: {0}")]
    Invalid(String),
}

/// Reads a report: all its pods, or none.
///
/// # Errors
/// The report has too many pods, an invalid name, or an unknown state.
pub fn pods(report: &PodReport) -> Result<Vec<PodFacts<'_>>, ReportFlaw> {
    if report.pods.len() > MOST_PODS {
        return Err(ReportFlaw::TooMany(report.pods.len()));
    }
    report.pods.iter().map(pod).collect()
}

fn pod(pod: &ReportedPod) -> Result<PodFacts<'_>, ReportFlaw> {
    let named = check_name(&pod.namespace).and_then(|()| check_name(&pod.name));
    named.map_err(|why| ReportFlaw::Invalid(why.chars().take(EXCERPT).collect()))?;
    let name = NamespacedName::new(pod.namespace.as_str(), pod.name.as_str());
    let refusal = match ReportedState::try_from(pod.state) {
        Ok(ReportedState::Refused) => Some(pod.reason.as_str()),
        Ok(ReportedState::Enrolled) => None,
        Ok(ReportedState::Unknown) | Err(_) => {
            return Err(ReportFlaw::Invalid(format!("pod {name} has the unknown state {}", pod.state)));
        }
    };
    Ok(PodFacts { name, uid: &pod.uid, refusal })
}
