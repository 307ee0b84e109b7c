//! `ambient.mesh.v1.PodReports`: a daemon reports the states of the pods of its node. Only control planes and daemons of this project
//! know this call; other control planes answer `UNIMPLEMENTED`.

use prost::{Enumeration, Message};

/// Path of the call.
pub const REPORT_PODS: &str = "/ambient.mesh.v1.PodReports/ReportPods";

/// The states of some pods of the caller's node.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PodReport {
    /// The pods, each at most once.
    #[prost(message, repeated, tag = "1")]
    pub pods: Vec<ReportedPod>,
}

/// The state of one pod.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReportedPod {
    /// Its namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// `metadata.uid` of the pod, where the daemon knows it: a later pod of the same name is another pod.
    #[prost(string, tag = "3")]
    pub uid: String,
    /// Whether the pod is enrolled.
    #[prost(enumeration = "ReportedState", tag = "4")]
    pub state: i32,
    /// Why the pod is refused, for people.
    #[prost(string, tag = "5")]
    pub reason: String,
}

/// Whether a pod is enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum ReportedState {
    /// The message has no state.
    Unknown = 0,
    /// The node refuses to enrol it.
    Refused = 1,
    /// It is enrolled, after it was reported as refused.
    Enrolled = 2,
}

/// The answer to a report.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PodReportResponse {
    /// Number of pods for which an Event will be written.
    #[prost(uint32, tag = "1")]
    pub taken: u32,
    /// Number of pods that the control plane does not know on the caller's node.
    #[prost(uint32, tag = "2")]
    pub ignored: u32,
}
