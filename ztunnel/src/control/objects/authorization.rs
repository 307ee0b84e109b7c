//! Istio's AuthorizationPolicy, as far as it can be evaluated for a connection: the content of the object itself. The
//! workloads that it selects depend on the root namespace, and are determined when objects are joined.

mod rules;

use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use self::rules::Unjudged;
use super::annotations::Annotations;
use super::bounded::{Bounded, entries};
use super::name::check_name;
use super::report::{FieldError, FieldErrors, Report};
use super::security::{Object, Selector, labels};
use crate::control::field::FieldPath;
use crate::model::labels::Labels;
use crate::model::policy::{Action, Rule};
use crate::model::workload::NamespacedName;

/// Annotation of an AuthorizationPolicy that only reports the decisions it would make.
pub const DRY_RUN: &str = "istio.io/dry-run";

/// The most rules of a policy.
const MOST_RULES: usize = 512;
/// The most services that a policy names; Istio has the same limit.
const MOST_TARGETS: usize = 16;
/// The most fields of one policy that are reported one by one because they cannot be evaluated.
const MOST_TOLD: usize = 32;

/// The object.
pub(in crate::control) type AuthorizationPolicy = Object<Spec>;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::control) struct Spec {
    selector: Option<Selector>,
    target_ref: Option<TargetRef>,
    target_refs: Option<Bounded<TargetRef, MOST_TARGETS>>,
    action: Option<SpecAction>,
    #[expect(dead_code, reason = "only the authorizer of action CUSTOM would read it")]
    provider: Option<IgnoredAny>,
    rules: Option<Bounded<Option<rules::Rule>, MOST_RULES>>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum SpecAction {
    Allow,
    Deny,
    Audit,
    Custom,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetRef {
    group: Option<String>,
    kind: Option<String>,
    name: Option<String>,
    namespace: Option<String>,
}

/// A policy whose scope is not known yet.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) struct AuthorizationManifest {
    pub(in crate::control) target: Target,
    pub(in crate::control) action: Action,
    pub(in crate::control) dry_run: bool,
    pub(in crate::control) rules: Vec<Rule>,
}

/// The workloads that the policy selects, as it says itself.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) enum Target {
    /// Workloads with these labels; all workloads if there are no labels.
    Labels(Labels),
    /// Workloads behind any of these services; at least one service.
    Services(Vec<NamespacedName>),
}

/// `None`: the policy is for a waypoint, which is reported.
pub(super) fn read(
    name: &NamespacedName,
    policy: AuthorizationPolicy,
    report: &mut Report,
) -> Result<Option<AuthorizationManifest>, FieldError> {
    let spec = policy.spec.unwrap_or_default();
    let action = match spec.action {
        None | Some(SpecAction::Allow) => Action::Allow,
        Some(SpecAction::Deny) => Action::Deny,
        Some(SpecAction::Audit) => Action::Audit,
        Some(SpecAction::Custom) => Action::Custom,
    };
    let mut errors = FieldErrors::default();
    let labels = errors.take(labels(spec.selector)).unwrap_or_default();
    let targets =
        errors.take(targets(spec.target_ref.as_ref(), entries(spec.target_refs.as_ref()))).unwrap_or_default();
    if let Some((field, _)) = targets.first().filter(|_| !labels.is_empty()) {
        let message = "is given together with selector: write only one of them";
        errors.push(FieldError::new(field.clone(), message));
    }
    let services = errors.take(services(&name.namespace, &targets, report)).unwrap_or_default();
    let rules = errors.take(rules::read(entries(spec.rules.as_ref()), &name.namespace));
    errors.finish()?;
    let target = match services.is_empty() {
        true if targets.is_empty() => Target::Labels(labels),
        true => return Ok(None),
        false => Target::Services(services),
    };
    let (rules, unjudged) = rules.unwrap_or_default();
    if action == Action::Custom {
        report.error_at(
            FieldPath::of("spec.action"),
            "spec.action: CUSTOM needs an external authorizer, which cannot be asked at layer 4: connections that \
             match its rules are refused; write ALLOW or DENY rules, or have a waypoint enforce it",
        );
    }
    report_unjudged(action, &unjudged, report);
    for (index, rule) in rules.iter().enumerate() {
        if let Some(value) = rules::stray_star(rule) {
            let field = FieldPath::of("spec.rules").index(index);
            let message = format!(
                "{field}: {:?} matches no client: * is a wildcard only as the whole value, or at one end of it",
                value.to_string()
            );
            report.error_at(field, message);
        }
    }
    let annotations = policy.metadata.annotations.unwrap_or_default();
    let mut annotations = Annotations { values: &annotations, report };
    let dry_run = annotations.read(DRY_RUN, "the policy is enforced", |text| match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("is neither \"true\" nor \"false\""),
    });
    Ok(Some(AuthorizationManifest { target, action, dry_run: dry_run.unwrap_or(false), rules }))
}

/// All targets with their field paths.
fn targets<'a>(
    one: Option<&'a TargetRef>,
    several: &'a [TargetRef],
) -> Result<Vec<(FieldPath, &'a TargetRef)>, FieldError> {
    let path_of_one = || FieldPath::of("spec.targetRef");
    match one {
        Some(_) if !several.is_empty() => {
            Err(FieldError::new(path_of_one(), "is given together with targetRefs: write only targetRefs"))
        }
        Some(target) => Ok(vec![(path_of_one(), target)]),
        None => {
            let path = |index| FieldPath::of("spec.targetRefs").index(index);
            Ok(several.iter().enumerate().map(|(index, target)| (path(index), target)).collect())
        }
    }
}

/// The services among the targets. Other targets are reported.
fn services(
    namespace: &Arc<str>,
    targets: &[(FieldPath, &TargetRef)],
    report: &mut Report,
) -> Result<Vec<NamespacedName>, FieldError> {
    let (mut services, mut errors) = (Vec::new(), FieldErrors::default());
    for (path, target) in targets {
        let wrong = |field: &str, message: String| FieldError::new(path.clone().key(field), message);
        let TargetRef { group, kind, name, namespace: own } = target;
        let kind = kind.as_deref().unwrap_or_default();
        let name = name.as_deref().unwrap_or_default();
        let before = errors.count();
        errors.take(check_name(name).map_err(|message| wrong("name", message)));
        if let Some(other) = own.as_deref().filter(|own| !own.is_empty() && *own != &**namespace) {
            let message =
                format!("{other:?} is another namespace: a policy can only target services of its own namespace");
            errors.push(wrong("namespace", message));
        }
        match (group.as_deref().unwrap_or_default(), kind) {
            ("" | "core", "Service") if errors.count() == before => {
                let service = NamespacedName::new(Arc::clone(namespace), name);
                if !services.contains(&service) {
                    services.push(service);
                }
            }
            ("" | "core", "Service") => {}
            ("" | "core", other) => {
                errors.push(wrong("kind", format!("{other:?} cannot be the target of a policy: write Service")));
            }
            (_, kind) => report.warn_at(
                path.clone(),
                format!(
                    "{path}: a policy for a {kind:?} is enforced by a waypoint or gateway: it has no effect here; to \
                     protect the pods behind a service, write kind: Service"
                ),
            ),
        }
    }
    errors.finish().map(|()| services)
}

fn report_unjudged(action: Action, unjudged: &[Unjudged], report: &mut Report) {
    let consequence = match action {
        Action::Allow => "the rule never matches, so it allows no connection",
        Action::Deny | Action::Custom => {
            "the rule is enforced without the field, so it refuses more connections than written"
        }
        Action::Audit => "the rule is applied without the field, so it reports more connections than written",
    };
    for Unjudged { at, field } in unjudged.iter().take(MOST_TOLD) {
        report.warn_at(
            at.clone(),
            format!(
                "{field}: requests are not visible at layer 4: {consequence}; remove the field, or have a waypoint \
                 enforce the policy"
            ),
        );
    }
    if let Some(more @ 1..) = unjudged.len().checked_sub(MOST_TOLD) {
        report.warn(format!("{more} more fields cannot be evaluated at layer 4: {consequence}"));
    }
}
