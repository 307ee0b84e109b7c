//! The known resources of a control plane, over all streams: the changes by each response, and the answer to it. This code is
//! pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::join::{Joined, Taken as Changed, View};
use super::plane::ControlPlane;
use super::problems::{first, of_plane, of_resource};
use super::texts::Texts;
use crate::istio::detail::FORMAT;
use crate::istio::discovery::{
    ADDRESS, AUTHORIZATION, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, OBJECT, Resource, SETTINGS,
};
use crate::istio::read::{self, Facts, Flaw, Read, Reader, SettingsFacts};
use crate::istio::security::{Authorization, Scope};
use crate::istio::standard::{Status, Struct};
use crate::model::policy::UnreadPolicies;
use crate::model::problem::{Problem, Severity};

/// The types of requested resources. The required types come first.
pub(super) const TYPES: [&str; 4] = [ADDRESS, AUTHORIZATION, SETTINGS, OBJECT];
/// The number of required types, which every control plane has.
pub(super) const REQUIRED: usize = 2;
const ADDRESSES: usize = 0;
const POLICIES: usize = 1;
const SETTINGS_TYPE: usize = 2;
const OBJECTS: usize = 3;
/// Stands for all resources of a type. A request that subscribes to this and unsubscribes from it leaves only resources
/// requested by name.
const ALL: &str = "*";
/// gRPC's `INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;
/// The number of types without a request that are reported.
const MOST_UNKNOWN: usize = 16;
/// The largest length of the reason of a NACK, in bytes.
const LONGEST_NACK: usize = 4096;

/// All resources.
#[derive(Debug)]
pub(super) struct Resources {
    plane: Arc<ControlPlane>,
    texts: Texts,
    held: [Held; TYPES.len()],
    joined: Joined,
    /// Types that were sent without a request.
    unknown: BTreeSet<String>,
    /// Types whose resources were all removed, without a new one since.
    emptied: BTreeSet<&'static str>,
    /// The settings in force.
    settings: SettingsFacts,
    /// The control plane has answered for objects for which Istio has no message.
    has_objects: bool,
    /// Resources are requested on demand, without details.
    is_on_demand: bool,
}

/// The known resources of one type.
#[derive(Debug, Default)]
struct Held {
    /// The version of each resource in force.
    versions: HashMap<Arc<str>, Box<str>>,
    /// Resources whose last version could not be used.
    bad: BTreeMap<Arc<str>, Bad>,
    /// The parts of resources in force that were left out.
    remarks: BTreeMap<Arc<str>, Vec<String>>,
}

#[derive(Debug)]
struct Bad {
    flaw: Flaw,
    /// The pods that the resource may protect, if it is a policy.
    reach: Reach,
}

/// The pods that an unusable policy may protect.
#[derive(Debug, PartialEq, Eq)]
enum Reach {
    /// The resource is no policy, or a policy that workloads name.
    Named,
    /// The pods of a namespace.
    Namespace(Arc<str>),
    /// Any pod.
    Anywhere,
}

/// The result of a response.
pub(super) struct Taken {
    /// The answer: an ACK, or a NACK with all reasons.
    pub(super) answer: DeltaDiscoveryRequest,
    /// The index of its type in [`TYPES`].
    pub(super) kind: Option<usize>,
    /// The part to be kept: resources in force, and resources that were never readable. An unreadable resource with an earlier
    /// state is left out.
    pub(super) in_force: DeltaDiscoveryResponse,
}

impl Resources {
    pub(super) fn new(plane: Arc<ControlPlane>) -> Self {
        Self {
            plane,
            texts: Texts::default(),
            held: Default::default(),
            joined: Joined::default(),
            unknown: BTreeSet::new(),
            emptied: BTreeSet::new(),
            settings: SettingsFacts::default(),
            has_objects: false,
            is_on_demand: false,
        }
    }

    /// Requests only wanted resources.
    pub(super) fn on_demand(self) -> Self {
        Self { is_on_demand: true, ..self }
    }

    /// The first requests of a stream: for all resources, with the known versions. Settings come first, so that a control plane
    /// that has settings sends them before the mesh.
    ///
    /// On demand, addresses are requested by these names. Details of policies are not requested, because they mention services
    /// that this node may not know.
    pub(super) fn first_requests(&self, on_demand: Option<Vec<String>>) -> Vec<DeltaDiscoveryRequest> {
        let request = |(type_url, held): (&str, &Held)| DeltaDiscoveryRequest {
            node: Some(node(&self.plane)),
            type_url: type_url.to_owned(),
            initial_resource_versions: held
                .versions
                .iter()
                .map(|(name, version)| (name.to_string(), version.to_string()))
                .collect(),
            ..DeltaDiscoveryRequest::default()
        };
        let mut requests: Vec<_> = TYPES.into_iter().zip(&self.held).map(request).collect();
        if let (Some(names), Some(addresses)) = (on_demand, requests.get_mut(ADDRESSES)) {
            let star = || vec![ALL.to_owned()];
            (addresses.resource_names_subscribe, addresses.resource_names_unsubscribe) = (star(), star());
            for name in names {
                addresses.initial_resource_versions.entry(name).or_default();
            }
            requests.truncate(OBJECTS);
        }
        requests.rotate_left(REQUIRED);
        requests
    }

    /// Processes a response: usable resources are in force, and the others are refused by name.
    pub(super) fn take(&mut self, response: DeltaDiscoveryResponse) -> Taken {
        let DeltaDiscoveryResponse { resources, type_url, nonce, removed_resources, .. } = response;
        let answer = DeltaDiscoveryRequest { type_url: type_url.clone(), response_nonce: nonce, ..Default::default() };
        let in_force = DeltaDiscoveryResponse { type_url: type_url.clone(), ..Default::default() };
        let Some(kind) = TYPES.iter().position(|known| *known == type_url) else {
            // The type was not requested. It is not refused, because the control plane would send it again.
            if self.unknown.len() < MOST_UNKNOWN {
                self.unknown.insert(type_url.chars().take(256).collect());
            }
            return Taken { answer, kind: None, in_force };
        };
        let (mut taken, mut reasons) = (Taken { answer, kind: Some(kind), in_force }, Vec::new());
        for resource in resources {
            match self.put(kind, &resource) {
                Ok(()) => taken.in_force.resources.push(resource),
                Err(flaw) => {
                    reasons.push((resource.name.clone(), flaw));
                    // It is kept, so that a daemon that starts later also closes the pods that this resource may protect.
                    if !self.is_known(kind, &resource.name) {
                        taken.in_force.resources.push(resource);
                    }
                }
            }
        }
        self.remove(kind, &removed_resources);
        self.has_objects |= kind == OBJECTS;
        taken.in_force.removed_resources = removed_resources;
        taken.answer.error_detail = nack(&reasons);
        taken
    }

    /// Whether a version of a resource is in force.
    fn is_known(&self, kind: usize, name: &str) -> bool {
        self.held.get(kind).is_some_and(|held| held.versions.contains_key(name))
    }

    fn put(&mut self, kind: usize, resource: &Resource) -> Result<(), Flaw> {
        let name = self.texts.text(&resource.name);
        let Self { plane, texts, held, joined, settings, .. } = self;
        let Some(held) = held.get_mut(kind) else { return Ok(()) };
        let mut text = |value: &str| texts.text(value);
        let mut reader = Reader { cluster: &plane.cluster, network: &plane.network, texts: &mut text };
        let read = match kind {
            ADDRESSES => read::address(resource, &mut reader).map(|Read { value, remarks }| {
                match value {
                    Facts::Workload(facts) => joined.put_workload(&name, facts),
                    Facts::Service(facts) => joined.put_service(facts),
                }
                remarks
            }),
            POLICIES => read::policy(resource, &mut reader).map(|Read { value, remarks }| {
                joined.put_policy(&name, value);
                remarks
            }),
            SETTINGS_TYPE => read::settings(resource).map(|Read { value, remarks }| {
                joined.put_registry_only(value.registry_only);
                *settings = value;
                remarks
            }),
            _ => read::object(resource, &mut reader).map(|Read { value, remarks }| {
                joined.put_object(&name, value);
                remarks
            }),
        };
        match read {
            Ok(remarks) => {
                held.bad.remove(&name);
                match remarks.is_empty() {
                    true => held.remarks.remove(&name),
                    false => held.remarks.insert(Arc::clone(&name), remarks),
                };
                held.versions.insert(name, resource.version.as_str().into());
                if let Some(type_url) = TYPES.get(kind) {
                    self.emptied.remove(type_url);
                }
                Ok(())
            }
            Err(flaw) => {
                let reach = if kind == POLICIES { reach(resource) } else { Reach::Named };
                // If settings were never readable, the strictest value is used.
                if kind == SETTINGS_TYPE && held.versions.is_empty() {
                    joined.put_registry_only(true);
                }
                held.bad.insert(name, Bad { flaw: flaw.clone(), reach });
                Err(flaw)
            }
        }
    }

    fn remove(&mut self, kind: usize, names: &[String]) {
        let Some(held) = self.held.get_mut(kind) else { return };
        // The removal of a single last resource of a type is not unusual.
        let had_several = held.versions.len() > 1;
        for name in names {
            held.versions.remove(name.as_str());
            held.bad.remove(name.as_str());
            held.remarks.remove(name.as_str());
            match kind {
                ADDRESSES => drop(self.joined.remove_address(name)),
                POLICIES => drop(self.joined.remove_policy(name)),
                OBJECTS => self.joined.remove_object(name),
                _ => {}
            }
        }
        if kind == SETTINGS_TYPE && held.versions.is_empty() {
            self.joined.put_registry_only(!held.bad.is_empty());
            self.settings = SettingsFacts::default();
        }
        if had_several && held.versions.is_empty() {
            self.emptied.extend(TYPES.get(kind));
        }
    }

    /// The description of the mesh to use: the exact one, if the control plane announces details in a format that this version
    /// knows, and all details are present and readable.
    fn view(&self) -> View {
        let [_, _, _, objects] = &self.held;
        self.joined.view(self.settings.detail == FORMAT && self.has_objects && objects.bad.is_empty())
    }

    /// Whether a workload or a service of this name is in force.
    pub(super) fn has_address(&self, name: &str) -> bool {
        self.is_known(ADDRESSES, name)
    }

    /// Forgets workloads and services whose addresses are not wanted and that are not behind a wanted service. Returns their
    /// names.
    pub(super) fn release(&mut self, own: &BTreeSet<String>, wants: &dyn Fn(IpAddr) -> bool) -> Vec<String> {
        let names = self.joined.unwanted(own, wants);
        let [addresses, ..] = &mut self.held;
        for name in &names {
            addresses.versions.remove(name.as_str());
            addresses.remarks.remove(name.as_str());
            self.joined.remove_address(name);
        }
        names
    }

    /// Whether to wait for a policy that a workload names, which comes in a separate response.
    pub(super) fn waits(&self) -> bool {
        self.joined.waits(self.view())
    }

    /// The changes since the last call.
    pub(super) fn changes(&mut self) -> Changed {
        self.joined.take(self.view())
    }

    /// Whether there is a workload or a service that was never readable.
    pub(super) fn has_unread(&self) -> bool {
        let [addresses, ..] = &self.held;
        addresses.bad.keys().any(|name| !addresses.versions.contains_key(name))
    }

    /// The policies that were never readable.
    pub(super) fn unread_policies(&self) -> UnreadPolicies {
        if self.view() == View::Exact {
            return self.settings.unread.clone();
        }
        let [_, policies, ..] = &self.held;
        let mut unread = UnreadPolicies::default();
        for (name, bad) in policies.bad.iter().filter(|(name, _)| !policies.versions.contains_key(*name)) {
            let source: Arc<str> = format!("the resource {name} of the control plane").into();
            match &bad.reach {
                Reach::Named => {}
                Reach::Namespace(namespace) => drop(unread.namespaces.entry(Arc::clone(namespace)).or_insert(source)),
                Reach::Anywhere => drop(unread.anywhere.get_or_insert(source)),
            }
        }
        unread
    }

    /// The number of workloads and services, and the number of policies.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.joined.addresses(), self.joined.policies())
    }

    /// Whether some resource was refused and has no earlier state.
    pub(super) fn has_refused(&self) -> bool {
        self.held.iter().any(|held| held.bad.keys().any(|name| !held.versions.contains_key(name)))
    }

    /// All problems of the resources.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let plane = self.plane.url.to_string();
        let mut problems = Vec::new();
        for (type_url, held) in TYPES.into_iter().zip(&self.held) {
            let bad = held.bad.iter().map(|(name, bad)| {
                let consequence = match held.versions.contains_key(name) {
                    true => "the last good state of the resource stays in force",
                    false => {
                        "it has never been readable, so connections that it may forbid are refused; \
                         correct it in the control plane"
                    }
                };
                of_resource(name, type_url, format!("{}; {consequence}", bad.flaw), Severity::Error)
            });
            problems.extend(first(&plane, "resources that cannot be used", bad));
            let remarks: Vec<_> =
                held.remarks.iter().flat_map(|(name, list)| list.iter().map(move |text| (name, text))).collect();
            let remarks =
                remarks.into_iter().map(|(name, text)| of_resource(name, type_url, text.clone(), Severity::Warning));
            problems.extend(first(&plane, "remarks", remarks));
        }
        let missing = self.joined.missing().filter(|_| self.view() == View::Istio).map(|name| {
            let message = "a workload names this policy, and the control plane has not sent it: until it does, the workloads that \
                           name it accept only health probes";
            of_resource(name, AUTHORIZATION, message.to_owned(), Severity::Error)
        });
        let missing: Vec<Problem> = missing.collect();
        problems.extend(first(&plane, "missing policies", missing.into_iter()));
        problems.extend(self.without_details().map(|why| of_plane(&plane, why, Severity::Warning)));
        for (waypoint, count) in self.joined.waypoints() {
            let message = format!(
                "{count} workloads and services have the waypoint {waypoint}; this version does not support \
                 waypoints, so captured connections to these workloads and services are refused; remove the \
                 label istio.io/use-waypoint to connect without the waypoint"
            );
            problems.push(of_plane(&plane, message, Severity::Warning));
        }
        for type_url in &self.unknown {
            let message = format!(
                "it sends resources of the type {type_url}, which the daemon has not requested; they \
                     are ignored"
            );
            problems.push(of_plane(&plane, message, Severity::Warning));
        }
        for type_url in &self.emptied {
            let message = format!("it has removed all resources of the type {type_url}, so the mesh has none of them");
            problems.push(of_plane(&plane, message, Severity::Warning));
        }
        problems
    }

    /// Why the details of the control plane are not used. `None`: they are used, or there are none.
    fn without_details(&self) -> Option<String> {
        let [_, _, _, objects] = &self.held;
        let why = match (self.settings.detail, objects.bad.len(), self.joined.lacking()) {
            (0, ..) => return None,
            _ if self.is_on_demand => return None,
            (format, ..) if format != FORMAT => {
                format!(
                    "the details have format {format}, and this version knows format {FORMAT}: run the same \
                     version everywhere"
                )
            }
            _ if !self.has_objects => "the details of policies have not been received yet".to_owned(),
            (_, 0, 0) => return None,
            (_, bad, lacking) => format!(
                "{bad} objects and {lacking} workloads and services have none that this version can read: run the same version \
                 everywhere"
            ),
        };
        Some(format!(
            "details of the control plane are not used: {why}; until then policies decide the same, but reasons of refusals name \
             other policies than those that were written, and AUDIT policies are not evaluated"
        ))
    }

    /// The types whose resources were all removed.
    pub(super) fn emptied(&self) -> &BTreeSet<&'static str> {
        &self.emptied
    }
}

/// The node identifier in the format of Istio's ztunnel. Its address is a placeholder, because the daemon of a node has no
/// single address.
fn node(plane: &ControlPlane) -> Node {
    const ADDRESS_UNKNOWN: &str = "1.1.1.1";
    const NAMESPACE: &str = "istio-system";
    let (name, node) = (format!("ztunnel-{}", plane.node), &plane.node);
    let metadata = [
        ("NAME", name.as_str()),
        ("NAMESPACE", NAMESPACE),
        ("INSTANCE_IPS", ADDRESS_UNKNOWN),
        ("NODE_NAME", node),
        ("CLUSTER_ID", &plane.cluster),
        ("NETWORK", &plane.network),
    ];
    Node {
        id: format!("ztunnel~{ADDRESS_UNKNOWN}~{name}.{NAMESPACE}~{NAMESPACE}.svc.cluster.local"),
        metadata: Some(Struct::of_strings(metadata)),
    }
}

/// The pods that an unusable policy may protect, as far as the policy can be decoded.
fn reach(resource: &Resource) -> Reach {
    let content = resource.resource.as_ref().map(|any| any.value.clone()).unwrap_or_default();
    let Ok(message) = <Authorization as prost::Message>::decode(content) else { return Reach::Anywhere };
    match Scope::try_from(message.scope) {
        Ok(Scope::Namespace) => Reach::Namespace(message.namespace.into()),
        Ok(Scope::WorkloadSelector) => Reach::Named,
        Ok(Scope::Global) | Err(_) => Reach::Anywhere,
    }
}

fn nack(reasons: &[(String, Flaw)]) -> Option<Status> {
    if reasons.is_empty() {
        return None;
    }
    let mut message = String::new();
    for (number, (name, flaw)) in reasons.iter().enumerate() {
        if message.len() > LONGEST_NACK {
            message += &format!("; and {} more", reasons.len() - number);
            break;
        }
        let name: String = name.chars().take(256).collect();
        message += &format!("{}{name}: {flaw}", if number == 0 { "" } else { "; " });
    }
    Some(Status { code: INVALID_ARGUMENT, message })
}
