//! Problems that the reader of the manifests reported, and parts that it could not read or use.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::code::Code;
use super::finding::{Finding, Report, Severity, Subject};
use super::index::Mesh;
use crate::model::origin::Origin;
use crate::model::policy::{Action, AuthorizationPolicy};
use crate::model::problem::{self, Problem};
use crate::store::snapshot::Snapshot;

/// The end of the note that an external address of a Service belongs to another object.
const TAKEN: &str = "it does not lead to the service through the mesh";

pub(super) fn check(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    let snapshot = mesh.snapshot;
    let told = Told::by_other_checks(snapshot);
    // For a daemon's notes on the ways to a Service there are findings (`fields.rs`), except that an address belongs to
    // another object. The finding `injection-and-ambient` says more than the note on a label.
    let is_checked = |problem: &&Problem| {
        let is_of_service = problem.object.as_ref().is_some_and(|object| object.starts_with("Service "));
        let is_note = problem.severity == problem::Severity::Info && !problem.message.ends_with(TAKEN);
        (is_of_service && is_note) || problem.message.starts_with("istio-injection: ")
    };
    let problems = snapshot.problems().iter().chain(&mesh.declared.problems);
    let problems = problems.filter(|problem| !told.includes(problem));
    for problem in problems.filter(|problem| !is_checked(problem)) {
        report.push(Finding {
            severity: match problem.severity {
                problem::Severity::Error => Severity::Error,
                problem::Severity::Warning => Severity::Warning,
                problem::Severity::Info => Severity::Info,
            },
            code: if is_contested(snapshot, problem) { Code::DuplicateAddress } else { Code::Manifest },
            object: problem.object.clone(),
            origin: Some(problem.origin.clone()),
            message: problem.message.clone(),
            remedy: None,
        });
    }
    check_unread(snapshot, report);
    let origins = unjudged_origins(snapshot, &told);
    for policy in snapshot.policies().authorization() {
        unjudged(policy, origins.get(&policy.title()).copied(), report);
    }
}

fn check_unread(snapshot: &Snapshot, report: &mut Report<'_>) {
    let unread = snapshot.policies().unread();
    let mut add = |source: &Arc<str>, whom: &str| {
        report.push(Finding {
            severity: Severity::Error,
            code: Code::UnreadPolicies,
            object: None,
            origin: Some(Origin::file(Arc::clone(source))),
            message: format!(
                "it may hold policies, and cannot be read: a daemon that starts with it refuses every connection to \
                 pods of {whom}"
            ),
            remedy: Some("repair the file".to_owned()),
        });
    };
    if let Some(source) = &unread.anywhere {
        add(source, "the mesh");
    }
    for (namespace, source) in &unread.namespaces {
        add(source, &format!("namespace {namespace}"));
    }
    if snapshot.is_partial() {
        let message =
            "a part of the mesh could not be read, so names and selectors of policies and services were not checked";
        report.of_mesh(Code::Incomplete, message, "repair the files that cannot be read, and run the command again");
    }
}

/// One finding for each policy, since one waypoint, or one change, is needed for all of its fields.
fn unjudged(policy: &AuthorizationPolicy, origin: Option<&Origin>, report: &mut Report<'_>) {
    let with_some = policy.rules.iter().filter(|rule| !rule.unjudged.is_empty()).count();
    if with_some == 0 {
        return;
    }
    let paths = policy
        .rules
        .iter()
        .enumerate()
        .flat_map(|(index, rule)| rule.unjudged.iter().map(move |field| format!("rules[{index}].{field}")));
    let paths: Vec<String> = paths.collect();
    let consequence = match policy.action {
        Action::Allow if with_some == policy.rules.len() => {
            "none of its rules matches, so the policy allows no connection".to_owned()
        }
        Action::Allow => "a rule with such a field never matches".to_owned(),
        Action::Deny | Action::Custom => {
            "the rule is enforced without the field, so it refuses more connections".to_owned()
        }
        Action::Audit => "the rule is applied without the field, so it reports more connections".to_owned(),
    };
    let message = format!("{} cannot be evaluated at layer 4: {consequence}", paths.join(", "));
    let remedy = "remove these fields, or have a waypoint enforce the policy";
    report.push(Finding {
        severity: Severity::Warning,
        code: Code::L7WithoutWaypoint,
        object: Some(policy.title()),
        origin: Some(origin.unwrap_or(&policy.origin).clone()),
        message,
        remedy: Some(remedy.to_owned()),
    });
}

/// Whether the problem is that another pod claims the same address.
fn is_contested(snapshot: &Snapshot, problem: &Problem) -> bool {
    let address = problem.message.split(' ').next().and_then(|word| word.parse::<IpAddr>().ok());
    let claimants = address.and_then(|address| snapshot.contested(address));
    claimants.is_some_and(|claimants| claimants.iter().any(|one| Some(format!("Pod {one}")) == problem.object))
}

/// Whether the problem is that one of these fields cannot be evaluated, or that there are more such fields than are
/// reported.
fn is_unjudged(problem: &Problem, fields: &HashSet<String>) -> bool {
    let message = &problem.message;
    fields.iter().any(|field| message.contains(field.as_str())) || message.contains("more fields cannot be evaluated")
}

/// The origin of the first field of each policy that cannot be evaluated.
fn unjudged_origins<'a>(snapshot: &'a Snapshot, told: &Told) -> HashMap<String, &'a Origin> {
    let mut origins = HashMap::new();
    for problem in snapshot.problems() {
        let Some(object) = &problem.object else { continue };
        if told.unjudged.get(object).is_some_and(|fields| is_unjudged(problem, fields)) {
            let first = origins.entry(object.clone()).or_insert(&problem.origin);
            *first = (&problem.origin).min(*first);
        }
    }
    origins
}

/// Problems for which there are findings with more details.
struct Told {
    /// Fields that cannot be evaluated, by policy.
    unjudged: HashMap<String, HashSet<String>>,
    /// Policies with the action CUSTOM.
    custom: HashSet<String>,
    /// PeerAuthentications.
    authentication: HashSet<String>,
}

impl Told {
    fn by_other_checks(snapshot: &Snapshot) -> Self {
        let authentication = snapshot.policies().authentication().iter().map(|policy| policy.title()).collect();
        let mut told = Self { unjudged: HashMap::new(), custom: HashSet::new(), authentication };
        for policy in snapshot.policies().authorization() {
            if policy.action == Action::Custom {
                told.custom.insert(policy.title());
            }
            for field in policy.rules.iter().flat_map(|rule| &rule.unjudged) {
                told.unjudged.entry(policy.title()).or_default().insert(field.clone());
            }
        }
        told
    }

    fn includes(&self, problem: &Problem) -> bool {
        let Some(object) = &problem.object else { return false };
        let is_custom = self.custom.contains(object) && problem.message.contains("CUSTOM");
        let is_several =
            self.authentication.contains(object) && problem.message.starts_with("has no effect: PeerAuthentication");
        is_custom || is_several || self.unjudged.get(object).is_some_and(|fields| is_unjudged(problem, fields))
    }
}
