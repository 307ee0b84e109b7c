//! A mesh that was sent as a control plane's resources decides as the original mesh, for everything that resources can express.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Resources, new, response};
use crate::control::manifests::tests::routing::{MESH, mesh};
use crate::istio::discovery::{ADDRESS, AUTHORIZATION, DeltaDiscoveryResponse, Resource};
use crate::istio::read::{Fronting, ServiceFacts, WorkloadFacts};
use crate::istio::write::{self, Writer};
use crate::model::addr::{OrigDst, PeerAddr};
use crate::model::flow::{Direction, Flow};
use crate::model::local::LocalPod;
use crate::model::workload::{NamespacedName, Workload};
use crate::policy::{Connection, PodPolicies, Principal};
use crate::route::decide;
use crate::store::change::{Batch, ServiceKey};
use crate::store::snapshot::Snapshot;

const WRITER: Writer<'_> = Writer { cluster: "c1", network: "" };

/// Whether a connection is allowed.
pub(super) fn verdict(
    mesh: &Snapshot,
    pod: &str,
    identity: Option<&str>,
    source_ip: &str,
    port: u16,
) -> Result<(), String> {
    let (namespace, name) = pod.split_once('/').unwrap();
    let workload = mesh.workload(&NamespacedName::new(namespace, name)).unwrap();
    let connection = Connection {
        source: identity.map(|identity| Principal::new(identity.parse().unwrap())),
        source_ip: source_ip.parse().unwrap(),
        destination: SocketAddr::new(workload.addresses[0], port),
    };
    let guard = PodPolicies::of(mesh, workload, &LocalPod::default());
    guard.judge(&connection).map(drop).map_err(|denied| denied.told(&connection).to_string())
}

/// A control plane that sends a mesh as resources, and a daemon that reads them.
pub(crate) struct Relay {
    resources: Resources,
    /// The names of the sent resources of each type.
    sent: [BTreeSet<String>; 2],
}

impl Default for Relay {
    fn default() -> Self {
        Self { resources: new(), sent: Default::default() }
    }
}

impl Relay {
    /// The daemon's batch for the change to this mesh.
    pub(crate) fn batch(&mut self, mesh: &Snapshot) -> Batch {
        for response in self.responses(mesh) {
            assert_eq!(self.resources.take(response).answer.error_detail, None);
        }
        assert!(!self.resources.waits());
        self.resources.batch()
    }

    /// The responses of the control plane for the change to this mesh.
    pub(crate) fn responses(&mut self, mesh: &Snapshot) -> [DeltaDiscoveryResponse; 2] {
        let services = mesh
            .services()
            .map(|service| ServiceFacts { service: Arc::clone(service), every_endpoint_ready: false, exactly: None })
            .map(|facts| write::service(&facts, WRITER));
        let workloads = mesh.workloads().filter(|workload| !workload.finished);
        let addresses: Vec<_> =
            workloads.map(|workload| write::workload(&facts(mesh, workload), WRITER)).chain(services).collect();
        let policies: Vec<Resource> =
            mesh.policies().authorization().iter().filter_map(|policy| write::policy(policy)).collect();
        [(AUTHORIZATION, policies, 1), (ADDRESS, addresses, 0)].map(|(type_url, resources, sent)| {
            let names: BTreeSet<String> = resources.iter().map(|resource| resource.name.clone()).collect();
            let before = std::mem::replace(&mut self.sent[sent], names);
            let removed: Vec<&str> = before.difference(&self.sent[sent]).map(String::as_str).collect();
            response(type_url, "n", resources, &removed)
        })
    }
}

fn through(mesh: &Snapshot) -> Snapshot {
    Snapshot::default().apply(Relay::default().batch(mesh))
}

fn facts(mesh: &Snapshot, workload: &Arc<Workload>) -> WorkloadFacts {
    let fronting = mesh.services_of(&workload.name).map(|service| {
        let own = service.endpoints.iter().find(|endpoint| endpoint.workload.as_ref() == Some(&workload.name));
        let ports = own.map(|endpoint| endpoint.ports.iter().collect()).unwrap_or_default();
        Fronting { service: ServiceKey::of(service), ports }
    });
    let protections = mesh.policies().protecting(workload, mesh);
    let selecting = protections.iter().flat_map(|protection| protection.group.policies());
    let selecting = selecting.filter(|policy| matches!(policy.scope, crate::model::policy::Scope::Selector { .. }));
    WorkloadFacts {
        workload: Arc::clone(workload),
        fronting: fronting.collect(),
        weight: 1,
        policies: selecting.map(|policy| policy.name.to_string().into()).collect(),
        exactly: None,
    }
}

/// All possible results for a connection: the first candidates over many random draws, or the refusal.
fn ways(mesh: &Snapshot, pod: &NamespacedName, dst: SocketAddr) -> BTreeSet<String> {
    let own = mesh.workload(pod).and_then(|own| own.addresses.first().copied());
    let source = own.unwrap_or_else(|| "10.0.1.1".parse().unwrap());
    let peer = PeerAddr::new((source, 40_000).into());
    let flow = Flow { direction: Direction::Outbound, peer, dst: OrigDst::new(dst) };
    let draws = (0..64).map(|draw| match decide::outbound(mesh, &flow, pod, draw) {
        Ok(outbound) => format!("{:?} {}", outbound.candidates[0].hop, outbound.candidates[0].target),
        Err(refusal) => refusal.reason.label().to_owned(),
    });
    draws.collect()
}

#[test]
fn connections_go_where_they_went_before() {
    let before = mesh(MESH);
    let after = through(&before);
    let own = before.workloads().flat_map(|workload| workload.addresses.clone());
    let vips = before.services().flat_map(|service| service.vips.clone());
    let destinations: Vec<_> = own.chain(vips).chain(["203.0.113.1".parse().unwrap()]).collect();
    let mut compared = 0;
    for pod in before.workloads().filter(|pod| !pod.host_network) {
        for (address, port) in
            destinations.iter().flat_map(|address| [80, 90, 8080, 9090, 15008].map(|port| (address, port)))
        {
            let dst = SocketAddr::new(*address, port);
            assert_eq!(ways(&before, &pod.name, dst), ways(&after, &pod.name, dst), "{} -> {dst}", pod.name);
            compared += 1;
        }
    }
    assert!(compared > 100, "{compared}");
}

#[test]
fn policies_judge_as_they_did_before() {
    let policies = "
        AuthorizationPolicy istio-system/everywhere | spec: {action: DENY, rules: [{from: [{source: {namespaces: [evil, 'bad*']}}]}]}
        AuthorizationPolicy demo/allow | spec: {rules: [{from: [{source: {principals: ['cluster.local/ns/demo/sa/*']}}, {source: {ipBlocks: [10.1.0.0/16], notIpBlocks: [10.1.1.0/24]}}], to: [{operation: {ports: ['80'], notPorts: ['81']}}]}, {when: [{key: source.principal, values: ['*/sa/admin']}]}]}
        AuthorizationPolicy demo/front | spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}], to: [{operation: {ports: ['90']}}]}]}
        AuthorizationPolicy demo/accounts | spec: {selector: {matchLabels: {app: open}}, rules: [{from: [{source: {serviceAccounts: [demo/client], notServiceAccounts: [demo/web]}}]}]}
        AuthorizationPolicy demo/dry metadata-is-here | spec: {rules: []}
        AuthorizationPolicy plain/none | spec: {}
        AuthorizationPolicy plain/all | spec: {selector: {matchLabels: {app: old}}, rules: [{}]}
        AuthorizationPolicy demo/http | spec: {action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['7']}}]}]}
    "
    .replace("demo/dry metadata-is-here", "demo/dry annotations: {istio.io/dry-run: 'true'}");
    let before = mesh(&format!("{MESH}{policies}"));
    let after = through(&before);
    let identity = |namespace, account| Some(format!("spiffe://cluster.local/ns/{namespace}/sa/{account}"));
    let identities = [
        None,
        identity("demo", "client"),
        identity("demo", "web"),
        identity("evil", "x"),
        identity("badly", "admin"),
        identity("far", "admin"),
    ];
    let (mut allowed, mut denied) = (0, 0);
    for pod in ["demo/web-a", "demo/client", "demo/open", "plain/old"] {
        for identity in &identities {
            for source in ["10.1.0.1", "10.1.1.1", "10.0.1.1"] {
                for port in [7, 80, 81, 90] {
                    let judge = |mesh| verdict(mesh, pod, identity.as_deref(), source, port).is_ok();
                    assert_eq!(judge(&before), judge(&after), "{pod} {identity:?} {source} {port}");
                    if judge(&before) { allowed += 1 } else { denied += 1 }
                }
            }
        }
    }
    assert!(allowed > 20 && denied > 20, "{allowed} {denied}");
}
