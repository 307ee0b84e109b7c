//! What a check found, and how findings are collected.

use std::fmt;

use serde::Serialize;

use crate::model::policy::{AuthorizationPolicy, PeerAuthentication, Place};
use crate::model::service::Service;
use crate::model::workload::Workload;
use crate::store::snapshot::Snapshot;

/// How bad a finding is. The worse come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something counts for nothing, or keeps out or lets in whom it should not.
    Error,
    /// Likely not what is meant.
    Warning,
    /// Worth knowing.
    Info,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        })
    }
}

/// Something in a mesh that is wrong, or likely not meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which check found it; stays the same from version to version.
    pub code: &'static str,
    /// The object concerned, as `Kind namespace/name`.
    pub object: Option<String>,
    /// The file in which the object stands, relative to the mesh folder.
    pub file: Option<String>,
    /// Its line there, counted from 1.
    pub line: Option<u64>,
    /// What is wrong, and what follows from it.
    pub message: String,
    /// What to do about it, where the message doesn't tell.
    pub remedy: Option<String>,
}

/// What a finding may be about.
pub(super) trait Subject {
    /// `Kind namespace/name`.
    fn title(&self) -> String;
    /// Where it stands, if that is known.
    fn place<'a>(&'a self, snapshot: &'a Snapshot) -> Option<&'a Place>;
}

impl Subject for AuthorizationPolicy {
    fn title(&self) -> String {
        format!("AuthorizationPolicy {}", self.name)
    }

    fn place<'a>(&'a self, _snapshot: &'a Snapshot) -> Option<&'a Place> {
        Some(&self.place)
    }
}

impl Subject for PeerAuthentication {
    fn title(&self) -> String {
        format!("PeerAuthentication {}", self.name)
    }

    fn place<'a>(&'a self, _snapshot: &'a Snapshot) -> Option<&'a Place> {
        Some(&self.place)
    }
}

impl Subject for Workload {
    fn title(&self) -> String {
        format!("Pod {}", self.name)
    }

    fn place<'a>(&'a self, snapshot: &'a Snapshot) -> Option<&'a Place> {
        snapshot.place("Pod", &self.name)
    }
}

impl Subject for Service {
    fn title(&self) -> String {
        format!("{} {}", self.origin.kind(), self.name)
    }

    fn place<'a>(&'a self, snapshot: &'a Snapshot) -> Option<&'a Place> {
        snapshot.place(self.origin.kind(), &self.name)
    }
}

/// Collects findings.
pub(super) struct Report<'a> {
    snapshot: &'a Snapshot,
    findings: Vec<Finding>,
}

impl<'a> Report<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        Self { snapshot, findings: Vec::new() }
    }

    /// A finding about an object. `remedy` may be empty.
    pub(super) fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        subject: &impl Subject,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let place = subject.place(self.snapshot);
        self.push(Finding {
            severity,
            code,
            object: Some(subject.title()),
            file: place.map(|place| place.file.to_string()),
            line: place.map(|place| place.line),
            message: message.into(),
            remedy: Some(remedy.into()).filter(|remedy| !remedy.is_empty()),
        });
    }

    pub(super) fn warn(
        &mut self,
        code: &'static str,
        subject: &impl Subject,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Severity::Warning, code, subject, message, remedy);
    }

    /// A finding about the mesh as a whole.
    pub(super) fn of_mesh(
        &mut self,
        severity: Severity,
        code: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let (message, remedy) = (message.into(), Some(remedy.into()));
        self.push(Finding { severity, code, object: None, file: None, line: None, message, remedy });
    }

    pub(super) fn push(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Everything found, in order.
    pub(super) fn finish(mut self) -> Vec<Finding> {
        fn order(found: &Finding) -> impl Ord + '_ {
            (found.severity, &found.file, found.line, &found.object, found.code, &found.message)
        }
        self.findings.sort_by(|one, other| order(one).cmp(&order(other)));
        self.findings.dedup();
        self.findings
    }
}
