//! Workloads that are no pods: machines outside of the cluster, and addresses that a `ServiceEntry` lists.
//!
//! A user who may write such an object may name any address. So the object takes no address from a pod. A workload of this kind
//! outside of the mesh has no own address: it is reached through services only, like a pod on its node's network. A workload of
//! this kind in the mesh must be reached through HBONE by its bare address as well; it has the address as long as no pod has
//! it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::workload::{Membership, Workload};
use crate::store::change::Change;

/// A part of the UIDs that istiod gives to pods.
const POD: &str = "//Pod/";

#[derive(Debug, Default)]
pub(super) struct Apart {
    /// The workloads of this kind in the mesh, by their addresses.
    claims: HashMap<IpAddr, BTreeSet<Arc<str>>>,
    /// Those whose address belongs to a pod.
    yielding: BTreeSet<Arc<str>>,
    /// The owners of addresses may have changed.
    is_dirty: bool,
}

impl Apart {
    /// Records a workload that is added (`is_in`) or removed.
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

    /// A workload as it is published.
    pub(super) fn shown(&self, uid: &Arc<str>, workload: &Arc<Workload>) -> Arc<Workload> {
        let is_own = uid.contains(POD) || (workload.membership == Membership::InMesh && !self.yielding.contains(uid));
        if is_own || workload.host_network {
            return Arc::clone(workload);
        }
        Arc::new(Workload { host_network: true, ..Workload::clone(workload) })
    }

    /// Determines which workloads have the address of a pod. Looks at all workloads, but only if the owners may have changed.
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

    /// Requests a new decision, because all workloads are published again.
    pub(super) fn look_anew(&mut self) {
        self.is_dirty = true;
    }
}
