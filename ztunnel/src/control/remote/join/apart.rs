//! Workloads that are no pods: machines outside of the cluster, and addresses that a `ServiceEntry` lists.
//!
//! Whoever may write such an object may name any address. So it takes no address from a pod, and one that is not in the mesh
//! has no address of its own at all: services lead to it, as they lead to pods on their node's network. One that is in the mesh
//! must be reached through a tunnel also by its bare address; that is its own as long as no pod has it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::workload::{Membership, Workload};
use crate::store::change::Change;

/// As istiod writes the uid of a pod.
const POD: &str = "//Pod/";

#[derive(Debug, Default)]
pub(super) struct Apart {
    /// Those in the mesh, by their addresses.
    claims: HashMap<IpAddr, BTreeSet<Arc<str>>>,
    /// Those of them whose address is a pod's.
    yielding: BTreeSet<Arc<str>>,
    /// Who has the addresses may have changed.
    is_dirty: bool,
}

impl Apart {
    /// Notes a workload that is there from now on, or no more.
    pub(super) fn note(&mut self, uid: &Arc<str>, workload: &Workload, is_in: bool) {
        if uid.contains(POD) {
            self.is_dirty |= !self.claims.is_empty()
                && workload.own_addresses().iter().any(|address| self.claims.contains_key(address));
            return;
        }
        if workload.membership != Membership::InMesh {
            return;
        }
        for address in workload.own_addresses() {
            if is_in {
                self.claims.entry(*address).or_default().insert(Arc::clone(uid));
            } else if let Some(claimants) = self.claims.get_mut(address) {
                claimants.remove(uid);
                if claimants.is_empty() {
                    self.claims.remove(address);
                }
            }
        }
        self.is_dirty = true;
    }

    /// A workload as the mesh is to see it.
    pub(super) fn shown(&self, uid: &Arc<str>, workload: &Arc<Workload>) -> Arc<Workload> {
        let is_own = uid.contains(POD) || (workload.membership == Membership::InMesh && !self.yielding.contains(uid));
        if is_own || workload.host_network {
            return Arc::clone(workload);
        }
        Arc::new(Workload { host_network: true, ..Workload::clone(workload) })
    }

    /// Finds out whose address is a pod's: a look at all workloads, when there is a claim that may be decided otherwise now.
    pub(super) fn decide<'a>(
        &mut self,
        workloads: impl Iterator<Item = (&'a Arc<str>, Arc<Workload>)>,
        changes: &mut Vec<Change>,
    ) {
        if !std::mem::take(&mut self.is_dirty) {
            return;
        }
        let (mut yielding, mut others) = (BTreeSet::new(), HashMap::new());
        for (uid, workload) in workloads {
            if !uid.contains(POD) {
                others.insert(uid, workload);
                continue;
            }
            for claimants in workload.own_addresses().iter().filter_map(|address| self.claims.get(address)) {
                yielding.extend(claimants.iter().cloned());
            }
        }
        let before = std::mem::replace(&mut self.yielding, yielding);
        for uid in before.symmetric_difference(&self.yielding) {
            if let Some(workload) = others.get(uid) {
                changes.push(Change::Workload(self.shown(uid, workload)));
            }
        }
    }

    /// All workloads are told anew.
    pub(super) fn look_anew(&mut self) {
        self.is_dirty = true;
    }
}
