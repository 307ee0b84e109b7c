//! Policies that have no effect, or not the effect that they state, as a whole.

use super::code::Code;
use super::finding::{Report, Severity};
use crate::model::policy::{Action, AuthorizationPolicy};
use crate::store::snapshot::Snapshot;

pub(super) fn check(snapshot: &Snapshot, report: &mut Report<'_>) {
    for policy in snapshot.policies().authorization() {
        custom(policy, report);
        dry_run(policy, report);
        without_rules(policy, report);
    }
}

fn custom(policy: &AuthorizationPolicy, report: &mut Report<'_>) {
    if policy.action == Action::Custom {
        let message = "spec.action CUSTOM needs an external authorizer, which cannot be asked at layer 4: \
            connections that match its rules are refused";
        let severity = if policy.dry_run { Severity::Warning } else { Severity::Error };
        report.add_as(severity, Code::CustomAction, policy, message, "write ALLOW or DENY rules instead");
    }
}

fn dry_run(policy: &AuthorizationPolicy, report: &mut Report<'_>) {
    if policy.dry_run {
        let message = format!("is in dry-run: its {} is reported, and not enforced", policy.action.name());
        let remedy = "remove the annotation istio.io/dry-run when the log shows the decisions that you expect";
        report.add(Code::DryRun, policy, message, remedy);
    }
}

fn without_rules(policy: &AuthorizationPolicy, report: &mut Report<'_>) {
    if policy.rules.is_empty() && policy.action != Action::Allow {
        let action = policy.action.name();
        let message = format!("{action} without rules matches no connection, so it has no effect");
        report.add(
            Code::NoRules,
            policy,
            message,
            "write `rules: [{}]` to match every connection, or remove the policy",
        );
    }
}
