//! Addresses that are requested one by one: those of the pods of this node, and the destinations of connections.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::plane::ControlPlane;
use super::resources::Resources;
use crate::istio::discovery::{ADDRESS, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use crate::istio::workload::{Address, AddressType};
use crate::store::demand::Demand;

/// The requested resources, and the answers.
#[derive(Debug)]
pub(super) struct OnDemand {
    demand: Demand,
    wanted: watch::Receiver<u64>,
    plane: Arc<ControlPlane>,
    /// The requested pods of this node; `None`: they are not known yet.
    own: Option<BTreeSet<String>>,
    /// The pods without an answer.
    unanswered: BTreeSet<String>,
    /// Addresses with an answer that has not been published yet.
    answered: Vec<IpAddr>,
    sweep_at: Instant,
}

impl OnDemand {
    pub(super) fn new(demand: Demand, plane: Arc<ControlPlane>) -> Self {
        let wanted = demand.subscribe();
        let sweep_at = Instant::now() + demand.limits().idle / 10;
        Self { demand, wanted, plane, own: None, unanswered: BTreeSet::new(), answered: Vec::new(), sweep_at }
    }

    /// The resource name for the request of an address.
    fn name(&self, address: IpAddr) -> String {
        format!("{}/{address}", self.plane.network)
    }

    fn address(&self, name: &str) -> Option<IpAddr> {
        name.strip_prefix(&*self.plane.network)?.strip_prefix('/')?.parse().ok()
    }

    /// The resource names for the first request of a stream.
    pub(super) fn all(&mut self) -> Vec<String> {
        let (_gone, _new) = self.follow_own();
        let addresses = self.demand.all();
        let mut names: Vec<String> = addresses.into_iter().map(|address| self.name(address)).collect();
        names.extend(self.own.iter().flatten().cloned());
        names
    }

    /// Updates the pods of this node. Returns the removed pods and the new pods.
    fn follow_own(&mut self) -> (Vec<String>, Vec<String>) {
        let Some(pods) = self.demand.own() else { return (Vec::new(), Vec::new()) };
        let cluster = &self.plane.cluster;
        let now: BTreeSet<String> = pods.iter().map(|pod| format!("{cluster}//Pod/{pod}")).collect();
        let before = self.own.take().unwrap_or_default();
        let gone: Vec<String> = before.difference(&now).cloned().collect();
        let new: Vec<String> = now.difference(&before).cloned().collect();
        self.unanswered.retain(|name| !gone.contains(name));
        self.unanswered.extend(new.iter().cloned());
        self.own = Some(now);
        (gone, new)
    }

    /// Waits until further resources are wanted, or some may not be wanted any more. Dropping the future loses no change.
    pub(super) async fn changed(&mut self) {
        tokio::select! {
            // The demand keeps the sender alive.
            _changed = self.wanted.changed() => {}
            () = sleep_until(self.sweep_at) => {}
        }
    }

    /// The request for the changes, and the names of the forgotten resources.
    pub(super) fn request(&mut self, resources: &mut Resources) -> (Option<DeltaDiscoveryRequest>, Vec<String>) {
        self.wanted.mark_unchanged();
        let (mut unsubscribe, mut subscribe) = self.follow_own();
        subscribe.extend(self.demand.news().into_iter().map(|address| self.name(address)));
        let now = Instant::now();
        self.sweep_at = now + self.demand.limits().idle / 10;
        let swept = self.demand.sweep(now);
        let mut forgotten = Vec::new();
        if !swept.is_empty() || !unsubscribe.is_empty() {
            let own = self.own.clone().unwrap_or_default();
            forgotten = resources.release(&own, &|address| self.demand.wants(address));
            unsubscribe.extend(swept.into_iter().map(|address| self.name(address)));
            unsubscribe.extend(forgotten.iter().cloned());
        }
        let is_due = !subscribe.is_empty() || !unsubscribe.is_empty();
        let request = is_due.then(|| DeltaDiscoveryRequest {
            type_url: ADDRESS.to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..DeltaDiscoveryRequest::default()
        });
        (request, forgotten)
    }

    /// Records the answers in a response. An unreadable resource is no answer.
    pub(super) fn hear(
        &mut self,
        response: &DeltaDiscoveryResponse,
        in_force: &DeltaDiscoveryResponse,
        resources: &Resources,
    ) {
        if response.type_url != ADDRESS {
            return;
        }
        for name in &response.removed_resources {
            self.unanswered.remove(name);
            let address = self.address(name);
            self.answered.extend(address);
        }
        let asked = self.demand.unanswered();
        for resource in in_force.resources.iter().filter(|resource| resources.has_address(&resource.name)) {
            self.unanswered.remove(&resource.name);
            let (addresses, ranges) = self.says(resource);
            let is_meant =
                |address: &&IpAddr| addresses.contains(address) || ranges.iter().any(|range| range.contains(*address));
            self.answered.extend(asked.iter().filter(is_meant));
        }
    }

    /// The addresses and IP blocks of a resource, on this node's network.
    fn says(&self, resource: &Resource) -> (BTreeSet<IpAddr>, Vec<IpNet>) {
        let mut addresses: BTreeSet<IpAddr> = resource.aliases.iter().filter_map(|alias| self.address(alias)).collect();
        let mut ranges = Vec::new();
        let ip = |bytes: &[u8]| match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
            (Ok(v4), _) => Some(IpAddr::from(v4)),
            (_, Ok(v6)) => Some(IpAddr::from(v6).to_canonical()),
            _ => None,
        };
        let content = resource.resource.as_ref().map(|any| any.value.clone()).unwrap_or_default();
        match Address::decode(content).ok().and_then(|address| address.r#type) {
            Some(AddressType::Workload(workload)) if workload.network == *self.plane.network => {
                addresses.extend(workload.addresses.iter().filter_map(|bytes| ip(bytes)));
            }
            Some(AddressType::Service(service)) => {
                for given in service.addresses.iter().filter(|given| given.network == *self.plane.network) {
                    let Some(address) = ip(&given.address) else { continue };
                    let length = given.length.and_then(|length| u8::try_from(length).ok());
                    match length.map(|length| IpNet::new(address, length)) {
                        Some(Ok(range)) => ranges.push(range),
                        None | Some(Err(_)) => drop(addresses.insert(address)),
                    }
                }
            }
            Some(AddressType::Workload(_)) | None => {}
        }
        (addresses, ranges)
    }

    /// Records that the answers are published: connections that wait for them continue.
    pub(super) fn published(&mut self) {
        if !self.answered.is_empty() {
            self.demand.answer(std::mem::take(&mut self.answered));
        }
    }

    /// Whether the pods of this node have an answer. Then a missing pod is not in the mesh.
    pub(super) fn knows_own(&self) -> bool {
        self.own.is_some() && self.unanswered.is_empty()
    }
}
