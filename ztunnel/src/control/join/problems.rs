//! Problems of objects that are found only when objects are joined.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::budget::Excess;
use super::policies::{authentication, targets};
use super::table::{Provenance, Table};
use super::{Joiner, Key, Subject};
use crate::control::objects::{ENTRIES_LEAD, EntryManifest, External, ServiceManifest, title, visibility};
use crate::model::labels::Labels;
use crate::model::policy::{PeerAuthentication, Scope};
use crate::model::problem::{Problem, Severity};
use crate::model::service::Addressing;
use crate::model::workload::{Membership, NamespacedName};
use crate::store::change::ServiceKey;

/// The most node ports of a Service that are listed.
const MOST_PORTS: usize = 8;
const AUTHORIZATION: &str = "AuthorizationPolicy";
const AUTHENTICATION: &str = "PeerAuthentication";

impl Joiner {
    /// Examines again what is marked. Returns whether [`Joiner::problems`] has changed.
    pub(super) fn find_problems(&mut self) -> bool {
        let mut changed = std::mem::take(&mut self.dirty.problems);
        for subject in std::mem::take(&mut self.dirty.subjects) {
            let found = match &subject {
                Subject::Duplicates(key) => self.duplicates(key),
                Subject::Budget(namespace) => self.of_budget(namespace).into_iter().collect(),
                Subject::Contested => self.of_contested(),
                Subject::Service(name) => self.of_service(name),
                Subject::Slice(name) => self.of_slice(name).into_iter().collect(),
                Subject::Endpoints(name) => self.of_endpoints(name).into_iter().collect(),
                Subject::WorkloadEntry(name) => self.of_workload_entry(name).into_iter().collect(),
                Subject::Unenforced(kind, namespace) => self.unenforced.problem(*kind, namespace).into_iter().collect(),
                Subject::Entry(name) => self.of_entry(name),
                Subject::Authorization(name) => self.of_authorization(name),
                Subject::Authentication => self.of_authentication(),
                Subject::Settings => self.of_settings(),
            };
            let before = match found.is_empty() {
                true => self.problems.remove(&subject),
                false => self.problems.insert(subject.clone(), found),
            };
            changed |= before.as_ref() != self.problems.get(&subject);
        }
        changed
    }

    pub(super) fn has_others(&self, key: &Key) -> bool {
        self.first_and_others(key).is_some_and(|(_, others)| !others.is_empty())
    }

    fn first_and_others(&self, (kind, name): &Key) -> Option<(&Provenance, Vec<&Provenance>)> {
        fn of<'t, T: Clone + PartialEq>(
            table: &'t Table<T>,
            name: &NamespacedName,
        ) -> Option<(&'t Provenance, Vec<&'t Provenance>)> {
            let others = table.others(name).iter().map(|said| &said.place);
            Some((&table.get(name)?.place, others.collect()))
        }
        match *kind {
            "Namespace" => of(&self.namespaces, name),
            "Node" => of(&self.nodes, name),
            "Pod" => of(&self.pods, name),
            "Service" => of(&self.services, name),
            "EndpointSlice" => of(&self.slices, name),
            "ServiceEntry" => of(&self.entries, name),
            "ConfigMap" => of(&self.settings, name),
            AUTHORIZATION => of(&self.authorization, name),
            AUTHENTICATION => of(&self.authentication, name),
            "Endpoints" => of(&self.endpoints, name),
            "WorkloadEntry" => of(&self.workload_entries, name),
            // Objects of kinds that are not enforced may exist any number of times.
            _ => None,
        }
    }

    fn duplicates(&self, key: &Key) -> Vec<Problem> {
        let Some((first, others)) = self.first_and_others(key) else { return Vec::new() };
        let message = format!("is already in {}, which is in force: remove one of the two", first.origin);
        others.iter().map(|place| place.problem(title(key.0, &key.1), message.clone())).collect()
    }

    fn of_budget(&self, namespace: &Arc<str>) -> Option<Problem> {
        let (first, Excess { total, services }) = self.budget.excess(namespace)?;
        let service = super::services::named_by(first).filter(|name| self.services.get(name).is_some());
        let (kind, name) = match service {
            Some(name) => ("Service", name),
            None => ("ServiceEntry", self.hosts.get(first)?.first()?.clone()),
        };
        let place = match kind {
            "Service" => &self.services.get(&name)?.place,
            _ => &self.entries.get(&name)?.place,
        };
        let message = format!(
            "the services of namespace {namespace} cost {total} units of memory (one for each address and endpoint, and for \
             long lists), of which a namespace may have {}: {services} services, beginning with {}, have no effect: \
             select fewer pods, or write fewer hosts, addresses, ports and identities",
            self.budget.most(),
            first.hostname
        );
        Some(place.problem(title(kind, &name), message))
    }

    fn of_contested(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (address, claimants) in &self.contested {
            for claimant in claimants {
                let place = self.pods.get(claimant).map(|said| &said.place);
                let Some(other) = claimants.iter().find(|other| *other != claimant) else { continue };
                let more = match claimants.len() {
                    2 => String::new(),
                    all => format!(" and {} more", all - 2),
                };
                let message = format!(
                    "{address} is also claimed by Pod {other}{more}: until only one of them claims it, the address \
                     belongs to no pod"
                );
                problems.extend(place.map(|place| place.problem(title("Pod", claimant), message)));
            }
        }
        problems
    }

    fn of_service(&self, name: &NamespacedName) -> Vec<Problem> {
        let Some(service) = self.services.get(name) else { return Vec::new() };
        let is_other = |other: &&NamespacedName| other.namespace != name.namespace;
        // They are ordered by namespace.
        let other = |all: &BTreeSet<NamespacedName>| {
            let mut ends = [all.first(), all.last()].into_iter().flatten();
            ends.find(is_other).cloned()
        };
        let taken = |address: &IpAddr| match self.holders.all(*address).first() {
            _ if self.on_nodes.contains_key(address) => {
                Some(format!("{address} is an address of a node, which takes precedence"))
            }
            Some(pod) => Some(format!("{address} is the address of Pod {}, which takes precedence", pod.name)),
            None => self.vips.get(address).and_then(other).map(|other| {
                format!(
                    "{address} is also the address of Service {other}: pods of other namespaces than these two cannot \
                         connect to it; give each Service an address of its own"
                )
            }),
        };
        let told = service
            .body
            .vips
            .iter()
            .filter_map(taken)
            .map(|message| service.place.problem(title("Service", name), format!("spec.clusterIPs: {message}")));
        let outside = self.led_from_outside(name, &service.body).into_iter().map(|message| Problem {
            severity: Severity::Info,
            ..service.place.problem(title("Service", name), message)
        });
        told.chain(outside).collect()
    }

    /// The external ways to the service's pods of the mesh, which do not go through the mesh.
    fn led_from_outside(&self, name: &NamespacedName, service: &ServiceManifest) -> Vec<String> {
        let joined = self.services_joined.get(&super::services::key_of(name));
        let endpoints = joined.into_iter().flat_map(|service| service.endpoints.iter());
        let is_in_mesh = |pod: &NamespacedName| {
            self.pods_joined.get(pod).is_some_and(|pod| pod.workload.membership == Membership::InMesh)
        };
        if !endpoints.filter_map(|endpoint| endpoint.workload.as_ref()).any(is_in_mesh) {
            return Vec::new();
        }
        let mut told = Vec::new();
        if service.addressing == Addressing::Unknown {
            told.push(
                "spec.clusterIP is missing: connections to the address that the cluster chooses are left to the node, in \
                 plaintext: take the manifest from the cluster; for a headless service, write clusterIP: None"
                    .to_owned(),
            );
        }
        if !service.node_ports.is_empty() {
            let ports = service.node_ports.iter().take(MOST_PORTS).map(ToString::to_string).collect::<Vec<_>>();
            let more = match service.node_ports.len().saturating_sub(MOST_PORTS) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            told.push(format!(
                "spec.ports: connections to an address of a node, nodePort {}{more}, are left to the node, in \
                 plaintext: let pods of the mesh connect to the address of the service",
                ports.join(", ")
            ));
        }
        for External { address, is_balancer } in &service.external {
            let field = if *is_balancer { "status.loadBalancer.ingress" } else { "spec.externalIPs" };
            let owner = || match (self.holders.all(*address).first(), self.vips.get(address).and_then(BTreeSet::first))
            {
                _ if self.on_nodes.contains_key(address) => Some("an address of a node".to_owned()),
                (Some(pod), _) => Some(format!("the address of Pod {}", pod.name)),
                (None, Some(other)) if other != name => Some(format!("the address of Service {other}")),
                (None, _) => None,
            };
            if let Some(owner) = owner() {
                told.push(format!("{field}: {address} is {owner}: it does not lead to the service through the mesh"));
            } else if !is_balancer && name.namespace != self.root_namespace() {
                told.push(format!(
                    "{field}: {address} leads only pods of namespace {} through the mesh, since any address may be written \
                     there; connections of other pods are left to the node, in plaintext",
                    name.namespace
                ));
            }
        }
        told
    }

    fn of_endpoints(&self, name: &NamespacedName) -> Option<Problem> {
        let endpoints = self.endpoints.get(name).filter(|endpoints| !endpoints.body.subsets.is_empty())?;
        if self.services.get(name).is_some() {
            return None;
        }
        let message = format!("there is no Service {name}: the endpoints are ignored");
        let problem = endpoints.place.problem(title("Endpoints", name), message);
        Some(Problem { severity: Severity::Warning, ..problem })
    }

    fn of_workload_entry(&self, name: &NamespacedName) -> Option<Problem> {
        let entry = self.workload_entries.get(name)?;
        let pod = self.pods.get(name)?;
        let message = format!("a Pod has the same name, in {}: the entry is ignored; rename it", pod.place.origin);
        Some(entry.place.problem(title("WorkloadEntry", name), message))
    }

    fn of_slice(&self, name: &NamespacedName) -> Option<Problem> {
        let slice = self.slices.get(name).filter(|slice| self.services.get(&slice.body.service).is_none())?;
        let message = format!("there is no Service {}: the slice is ignored", slice.body.service);
        Some(slice.place.problem(title("EndpointSlice", name), message))
    }

    /// Reports a host name that another service of the namespace has, and an address that a pod has.
    fn of_entry(&self, name: &NamespacedName) -> Vec<Problem> {
        let Some(entry) = self.entries.get(name) else { return Vec::new() };
        let mut problems = Vec::new();
        for host in &entry.body.hosts {
            let key = ServiceKey { namespace: Arc::clone(&name.namespace), hostname: Arc::clone(host) };
            // A service that exceeds the budget is reported once for the namespace.
            if self.budget.is_over(&key) {
                continue;
            }
            if self.services_joined.get(&key).is_some_and(|service| service.name == *name && service.hostname == *host)
            {
                continue;
            }
            let message = format!(
                "spec.hosts: {host} belongs to another service of namespace {}; it is ignored here",
                name.namespace
            );
            problems.push(entry.place.problem(title("ServiceEntry", name), message));
        }
        let taken = |address: &IpAddr| Some((*address, self.holders.all(*address).first()?));
        for (address, pod) in entry.body.vips.iter().filter_map(taken) {
            let message =
                format!("spec.addresses: {address} is the address of Pod {}, which takes precedence", pod.name);
            problems.push(entry.place.problem(title("ServiceEntry", name), message));
        }
        let has_addresses = !(entry.body.vips.is_empty() && entry.body.ranges.is_empty());
        if has_addresses && !entry.body.hosts.is_empty() && self.is_kept_in(name, &entry.body) {
            let message = format!(
                "spec.exportTo: the entry has endpoints, and so it leads only pods of namespace {}: move it to the root \
                 namespace {}, or set the annotation {ENTRIES_LEAD}: exported of the mesh's ConfigMap",
                name.namespace,
                self.root_namespace()
            );
            problems.push(Problem {
                severity: Severity::Warning,
                ..entry.place.problem(title("ServiceEntry", name), message)
            });
        }
        problems.extend(self.overlap(name, &entry.body).map(|message| Problem {
            severity: Severity::Warning,
            ..entry.place.problem(title("ServiceEntry", name), message)
        }));
        problems
    }

    /// The first address that an entry shares with another service of its namespace, or of the root namespace.
    fn overlap(&self, name: &NamespacedName, entry: &EntryManifest) -> Option<String> {
        let root = self.root_namespace();
        let in_namespace = |names: &BTreeSet<NamespacedName>, namespace: &Arc<str>| {
            let from = NamespacedName::new(Arc::clone(namespace), "");
            let others = names.range(from..).take_while(|other| other.namespace == *namespace);
            others.filter(|other| *other != name).map(NamespacedName::clone).next()
        };
        entry.vips.iter().find_map(|vip| {
            if let Some(service) = self.vips.get(vip).and_then(BTreeSet::first) {
                return Some(format!(
                    "spec.addresses: {vip} is the address of Service {service}, which takes precedence"
                ));
            }
            let names = self.entry_vips.get(vip)?;
            let other = [&name.namespace, &root].into_iter().find_map(|namespace| in_namespace(names, namespace))?;
            Some(format!(
                "spec.addresses: {vip} is also an address of ServiceEntry {other}: the entry that has the port takes \
                 precedence, then the entry of the client's namespace, then the first by name"
            ))
        })
    }

    fn of_settings(&self) -> Vec<Problem> {
        let Some((name, settings)) = self.settings() else { return Vec::new() };
        let (place, settings, title) = (&settings.place, &settings.body, title("ConfigMap", name));
        let mut problems = Vec::new();
        if let Some(named) = settings.trust_domain.as_ref().filter(|named| **named != self.trust_domain) {
            let message = format!(
                "data.mesh.trustDomain: {named} differs from the trust domain of this daemon, {}, which is used: \
                 correct it here or with --trust-domain",
                self.trust_domain
            );
            problems.push(place.problem(title.clone(), message));
        }
        if let Some(alias) = settings.trust_domain_aliases.first() {
            let message = format!(
                "data.mesh.trustDomainAliases: {alias:?} has no effect: principals are compared as they are; name each \
                 trust domain in policies, or write \"*/ns/NAMESPACE/sa/NAME\""
            );
            problems.push(place.problem(title.clone(), message));
        }
        if settings.entries_lead_everyone {
            let message = format!(
                "metadata.annotations.{ENTRIES_LEAD}: exported: every user who may write a ServiceEntry in any \
                 namespace can direct the traffic of all pods to any address outside of the cluster"
            );
            problems.push(Problem { severity: Severity::Warning, ..place.problem(title.clone(), message) });
        }
        let (_, wrong) = visibility(settings.export_to.iter().map(String::as_str), &name.namespace);
        for message in wrong {
            problems.push(place.problem(title.clone(), format!("data.mesh.defaultServiceExportTo: {message}")));
        }
        problems
    }

    fn of_authorization(&self, name: &NamespacedName) -> Vec<Problem> {
        let Some(policy) = self.authorization.get(name) else { return Vec::new() };
        let mut problems = Vec::new();
        let mut wrong = |message: String| problems.push(policy.place.problem(title(AUTHORIZATION, name), message));
        for service in targets(&policy.body) {
            match self.services.get(service) {
                None => {
                    wrong(format!("spec.targetRefs: there is no Service {service}: this target matches no pod"));
                }
                // An ExternalName service, or a service whose slices are not there.
                Some(known)
                    if known.body.selector.is_empty()
                        && !self.slices_of.contains_key(service)
                        && self.endpoints.get(service).is_none() =>
                {
                    wrong(format!(
                        "spec.targetRefs: Service {service} has no selector, and no EndpointSlice names it: this \
                         target matches no pod"
                    ));
                }
                Some(_) => {}
            }
        }
        problems
    }

    /// Reports policies and fields without effect: by themselves, and policies for the same workloads as another that
    /// is in force.
    fn of_authentication(&self) -> Vec<Problem> {
        let root_namespace = self.root_namespace();
        let mut problems = Vec::new();
        let mut policies = Vec::new();
        for (name, said) in self.authentication.iter() {
            let mut wrong = |message: String| problems.push(said.place.problem(title(AUTHENTICATION, name), message));
            let Some(policy) = authentication(name, &said.place, &said.body, &root_namespace) else {
                wrong(format!(
                    "spec.selector: {root_namespace} is the root namespace, in which a policy with a selector has no \
                     effect: move it to the namespace of the workloads"
                ));
                continue;
            };
            if !matches!(policy.scope, Scope::Selector { .. }) && !said.body.ports.is_empty() {
                wrong("spec.portLevelMtls: it has an effect only with a selector: write one".to_owned());
            }
            policies.push(policy);
        }
        let mut first: BTreeMap<_, &PeerAuthentication> = BTreeMap::new();
        let rank = |policy: &PeerAuthentication| (policy.created, policy.name.clone());
        for policy in &policies {
            let counts = first.entry(level(&policy.scope)).or_insert(policy);
            if rank(policy) < rank(counts) {
                *counts = policy;
            }
        }
        for policy in &policies {
            let counts = first.get(&level(&policy.scope)).filter(|first| first.name != policy.name);
            let Some(counts) = counts else { continue };
            let why = if policy.created == counts.created { "comes first by name" } else { "is older" };
            let message = format!(
                "has no effect: {AUTHENTICATION} {} is for the same workloads and {why}: remove one of the two",
                counts.name
            );
            let (origin, object) = (policy.origin.clone(), Some(title(AUTHENTICATION, &policy.name)));
            problems.push(Problem { origin, object, message, severity: Severity::Error });
        }
        problems
    }
}

type Level<'a> = (Option<&'a Arc<str>>, Option<&'a Labels>);

fn level(scope: &Scope) -> Level<'_> {
    match scope {
        Scope::Mesh | Scope::Services(_) => (None, None),
        Scope::Namespace(namespace) => (Some(namespace), None),
        Scope::Selector { namespace, labels } => (namespace.as_ref(), Some(labels)),
    }
}
