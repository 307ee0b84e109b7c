//! Which workloads have which address.
//!
//! An address belongs to the one pod that claims it. Where several pods claim it, it belongs to the one of them that is not
//! [leaving](Workload::leaving): Kubernetes may give the address of a pod to another pod before it removes the first pod's
//! object. Where two pods are left that are equal in this, the address belongs to nobody.

use std::net::IpAddr;
use std::sync::Arc;

use super::shared::SharedMap;
use crate::model::workload::{NamespacedName, Workload};

/// The workloads that have an address of their own, by it. A clone shares what is not changed.
#[derive(Debug, Clone, Default)]
pub struct Holders(SharedMap<IpAddr, Holder>);

#[derive(Debug, Clone)]
enum Holder {
    One(Arc<Workload>),
    /// Those that are not leaving first, then by name; at least two.
    Several(Arc<[Arc<Workload>]>),
}

impl Holders {
    /// All that claim an address: those that are not leaving first, then by name.
    pub fn all(&self, address: IpAddr) -> &[Arc<Workload>] {
        match self.0.get(&address) {
            None => &[],
            Some(Holder::One(workload)) => std::slice::from_ref(workload),
            Some(Holder::Several(workloads)) => workloads,
        }
    }

    /// The one to which the address belongs, if it belongs to one.
    pub fn owner(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        match self.0.get(&address)? {
            Holder::One(workload) => Some(workload),
            Holder::Several(workloads) => match equals(workloads) {
                [owner] => Some(owner),
                _ => None,
            },
        }
    }

    /// The pods to which an address may belong, by name, where there are several: then it belongs to nobody, so that none of
    /// them has the identity of another.
    ///
    /// No service is asked. A pod's address is what its node reports of it; that of a Service or a ServiceEntry is whatever its
    /// author wrote, who could make the pods of others unreachable.
    pub fn contested(&self, address: IpAddr) -> Option<Vec<NamespacedName>> {
        let claimants = equals(self.all(address));
        (claimants.len() > 1).then(|| claimants.iter().map(|pod| pod.name.clone()).collect())
    }

    /// Replaces a workload by its next state, or takes it out. The addresses that it had or has.
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

/// Those of the claimants of an address that nothing puts behind another.
fn equals(claimants: &[Arc<Workload>]) -> &[Arc<Workload>] {
    match claimants.partition_point(|pod| !pod.leaving) {
        0 => claimants,
        staying => claimants.get(..staying).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
