//! The workloads that have an address.
//!
//! An address belongs to the only pod that claims it. If several pods claim it, it belongs to the only one of them that is not
//! [leaving](Workload::leaving): Kubernetes may give the address of a pod to another pod before it removes the first pod's
//! object. If two such pods are left, the address belongs to no pod.

use std::net::IpAddr;
use std::sync::Arc;

use super::shared::SharedMap;
use crate::model::workload::{NamespacedName, Workload};

/// The workloads by each of their own addresses. A clone shares the unchanged parts.
#[derive(Debug, Clone, Default)]
pub struct Holders(SharedMap<IpAddr, Holder>);

#[derive(Debug, Clone)]
enum Holder {
    One(Arc<Workload>),
    /// At least two workloads: those that are not leaving first, then by name.
    Several(Arc<[Arc<Workload>]>),
}

impl Holders {
    /// All workloads that claim an address: those that are not leaving first, then by name.
    pub fn all(&self, address: IpAddr) -> &[Arc<Workload>] {
        match self.0.get(&address) {
            None => &[],
            Some(Holder::One(workload)) => std::slice::from_ref(workload),
            Some(Holder::Several(workloads)) => workloads,
        }
    }

    /// The workload to which the address belongs, if any.
    pub fn owner(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        match self.0.get(&address)? {
            Holder::One(workload) => Some(workload),
            Holder::Several(workloads) => match equals(workloads) {
                [owner] => Some(owner),
                _ => None,
            },
        }
    }

    /// The pods to which an address may belong, by name, if there are several. Then it belongs to no pod, so that no pod has
    /// the identity of another.
    ///
    /// Services are not considered. The node reports the address of a pod, but the author of a Service or a ServiceEntry may
    /// write any address, and could make the pods of others unreachable.
    pub fn contested(&self, address: IpAddr) -> Option<Vec<NamespacedName>> {
        let claimants = equals(self.all(address));
        (claimants.len() > 1).then(|| claimants.iter().map(|pod| pod.name.clone()).collect())
    }

    /// Replaces a workload by its next state, or removes it. Returns the addresses that it had or has.
    pub fn replace(&mut self, before: Option<&Workload>, after: Option<&Arc<Workload>>) -> Vec<IpAddr> {
        let had = before.map(Workload::own_addresses).unwrap_or_default();
        let has = after.map(|after| after.own_addresses()).unwrap_or_default();
        let gone = had.iter().filter(|address| !has.contains(address));
        let addresses: Vec<IpAddr> = gone.chain(has).copied().collect();
        let Some(name) = before.or(after.map(|after| &**after)).map(|workload| &workload.name) else {
            return addresses;
        };
        for address in &addresses {
            let others = self.all(*address).iter().filter(|other| other.name != *name);
            let now = after.filter(|_| has.contains(address));
            let mut all: Vec<Arc<Workload>> = others.chain(now).cloned().collect();
            all.sort_by(|one, other| (one.leaving, &one.name).cmp(&(other.leaving, &other.name)));
            let holder = match all.as_slice() {
                [] => None,
                [one] => Some(Holder::One(Arc::clone(one))),
                _ => Some(Holder::Several(all.into())),
            };
            self.0.set(*address, holder);
        }
        addresses
    }
}

/// The claimants of an address with the highest precedence.
fn equals(claimants: &[Arc<Workload>]) -> &[Arc<Workload>] {
    match claimants.partition_point(|pod| !pod.leaving) {
        0 => claimants,
        staying => claimants.get(..staying).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
