//! Makes Istio's messages of a mesh: the resources of the objects that a batch of changes concerns, with the content
//! that istiod gives them.
//!
//! A workload's message names the services of which it is an endpoint and the policies that select it. So it changes
//! when they change: [`concerned`] finds the workloads and services whose messages a batch may change. Each of these
//! messages is made again, and the [catalogue](super::catalogue) finds those that are different.
//!
//! PeerAuthentication has no message of its own. As with istiod, a workload whose clients must have an identity names a
//! DENY policy for clients without one. Policies that name services (`targetRefs`) are sent in the same way: each
//! workload behind such a service names a policy that is limited to the ports to which the service leads.
//!
//! A daemon of this project also gets the mesh exactly: details in the messages of workloads and services, and policies
//! as they were written in [`Kind::Object`]. Istio's ztunnel skips the details and does not ask for the objects.

mod concerned;
mod encode;
mod exact;
mod policies;
mod protection;
mod served;
mod services;
mod touched;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

pub use self::touched::Touched;
use self::{concerned::Concerned, protection::Protecting};
use super::catalogue::{Change, Kind};
use crate::{
    istio::{
        discovery,
        object::{authentication_name, authorization_name, hidden_service_name},
        settings,
        write::{self, Writer},
    },
    model::{policy::AuthorizationPolicy, service::Service, workload::NamespacedName},
    store::{change::ServiceKey, snapshot::Snapshot},
};

/// Policies that are made for workloads, by the name of their resource; `None`: a workload no longer names the policy.
type Made = BTreeMap<Arc<str>, Option<AuthorizationPolicy>>;

/// Makes resources of a mesh that changes.
#[derive(Debug)]
pub struct Translator {
    cluster: Arc<str>,
    /// The names of all workloads, by namespace.
    namespaces: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Policies that were made for workloads, by workload.
    made_for: HashMap<NamespacedName, Box<[Arc<str>]>>,
    /// The number of workloads that name a policy that was made.
    made: HashMap<Arc<str>, usize>,
    /// The services with endpoints that are no workloads, by the address of the endpoint. Whether such an endpoint has
    /// a message depends on whether pods have its address.
    outside: HashMap<IpAddr, BTreeSet<ServiceKey>>,
}

impl Translator {
    /// A translator for the mesh of a cluster. It has served nothing yet.
    #[must_use]
    pub fn new(cluster: impl Into<Arc<str>>) -> Self {
        Self {
            cluster: cluster.into(),
            namespaces: HashMap::new(),
            made_for: HashMap::new(),
            made: HashMap::new(),
            outside: HashMap::new(),
        }
    }

    /// The resources that a batch may have changed. Services come first, because a reader accepts a workload as an
    /// endpoint only of services that it knows.
    pub fn translate(&mut self, before: &Snapshot, after: &Snapshot, touched: Touched) -> Vec<Change> {
        let touched = if touched.is_whole { Touched::everything(before, after) } else { touched };
        self.index(after, &touched);
        let mut concerned = Concerned::by(&touched, before, after, &self.namespaces);
        let workloads = touched.workloads.iter().flat_map(|name| [before, after].map(|mesh| mesh.workload(name)));
        let addresses = workloads.flatten().flat_map(|workload| &workload.addresses);
        let naming = addresses.filter_map(|address| self.outside.get(address)).flatten();
        concerned.services.extend(naming.cloned());
        let settings = write::settings(after.is_registry_only(), after.policies().unread());
        let said = encode::resource(settings, Vec::new(), Vec::new());
        let mut changes = vec![Change { kind: Kind::Settings, name: settings::NAME.into(), resource: Some(said) }];
        for name in &touched.authorization {
            let policy = after.policies().authorization_named(name);
            changes.push(policies::change(name, policy.map(|policy| &**policy)));
            let written = policy.map(|policy| write::authorization_object(policy));
            changes.push(object(authorization_name(&name.namespace, &name.name), written));
        }
        for name in &touched.authentication {
            let written =
                after.policies().authentication_named(name).map(|policy| write::authentication_object(policy));
            changes.push(object(authentication_name(&name.namespace, &name.name), written));
        }
        changes.extend(policies::unread(before.policies().unread(), after.policies().unread()));
        for key in &concerned.services {
            self.service(key, before, after, &mut changes);
        }
        let mut made = BTreeMap::new();
        for name in &concerned.workloads {
            self.workload(name, after, &mut changes, &mut made);
        }
        // Another workload may still name a policy that one workload no longer names.
        for (name, policy) in made {
            match policy {
                Some(policy) => changes.push(policies::change(&policy.name, Some(&policy))),
                None if self.made.contains_key(&name) => {}
                None => changes.push(Change { kind: Kind::Authorization, name, resource: None }),
            }
        }
        changes
    }

    /// Updates the names of all workloads.
    fn index(&mut self, after: &Snapshot, touched: &Touched) {
        for name in &touched.workloads {
            let names = self.namespaces.entry(Arc::clone(&name.namespace)).or_default();
            match after.workload(name) {
                Some(_) => drop(names.insert(Arc::clone(&name.name))),
                None => drop(names.remove(&name.name)),
            }
            if names.is_empty() {
                self.namespaces.remove(&name.namespace);
            }
        }
    }

    fn writer(&self) -> Writer<'_> {
        // The default network. A mesh of several networks would need gateways between them.
        Writer { cluster: &self.cluster, network: "" }
    }

    fn workload(&mut self, name: &NamespacedName, after: &Snapshot, changes: &mut Vec<Change>, made: &mut Made) {
        let workload = after.workload(name).filter(|workload| served::workload(workload));
        let protecting = workload.map(|workload| protection::of(workload, after)).unwrap_or_default();
        self.uses(name, &protecting, made);
        let writer = self.writer();
        let resource = workload.map(|workload| workloads::resource(workload, after, protecting.names(), writer));
        changes.push(Change { kind: Kind::Address, name: write::uid(writer.cluster, name).into(), resource });
        made.extend(protecting.made.into_iter().map(|(name, policy)| (name, Some(policy))));
    }

    /// Counts the workloads that name each policy that was made.
    fn uses(&mut self, workload: &NamespacedName, protecting: &Protecting, made: &mut Made) {
        let now: Box<[Arc<str>]> = protecting.made.keys().cloned().collect();
        for name in &now {
            *self.made.entry(Arc::clone(name)).or_default() += 1;
        }
        let before = match now.is_empty() {
            true => self.made_for.remove(workload),
            false => self.made_for.insert(workload.clone(), now),
        };
        for name in before.iter().flatten() {
            if let Some(count) = self.made.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.made.remove(name);
                    made.entry(Arc::clone(name)).or_insert(None);
                }
            }
        }
    }

    /// Updates the addresses of a service's endpoints that are no workloads.
    fn index_outside(&mut self, key: &ServiceKey, was: Option<&Arc<Service>>, is: Option<&Arc<Service>>) {
        for (service, is_in) in [(was, false), (is, true)] {
            let endpoints = service.into_iter().flat_map(|service| service.endpoints.iter());
            for endpoint in endpoints.filter(|endpoint| endpoint.workload.is_none()) {
                let services = self.outside.entry(endpoint.address).or_default();
                if is_in {
                    services.insert(key.clone());
                } else {
                    services.remove(key);
                }
                if services.is_empty() {
                    self.outside.remove(&endpoint.address);
                }
            }
        }
    }

    fn service(&mut self, key: &ServiceKey, before: &Snapshot, after: &Snapshot, changes: &mut Vec<Change>) {
        let [was, is] = [before, after].map(|mesh| mesh.service(key));
        self.index_outside(key, was, is);
        let writer = self.writer();
        let hidden = is.filter(|service| !served::service(service));
        let hidden = hidden.map(|service| write::hidden_service(&services::facts(service, after), writer));
        changes.push(object(hidden_service_name(&key.namespace, &key.hostname), hidden));
        let [was, is] = [was, is].map(|service| service.filter(|service| served::service(service)));
        changes.push(Change {
            kind: Kind::Address,
            name: services::name(key).into(),
            resource: is.map(|service| services::resource(service, after, writer)),
        });
        // The endpoints of the service that are no workloads of the mesh.
        let mut gone = was.map(|service| workloads::outside(service, before, writer)).unwrap_or_default();
        for (uid, resource) in is.map(|service| workloads::outside(service, after, writer)).unwrap_or_default() {
            gone.remove(&uid);
            changes.push(Change { kind: Kind::Address, name: uid, resource: Some(resource) });
        }
        changes.extend(gone.into_keys().map(|name| Change { kind: Kind::Address, name, resource: None }));
    }
}

/// The change of an object for which Istio has no message; `None`: the object does not exist.
fn object(name: String, written: Option<discovery::Resource>) -> Change {
    let resource = written.map(|written| encode::resource(written, Vec::new(), Vec::new()));
    Change { kind: Kind::Object, name: name.into(), resource }
}

#[cfg(test)]
mod tests;
