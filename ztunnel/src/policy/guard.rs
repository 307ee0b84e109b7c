//! The policies that apply to one workload, and the evaluation of a connection.

use std::sync::Arc;

use super::Connection;
use super::authentication::{self, Mode};
use super::denial::{Cause, Denial};
use super::matching::rule_matches;
use super::words::{self, MOST};
use crate::model::local::{LocalPod, PortSet};
use crate::model::policy::{Action, AuthorizationPolicy, MtlsMode, Rule};
use crate::model::workload::{NamespacedName, Workload};
use crate::store::policies::{Group, GroupEntry, Protection};
use crate::store::snapshot::Snapshot;

/// All policies that apply to a workload. It can be used on any thread, also after the snapshot is gone.
#[derive(Debug, Default)]
pub struct PodPolicies {
    unread: Option<Arc<str>>,
    mode: Mode,
    protections: Vec<Protection>,
    /// Ascending.
    probe_ports: Vec<u16>,
    /// Ports excluded from inbound capture.
    excluded_ports: PortSet,
}

/// Proof that a connection was evaluated and is allowed.
#[derive(Debug)]
pub struct Permit(Basis);

/// Why a connection is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Basis {
    /// Policy allows it.
    #[default]
    Policy,
    /// Policy denies it, but the client is the kubelet and the port is a probe's port.
    Probe,
    /// The pod excludes the port from inbound capture, so no policy is enforced at this port. Every client reaches the port in
    /// plaintext past this daemon. To deny the same connection through HBONE would protect nothing, and would lock out the
    /// clients in the mesh.
    ExcludedPort,
}

impl Basis {
    /// For the access log: why policy did not decide. `None`: policy decided.
    #[must_use]
    pub const fn without_policy(self) -> Option<&'static str> {
        match self {
            Self::Policy => None,
            Self::Probe => Some("not enforced: probe of the kubelet"),
            Self::ExcludedPort => Some("not enforced: port excluded from inbound capture"),
        }
    }
}

impl Permit {
    /// Why the connection is allowed.
    #[must_use]
    pub fn basis(&self) -> Basis {
        self.0
    }
}

/// A connection is denied. [`Denied::told`] has the details.
#[derive(Clone, Copy, Debug)]
pub struct Denied<'a> {
    guard: &'a PodPolicies,
    ground: Ground<'a>,
}

/// The reason, with references into the policies.
#[derive(Clone, Copy, Debug)]
enum Ground<'a> {
    Unread(&'a Arc<str>),
    Strict { policy: &'a NamespacedName, port: Option<u16> },
    Matched { policy: &'a AuthorizationPolicy, rule: usize },
    NotAllowed,
}

impl Denied<'_> {
    /// The reason, as text.
    #[must_use]
    pub fn told(&self, connection: &Connection) -> Denial {
        let port = connection.destination.port();
        let cause = match self.ground {
            Ground::Unread(source) => Cause::Unread { source: Arc::clone(source) },
            Ground::Strict { policy, port } => Cause::Strict { policy: policy.clone(), port },
            Ground::Matched { policy, rule } => Cause::Matched {
                policy: policy.name.clone(),
                action: policy.action,
                rule,
                clauses: policy.rules.get(rule).map(|rule| words::matched(rule, connection)).unwrap_or_default(),
            },
            Ground::NotAllowed => {
                let (policies, more) = self.guard.allowing(port, MOST);
                Cause::NotAllowed { policies: policies.into_iter().cloned().collect(), more }
            }
        };
        Denial { cause, at_probe: connection.source.is_none() && self.guard.is_probed(port) }
    }
}

/// A match of a policy that is not enforced (dry-run or AUDIT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnenforcedMatch<'a> {
    /// The policy.
    pub policy: &'a NamespacedName,
    /// Its action, which dry-run does not execute.
    pub action: Action,
    /// The policy is in dry-run. `false`: its action is AUDIT.
    pub dry_run: bool,
    /// The first of its rules that matched. `None`: this is an ALLOW policy in dry-run, and no ALLOW policy matched, in dry-run
    /// or in force. If this policy were enforced, it would deny the connection.
    pub rule: Option<usize>,
}

impl PodPolicies {
    /// The policies of a workload. `local`: the facts that the workload's node knows about it.
    #[must_use]
    pub fn of(snapshot: &Snapshot, workload: &Workload, local: &LocalPod) -> Self {
        let policies = snapshot.policies();
        let mut probe_ports = local.probe_ports.clone();
        probe_ports.sort_unstable();
        Self {
            unread: policies.unread_of(&workload.name.namespace).cloned(),
            mode: authentication::resolve(policies.authenticating(workload), workload),
            protections: policies.protecting(workload, snapshot),
            probe_ports,
            excluded_ports: local.exclusions.inbound_ports.clone(),
        }
    }

    /// Whether both are made of the same policies, so that they decide alike. The result may be `false` although they decide
    /// alike. The comparison is cheap: groups of policies are compared by pointer.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let Self { unread, mode, protections, probe_ports, excluded_ports } = self;
        let is_same = |(one, other): (&Protection, &Protection)| {
            Arc::ptr_eq(&one.group, &other.group) && one.ports == other.ports
        };
        *unread == other.unread
            && *mode == other.mode
            && *probe_ports == other.probe_ports
            && *excluded_ports == other.excluded_ports
            && protections.len() == other.protections.len()
            && protections.iter().zip(&other.protections).all(is_same)
    }

    /// Whether a connection is allowed. At a port that is excluded from inbound capture every connection is allowed. Never
    /// allocates.
    ///
    /// # Errors
    /// Why the connection is denied; [`Denied::told`] makes a text of it.
    pub fn judge(&self, connection: &Connection) -> Result<Permit, Denied<'_>> {
        let denied = |ground| Err(Denied { guard: self, ground });
        if self.is_excluded(connection.destination.port()) {
            return Ok(Permit(Basis::ExcludedPort));
        }
        if let Some(source) = &self.unread {
            return denied(Ground::Unread(source));
        }
        let port = connection.destination.port();
        if connection.source.is_none()
            && let (MtlsMode::Strict, Some(policy), by_port) = self.mode.at(port)
        {
            return denied(Ground::Strict { policy, port: by_port.then_some(port) });
        }
        let facts = connection.facts();
        let matches = |rule: &Rule| rule_matches(rule, connection);
        let found = self.groups(port).filter_map(|group| group.deny().first(&facts, matches));
        if let Some(entry) = found.min_by_key(|entry| entry.order()) {
            return denied(Ground::Matched { policy: entry.policy(), rule: entry.index() });
        }
        if self.needs_permission(port) && !self.is_allowed(connection) {
            return denied(Ground::NotAllowed);
        }
        Ok(Permit(Basis::Policy))
    }

    /// Whether a rule of an enforced ALLOW policy matches.
    fn is_allowed(&self, connection: &Connection) -> bool {
        let (facts, port) = (connection.facts(), connection.destination.port());
        let here = self.protections.iter().filter(|protection| protection.ports.surely_include(port));
        here.map(|protection| &protection.group)
            .any(|group| group.allow().any(&facts, |rule| rule_matches(rule, connection)))
    }

    /// The rule that allows a connection: the first one that matches, by the order of policies, with its index in the policy. `None`: no
    /// rule of an enforced ALLOW policy matches.
    #[must_use]
    pub fn allowing_rule(&self, connection: &Connection) -> Option<(&NamespacedName, usize)> {
        let (facts, port) = (connection.facts(), connection.destination.port());
        let here = self.protections.iter().filter(|protection| protection.ports.surely_include(port));
        let found =
            here.filter_map(|protection| protection.group.allow().first(&facts, |rule| rule_matches(rule, connection)));
        let first = found.min_by_key(|entry| entry.order())?;
        Some((&first.policy().name, first.index()))
    }

    /// Whether an ALLOW policy is enforced at a port, so that a connection needs a rule that allows it.
    #[must_use]
    pub fn needs_permission(&self, port: u16) -> bool {
        self.groups(port).any(|group| !group.allowing().is_empty())
    }

    /// The permit for a connection that was denied at a probe's port, and whose client is known to be the kubelet.
    #[must_use]
    pub fn admit_probe(denial: &Denial) -> Option<Permit> {
        denial.at_probe.then_some(Permit(Basis::Probe))
    }

    /// Matches of policies that are not enforced (dry-run and AUDIT), by namespace and name: each policy that matches, and the
    /// ALLOW policies that would deny the connection.
    pub fn unenforced(&self, connection: &Connection, mut found: impl FnMut(UnenforcedMatch<'_>)) {
        let port = connection.destination.port();
        if self.is_excluded(port) {
            return;
        }
        let mut allows = in_order(self.groups(port).flat_map(Group::allowing_in_dry_run));
        if allows.is_empty() && self.groups(port).all(|group| group.unenforced().is_empty()) {
            return;
        }
        let facts = connection.facts();
        let mut entries: Vec<&GroupEntry> = Vec::new();
        for group in self.groups(port) {
            group.unenforced().each(&facts, |rule| rule_matches(rule, connection), |entry| entries.push(entry));
        }
        entries.sort_by(|one, other| one.order().cmp(&other.order()));
        entries.dedup_by(|later, first| later.order().0 == first.order().0);
        if entries.iter().any(|entry| entry.policy().action == Action::Allow) || self.is_allowed(connection) {
            allows.clear();
        }
        let matched = entries.into_iter().map(|entry| (&**entry.policy(), Some(entry.index())));
        let mut all: Vec<(&AuthorizationPolicy, Option<usize>)> = matched.collect();
        all.extend(allows.into_iter().map(|policy| (policy, None)));
        all.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
        for (policy, rule) in all {
            found(UnenforcedMatch { policy: &policy.name, action: policy.action, dry_run: policy.dry_run, rule });
        }
    }

    /// The AuthorizationPolicies that protect the workload at any port, by namespace and name.
    pub fn names(&self) -> Vec<&NamespacedName> {
        let all = self.protections.iter().flat_map(|protection| protection.group.policies());
        in_order(all).into_iter().map(|policy| &policy.name).collect()
    }

    /// The groups of AuthorizationPolicies that protect the workload at some port.
    pub fn groups_at_any_port(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.protections.iter().map(|protection| &protection.group)
    }

    /// Whether every connection is denied because policies could never be read.
    #[must_use]
    pub fn is_unread(&self) -> bool {
        self.unread.is_some()
    }

    /// Whether clients of the workload must have an identity.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// The first few enforced ALLOW policies at a port, by namespace and name, and the number of the others. Many connections
    /// may be denied in a short time, so all policies are sorted only when a policy may be in two groups.
    pub(super) fn allowing(&self, port: u16, few: usize) -> (Vec<&NamespacedName>, usize) {
        let groups = || self.groups(port).map(Group::allowing);
        let total = if self.groups(port).any(Group::is_shared) {
            in_order(groups().flatten()).len()
        } else {
            groups().map(<[_]>::len).sum()
        };
        let mut first = in_order(groups().flat_map(|policies| policies.iter().take(few)));
        first.truncate(few);
        let more = total.saturating_sub(first.len());
        (first.into_iter().map(|policy| &policy.name).collect(), more)
    }

    fn is_excluded(&self, port: u16) -> bool {
        self.excluded_ports.contains(port)
    }

    pub(super) fn is_probed(&self, port: u16) -> bool {
        self.probe_ports.binary_search(&port).is_ok()
    }

    fn groups(&self, port: u16) -> impl Iterator<Item = &Group> {
        let here = self.protections.iter().filter(move |protection| protection.ports.include(port));
        here.map(|protection| &*protection.group)
    }
}

fn in_order<'a>(policies: impl Iterator<Item = &'a Arc<AuthorizationPolicy>>) -> Vec<&'a AuthorizationPolicy> {
    let mut found: Vec<&AuthorizationPolicy> = policies.map(|policy| &**policy).collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found.dedup_by(|later, first| later.name == first.name);
    found
}
