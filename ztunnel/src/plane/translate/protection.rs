//! The part of a workload's message that protects it: the names of the policies that select it, and of the policies
//! that are made for it.

use std::{collections::BTreeMap, sync::Arc};

use super::{encode, policies};
use crate::{
    model::{
        policy::{Action, AuthorizationPolicy, Match, MtlsMode, Part, Rule, Scope, StringMatch},
        workload::{NamespacedName, Workload},
    },
    policy::{Mode, mode},
    store::{
        policies::{Ports, Protection},
        snapshot::Snapshot,
    },
};

/// The policy of workloads whose clients must have an identity at every port. The name is Istio's.
const STRICT: &str = "istio_converted_static_strict";
/// The prefix of the name of a policy that is made from a PeerAuthentication. The prefix is Istio's.
const CONVERTED: &str = "converted_peer_authentication_";
/// The prefix of the name of a policy that is made from a policy that names services.
const OF_SERVICE: &str = "ztunnel_service_";
/// The prefix of the name of a policy that keeps the ports open to which no policy applies.
const OTHER_PORTS: &str = "ztunnel_other_ports";

/// The policies that a workload names.
#[derive(Debug, Default)]
pub(super) struct Protecting {
    /// Policies that select the workload by its labels.
    selected: Vec<Arc<str>>,
    /// Policies that are made for the workload and for others like it, by the name of their resource.
    pub(super) made: BTreeMap<Arc<str>, AuthorizationPolicy>,
}

impl Protecting {
    /// All names, ascending.
    pub(super) fn names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> = self.selected.iter().chain(self.made.keys()).cloned().collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn make(&mut self, policy: AuthorizationPolicy) {
        self.made.insert(policies::name(&policy.name), policy);
    }
}

/// The policies that protect a workload.
pub(super) fn of(workload: &Workload, mesh: &Snapshot) -> Protecting {
    let mut protecting = Protecting::default();
    let protections = mesh.policies().protecting(workload, mesh);
    let policies = protections.iter().flat_map(|protection| protection.group.policies());
    let selected = policies.filter(|policy| matches!(policy.scope, Scope::Selector { .. }));
    let selected = selected.filter(|policy| policies::decides(policy));
    protecting.selected = selected.map(|policy| policies::name(&policy.name)).collect();
    authentication(&mode(mesh, workload), &mut protecting);
    services(&workload.name.namespace, &protections, &mut protecting);
    protecting
}

/// Denies clients without an identity at the ports where clients must have one.
fn authentication(mode: &Mode, protecting: &mut Protecting) {
    let is_strict = mode.mode == MtlsMode::Strict;
    let others = mode.ports.iter().filter(|(_, mode)| (**mode == MtlsMode::Strict) != is_strict);
    let others: Vec<u16> = others.map(|(port, _)| *port).collect();
    let anonymous = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    let mut clauses = vec![policies::clause(Part::From, anonymous)];
    let name = match (&mode.ports_from, others.is_empty()) {
        (_, true) if !is_strict => return,
        (_, true) | (None, false) => NamespacedName::new(policies::ROOT, STRICT),
        (Some(from), false) => {
            let ports = match is_strict {
                true => Match { not_destination_ports: others, ..Match::default() },
                false => Match { destination_ports: others, ..Match::default() },
            };
            clauses.push(policies::clause(Part::To, ports));
            NamespacedName::new(Arc::clone(&from.namespace), format!("{CONVERTED}{}", from.name))
        }
    };
    protecting.make(policies::made(name, Action::Deny, vec![Rule { clauses, unjudged: Vec::new() }]));
}

/// Limits policies that name services to the ports to which the services lead.
///
/// An ALLOW policy that a workload names would also close all its other ports. So if no other ALLOW policy protects the
/// workload, an additional policy opens those ports.
fn services(namespace: &Arc<str>, protections: &[Protection], protecting: &mut Protecting) {
    let mut closed: Vec<u16> = Vec::new();
    let (mut is_closed, mut is_all_closed) = (false, false);
    for protection in protections {
        let is_allowing = !protection.group.allowing().is_empty();
        if !is_of_services(protection) {
            is_all_closed |= is_allowing;
            continue;
        }
        if is_allowing {
            is_closed = true;
            match &protection.ports {
                Ports::All | Ports::Unclear(_) => is_all_closed = true,
                Ports::These(ports) => closed.extend(ports),
            }
        }
        for policy in protection.group.policies().iter().filter(|policy| policies::decides(policy)) {
            protecting.make(at_ports(policy, &protection.ports));
        }
    }
    if !is_closed || is_all_closed {
        return;
    }
    closed.sort_unstable();
    closed.dedup();
    let name = NamespacedName::new(Arc::clone(namespace), format!("{OTHER_PORTS}{}", suffix(&closed)));
    let others = Match { not_destination_ports: closed, ..Match::default() };
    let rule = Rule { clauses: vec![policies::clause(Part::To, others)], unjudged: Vec::new() };
    protecting.make(policies::made(name, Action::Allow, vec![rule]));
}

fn is_of_services(protection: &Protection) -> bool {
    protection.group.policies().iter().any(|policy| matches!(policy.scope, Scope::Services(_)))
}

/// A policy that names services, limited to ports of a workload. Where some ports cannot be determined, a policy that
/// denies applies to all ports, and a policy that allows applies only to the ports that can be determined.
fn at_ports(policy: &AuthorizationPolicy, ports: &Ports) -> AuthorizationPolicy {
    let (limit, tag): (Option<&[u16]>, &str) = match ports {
        Ports::All => (None, ""),
        Ports::Unclear(_) if policy.action != Action::Allow => (None, ""),
        Ports::Unclear(ports) => (Some(ports), "_clear"),
        Ports::These(ports) => (Some(ports), ""),
    };
    // If no port is known, the policy opens nothing: it stays without rules, so that all its ports are closed.
    let rules = policy.rules.iter().filter(|_| limit != Some(&[])).map(|rule| {
        let mut rule = rule.clone();
        if let Some(ports) = limit {
            let at = Match { destination_ports: ports.to_vec(), ..Match::default() };
            rule.clauses.push(policies::clause(Part::To, at));
        }
        rule
    });
    let name = format!("{OF_SERVICE}{}{tag}{}", policy.name.name, suffix(limit.unwrap_or_default()));
    let name = NamespacedName::new(Arc::clone(&policy.name.namespace), name);
    AuthorizationPolicy { dry_run: policy.dry_run, ..policies::made(name, policy.action, rules.collect()) }
}

/// The suffix by which the names of policies at different ports differ.
fn suffix(ports: &[u16]) -> String {
    /// With more ports than this, the suffix is a digest, so that the name stays short.
    const MOST: usize = 16;
    if ports.len() <= MOST {
        return ports.iter().map(|port| format!("_{port}")).collect();
    }
    let bytes: Vec<u8> = ports.iter().flat_map(|port| port.to_be_bytes()).collect();
    format!("_{}_ports_{:016x}", ports.len(), encode::content(&bytes))
}
