//! Findings and how they are collected.

use std::fmt;

use serde::{Serialize, Serializer};

use super::code::Code;
use super::pod::Pod;
use crate::model::origin::Origin;
use crate::model::policy::{AuthorizationPolicy, PeerAuthentication};
use crate::model::service::Service;
use crate::store::snapshot::Snapshot;

/// The severity of a finding. The worst comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something has no effect, or denies or allows connections that it should not.
    Error,
    /// Something probably differs from the author's intention.
    Warning,
    /// Something that the user should know.
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

/// A fault in a mesh, or something that probably differs from the author's intention.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The check that found it; the code stays the same from version to version.
    pub code: Code,
    /// The object concerned, as `Kind namespace/name`.
    pub object: Option<String>,
    /// Where the object comes from. In JSON: `file`, relative to the mesh folder, and `line`, counted from 1.
    #[serde(flatten, serialize_with = "origin_keys")]
    pub origin: Option<Origin>,
    /// What is wrong, and the consequence.
    pub message: String,
    /// What to do about it, unless the message says it.
    pub remedy: Option<String>,
}

fn origin_keys<S: Serializer>(origin: &Option<Origin>, serializer: S) -> Result<S::Ok, S::Error> {
    Origin::keys(origin.as_ref()).serialize(serializer)
}

/// The subject of a finding.
pub(super) trait Subject {
    /// `Kind namespace/name`.
    fn title(&self) -> String;
    /// Where it comes from, if that is known.
    fn origin<'a>(&'a self, snapshot: &'a Snapshot) -> Option<&'a Origin>;
}

impl Subject for AuthorizationPolicy {
    fn title(&self) -> String {
        format!("AuthorizationPolicy {}", self.name)
    }

    fn origin<'a>(&'a self, _snapshot: &'a Snapshot) -> Option<&'a Origin> {
        Some(&self.origin)
    }
}

impl Subject for PeerAuthentication {
    fn title(&self) -> String {
        format!("PeerAuthentication {}", self.name)
    }

    fn origin<'a>(&'a self, _snapshot: &'a Snapshot) -> Option<&'a Origin> {
        Some(&self.origin)
    }
}

impl Subject for Pod<'_> {
    fn title(&self) -> String {
        format!("{} {}", self.kind(), self.name)
    }

    fn origin<'a>(&'a self, snapshot: &'a Snapshot) -> Option<&'a Origin> {
        self.template_origin().or_else(|| snapshot.origin("Pod", &self.name))
    }
}

/// An object of which only the title and the origin are known.
pub(super) struct Object<'a> {
    pub(super) title: String,
    pub(super) origin: &'a Origin,
}

impl Subject for Object<'_> {
    fn title(&self) -> String {
        self.title.clone()
    }

    fn origin<'a>(&'a self, _snapshot: &'a Snapshot) -> Option<&'a Origin> {
        Some(self.origin)
    }
}

impl Subject for Service {
    fn title(&self) -> String {
        format!("{} {}", self.kind.name(), self.name)
    }

    fn origin<'a>(&'a self, snapshot: &'a Snapshot) -> Option<&'a Origin> {
        snapshot.origin(self.kind.name(), &self.name)
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

    /// Adds a finding with another severity than usual for its code.
    pub(super) fn add_as(
        &mut self,
        severity: Severity,
        code: Code,
        subject: &impl Subject,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.push(Finding {
            severity,
            code,
            object: Some(subject.title()),
            origin: subject.origin(self.snapshot).cloned(),
            message: message.into(),
            remedy: Some(remedy.into()).filter(|remedy| !remedy.is_empty()),
        });
    }

    /// Adds a finding about an object. `remedy` may be empty.
    pub(super) fn add(
        &mut self,
        code: Code,
        subject: &impl Subject,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add_as(code.severity(), code, subject, message, remedy);
    }

    /// Adds a finding about the mesh as a whole.
    pub(super) fn of_mesh(&mut self, code: Code, message: impl Into<String>, remedy: impl Into<String>) {
        let (message, remedy) = (message.into(), Some(remedy.into()));
        self.push(Finding { severity: code.severity(), code, object: None, origin: None, message, remedy });
    }

    pub(super) fn push(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// All findings, in order.
    pub(super) fn finish(mut self) -> Vec<Finding> {
        fn order(found: &Finding) -> impl Ord + '_ {
            (found.severity, &found.origin, &found.object, found.code, &found.message)
        }
        self.findings.sort_by(|one, other| order(one).cmp(&order(other)));
        self.findings.dedup();
        self.findings
    }
}
