//! Policies that protect the same workloads, with their rules separated by effect.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::index::{Facts, Index};
use crate::model::policy::{Action, AuthorizationPolicy, Rule, Scope};
use crate::model::workload::NamespacedName;

/// Policies of one scope, by namespace and name.
#[derive(Debug)]
pub struct Group {
    policies: Vec<Arc<AuthorizationPolicy>>,
    allowing: Vec<Arc<AuthorizationPolicy>>,
    allowing_in_dry_run: Vec<Arc<AuthorizationPolicy>>,
    is_shared: bool,
    deny: Rules,
    allow: Rules,
    unenforced: Rules,
}

/// Rules with the same effect, with an index that finds the rules that may match.
#[derive(Debug, Default)]
pub struct Rules {
    /// By namespace, name and position in the policy.
    entries: Vec<GroupEntry>,
    index: Index,
}

/// A rule of a policy.
#[derive(Debug, Clone)]
pub struct GroupEntry {
    policy: Arc<AuthorizationPolicy>,
    rule: u32,
}

/// Whether a rule of this policy can match at all. An ALLOW rule with a field that can't be evaluated never matches.
#[must_use]
pub fn can_match(policy: &AuthorizationPolicy, rule: &Rule) -> bool {
    policy.action != Action::Allow || rule.unjudged.is_empty()
}

impl Group {
    /// Makes a group of policies, which are sorted by namespace and name and unique.
    pub(super) fn new(policies: Vec<Arc<AuthorizationPolicy>>) -> Self {
        let (mut deny, mut allow, mut unenforced) = (Vec::new(), Vec::new(), Vec::new());
        for policy in &policies {
            let entries = match policy.action {
                _ if policy.dry_run => &mut unenforced,
                Action::Audit => &mut unenforced,
                Action::Deny | Action::Custom => &mut deny,
                Action::Allow => &mut allow,
            };
            let rules = (0..).zip(&policy.rules).filter(|(_, rule)| can_match(policy, rule));
            entries.extend(rules.map(|(rule, _)| GroupEntry { policy: Arc::clone(policy), rule }));
        }
        let [deny, allow, unenforced] = [deny, allow, unenforced].map(Rules::new);
        let allowing = |in_dry_run| {
            let wanted =
                move |policy: &AuthorizationPolicy| policy.action == Action::Allow && policy.dry_run == in_dry_run;
            policies.iter().filter(|policy| wanted(policy)).cloned().collect()
        };
        let (allowing, allowing_in_dry_run) = (allowing(false), allowing(true));
        let is_shared =
            policies.iter().any(|policy| matches!(&policy.scope, Scope::Services(names) if names.len() > 1));
        Self { policies, allowing, allowing_in_dry_run, is_shared, deny, allow, unenforced }
    }

    /// The policies.
    pub fn policies(&self) -> &[Arc<AuthorizationPolicy>] {
        &self.policies
    }

    /// The enforced ALLOW policies. If there are any, a connection that none of them allows is denied.
    pub fn allowing(&self) -> &[Arc<AuthorizationPolicy>] {
        &self.allowing
    }

    /// The ALLOW policies in dry-run.
    pub fn allowing_in_dry_run(&self) -> &[Arc<AuthorizationPolicy>] {
        &self.allowing_in_dry_run
    }

    /// Whether a policy may be in another group as well.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// The rules that deny.
    pub fn deny(&self) -> &Rules {
        &self.deny
    }

    /// The rules that allow.
    pub fn allow(&self) -> &Rules {
        &self.allow
    }

    /// The rules that are not enforced: rules of AUDIT policies, and of all policies in dry-run.
    pub fn unenforced(&self) -> &Rules {
        &self.unenforced
    }
}

impl GroupEntry {
    /// The policy.
    pub fn policy(&self) -> &Arc<AuthorizationPolicy> {
        &self.policy
    }

    /// The index of the rule in the policy.
    pub fn index(&self) -> usize {
        self.rule as usize
    }

    /// The rule.
    pub fn rule(&self) -> Option<&Rule> {
        self.policy.rules.get(self.index())
    }

    /// Orders the entries of all groups of a mesh by namespace, name and position in the policy.
    pub fn order(&self) -> (&NamespacedName, u32) {
        (&self.policy.name, self.rule)
    }
}

impl Rules {
    fn new(entries: Vec<GroupEntry>) -> Self {
        let index = Index::new(entries.iter().map(GroupEntry::rule));
        Self { entries, index }
    }

    /// Whether there is no rule that can match.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The first rule that matches. Never allocates.
    pub fn first(&self, facts: &Facts<'_>, matches: impl Fn(&Rule) -> bool) -> Option<&GroupEntry> {
        let mut best: Option<(u32, &GroupEntry)> = None;
        let _ = self.index.candidates(facts, |bucket| {
            for position in bucket.iter().copied() {
                if best.is_some_and(|(first, _)| first <= position) {
                    break;
                }
                if let Some(entry) = self.matching(position, &matches) {
                    best = Some((position, entry));
                    break;
                }
            }
            ControlFlow::Continue(())
        });
        best.map(|(_, entry)| entry)
    }

    /// Whether any rule matches. Never allocates.
    pub fn any(&self, facts: &Facts<'_>, matches: impl Fn(&Rule) -> bool) -> bool {
        let found = self.index.candidates(facts, |bucket| {
            let is_match = bucket.iter().any(|position| self.matching(*position, &matches).is_some());
            if is_match { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        found.is_break()
    }

    /// Yields every rule that matches, in no particular order; a rule may be yielded twice.
    pub fn each<'a>(
        &'a self,
        facts: &Facts<'_>,
        matches: impl Fn(&Rule) -> bool,
        mut found: impl FnMut(&'a GroupEntry),
    ) {
        let _ = self.index.candidates(facts, |bucket| {
            bucket.iter().filter_map(|position| self.matching(*position, &matches)).for_each(&mut found);
            ControlFlow::Continue(())
        });
    }

    fn matching(&self, position: u32, matches: &impl Fn(&Rule) -> bool) -> Option<&GroupEntry> {
        let entry = self.entries.get(position as usize)?;
        matches(entry.rule()?).then_some(entry)
    }
}
