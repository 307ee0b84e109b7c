//! The workloads that have an address.
//!
//! An address belongs to the only pod that claims it. If several pods claim it, it belongs to the only one of them that is not
//! [leaving](Workload::leaving): Kubernetes may give the address of a pod to another pod before it removes the first pod's
//! object. If two such pods are left, the address belongs to no pod.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::effort;
use super::shared::SharedMap;
use crate::model::workload::{NamespacedName, Workload};

/// The workloads by each of their own addresses. A clone shares the unchanged parts.
#[derive(Debug, Clone, Default)]
pub struct Holders {
    holders: SharedMap<IpAddr, Holder>,
    /// The changes since the lists were made, in order.
    noted: Vec<Noted>,
}

/// The next state of a workload at an address. `None`: it does not have the address any more.
#[derive(Debug, Clone)]
struct Noted {
    address: IpAddr,
    name: NamespacedName,
    now: Option<Arc<Workload>>,
}

#[derive(Debug, Clone)]
enum Holder {
    One(Arc<Workload>),
    /// At least two workloads: those that are not leaving first, then by name.
    Several(Arc<[Arc<Workload>]>),
}

impl Holders {
    /// All workloads that claim an address: those that are not leaving first, then by name.
    pub fn all(&self, address: IpAddr) -> &[Arc<Workload>] {
        match self.holders.get(&address) {
            None => &[],
            Some(Holder::One(workload)) => std::slice::from_ref(workload),
            Some(Holder::Several(workloads)) => workloads,
        }
    }

    /// The workload to which the address belongs, if any.
    pub fn owner(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        match self.holders.get(&address)? {
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

    /// Whether a workload claims an address.
    pub fn has_claim(&self, address: IpAddr, name: &NamespacedName) -> bool {
        let all = self.all(address);
        let (staying, leaving) = all.split_at(all.partition_point(|pod| !pod.leaving));
        [staying, leaving].iter().any(|part| part.binary_search_by(|pod| pod.name.cmp(name)).is_ok())
    }

    /// Notes the next state of a workload, or (`None`) its removal. It takes effect with [`Holders::settle`].
    pub fn note(&mut self, before: Option<&Workload>, after: Option<&Arc<Workload>>) {
        let had = before.map(Workload::own_addresses).unwrap_or_default();
        let has = after.map(|after| after.own_addresses()).unwrap_or_default();
        let gone = had.iter().filter(|address| !has.contains(address)).map(|address| (address, None));
        let Some(name) = before.or(after.map(|after| &**after)).map(|workload| &workload.name) else { return };
        let all = gone.chain(has.iter().map(|address| (address, after)));
        let noted = all.map(|(address, now)| Noted { address: *address, name: name.clone(), now: now.cloned() });
        self.noted.extend(noted);
    }

    /// Makes the list of each noted address, once for all changes: any number of pods may claim one address. Returns the
    /// addresses.
    pub fn settle(&mut self) -> Vec<IpAddr> {
        let mut noted = std::mem::take(&mut self.noted);
        // Stable: the last state of a workload stays the last.
        noted.sort_by_key(|noted| noted.address);
        let mut addresses = Vec::new();
        let mut rest = noted.into_iter().peekable();
        while let Some(first) = rest.next() {
            let address = first.address;
            let mut changed = BTreeMap::from([(first.name, first.now)]);
            while let Some(noted) = rest.next_if(|noted| noted.address == address) {
                changed.insert(noted.name, noted.now);
            }
            let others = self.all(address).iter().filter(|other| !changed.contains_key(&other.name));
            let mut all: Vec<Arc<Workload>> = others.cloned().collect();
            all.extend(changed.into_values().flatten());
            effort::count(all.len());
            all.sort_by(|one, other| (one.leaving, &one.name).cmp(&(other.leaving, &other.name)));
            let holder = match all.as_slice() {
                [] => None,
                [one] => Some(Holder::One(Arc::clone(one))),
                _ => Some(Holder::Several(all.into())),
            };
            self.holders.set(address, holder);
            addresses.push(address);
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
