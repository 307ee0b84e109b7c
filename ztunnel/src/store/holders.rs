//! Which workloads have which address.

use std::net::IpAddr;
use std::sync::Arc;

use super::shared::SharedMap;
use crate::model::workload::Workload;

/// The workloads that have an address of their own, by it. A clone shares what is not changed.
#[derive(Debug, Clone, Default)]
pub struct Holders(SharedMap<IpAddr, Holder>);

#[derive(Debug, Clone)]
enum Holder {
    One(Arc<Workload>),
    /// By name.
    Several(Arc<[Arc<Workload>]>),
}

impl Holders {
    /// All that have an address, by name.
    pub fn all(&self, address: IpAddr) -> &[Arc<Workload>] {
        match self.0.get(&address) {
            None => &[],
            Some(Holder::One(workload)) => std::slice::from_ref(workload),
            Some(Holder::Several(workloads)) => workloads,
        }
    }

    /// The only one that has it.
    pub fn only(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        match self.0.get(&address)? {
            Holder::One(workload) => Some(workload),
            Holder::Several(_) => None,
        }
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
            all.sort_by(|one, other| one.name.cmp(&other.name));
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
