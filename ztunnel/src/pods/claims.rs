//! Decides to which pod a network namespace belongs, and which addresses belong to one pod only. Pure.
//!
//! The manifest of a pod names the pod's network namespace, and a user who may write a Pod may name any namespace. A
//! namespace of another pod would be served under the wrong identity. So the pod on record keeps a namespace. If no pod
//! is on record, a namespace that several pods name belongs to none of them. The namespaces themselves are compared,
//! not their paths.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
};

use thiserror::Error;

use super::reconcile::Wanted;
use crate::{
    model::{local::LocalPods, netns::NetnsFile, workload::NamespacedName},
    net::netns::NetnsId,
    redirect::record::Holder,
    store::snapshot::Snapshot,
};

/// Why a pod may not have a network namespace or an address.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ClaimError {
    /// Another pod is enrolled with the namespace.
    #[error(
        "cannot enrol pod {pod} with {}: that network namespace already belongs to pod {other}, which is enrolled with it; {}",
        .netns.path().display(),
        remedy(.netns, &format!("correct the annotation ambient.mesh/netns of pod {pod}, or delete the pod"), &format!("delete pod {pod}"))
    )]
    Taken {
        /// The pod.
        pod: NamespacedName,
        /// The namespace.
        netns: NetnsFile,
        /// The other pod.
        other: NamespacedName,
    },
    /// Another pod is on record with the namespace.
    #[error(
        "cannot enrol pod {pod} with {}: that network namespace already belongs to pod {other}, which was enrolled with it \
         before and is still in the mesh; {}",
        .netns.path().display(),
        remedy(
            .netns,
            &format!("correct the annotation ambient.mesh/netns of pod {pod}, or delete pod {other}"),
            &format!("delete pod {pod} or pod {other}")
        )
    )]
    OnRecord {
        /// The pod.
        pod: NamespacedName,
        /// The namespace.
        netns: NetnsFile,
        /// The pod on record.
        other: String,
    },
    /// Other pods name the namespace.
    #[error(
        "cannot enrol pod {pod} with {}: pod {others} {} the same network namespace, and the daemon has no \
         record of the pod that owns it; none of these pods is enrolled; {}",
        .netns.path().display(),
        remedy(.netns, "names", "is in"),
        remedy(.netns, "correct or remove the annotation ambient.mesh/netns of all but one", "delete all of them but one")
    )]
    Named {
        /// The pod.
        pod: NamespacedName,
        /// The namespace.
        netns: NetnsFile,
        /// The other pods, separated by commas.
        others: String,
    },
    /// Another pod claims an address of the pod.
    #[error(
        "cannot enrol pod {pod}: its address {address} is claimed by several pods ({claimants}); correct \
         status.podIPs of all but one of them, or delete these"
    )]
    Contested {
        /// The pod.
        pod: NamespacedName,
        /// The address.
        address: IpAddr,
        /// All pods that claim it, separated by commas.
        claimants: String,
    },
    /// An address of a pod that is being deleted belongs to another pod now.
    #[error(
        "cannot enrol pod {pod}: its address {address} now belongs to pod {owner}, because pod {pod} is \
         being deleted or its node is lost; no action is needed; if pod {pod} still exists after some \
         minutes, delete it with --force"
    )]
    Passed {
        /// The pod.
        pod: NamespacedName,
        /// The address.
        address: IpAddr,
        /// The pod that has it.
        owner: NamespacedName,
    },
}

/// The remedy for a namespace. It depends on whether the pod's manifest names it, or the daemon has found it.
fn remedy<'a>(netns: &NetnsFile, named: &'a str, found: &'a str) -> &'a str {
    match netns {
        NetnsFile::Named(_) => named,
        NetnsFile::Open(_) => found,
    }
}

/// The network namespaces that the pods of this node name, at one moment.
#[derive(Debug, Default)]
pub struct Named {
    by_netns: HashMap<NetnsId, Vec<NamespacedName>>,
    by_path: HashMap<PathBuf, Vec<NamespacedName>>,
}

impl Named {
    /// Collects the namespaces that the pods name, in the mesh or not. Pods that have finished name none. `identify`
    /// returns the namespace that a path leads to now, if there is one.
    pub fn by(snapshot: &Snapshot, local: &LocalPods, identify: impl Fn(&NetnsFile) -> Option<NetnsId>) -> Self {
        let mut named = Self::default();
        for (name, pod) in local {
            let Some(file) = &pod.netns else { continue };
            if snapshot.workload(name).is_some_and(|workload| workload.finished) {
                continue;
            }
            if let NetnsFile::Named(path) = file {
                named.by_path.entry(path.clone()).or_default().push(name.clone());
            }
            if let Some(netns) = identify(file) {
                named.by_netns.entry(netns).or_default().push(name.clone());
            }
        }
        named
    }

    /// The pods except `name` that name the namespace or its path. The path may have led nowhere when the pods were
    /// collected.
    fn others<'a>(
        &'a self,
        name: &'a NamespacedName,
        netns: NetnsId,
        file: &NetnsFile,
    ) -> BTreeSet<&'a NamespacedName> {
        let by_netns = self.by_netns.get(&netns).into_iter().flatten();
        let by_path = self.by_path.get(file.path()).into_iter().flatten();
        by_netns.chain(by_path).filter(|other| *other != name).collect()
    }
}

/// A network namespace that a pod names.
pub struct Claimed<'a> {
    /// Its cookie.
    pub cookie: u64,
    /// The identity of the namespace.
    pub netns: NetnsId,
    /// The file through which the node reaches it.
    pub file: &'a NetnsFile,
    /// The pod that is on record for it.
    pub holder: Option<Holder>,
}

/// The facts that decide to which pod a network namespace belongs.
pub struct Claims<'a> {
    /// The mesh.
    pub mesh: &'a Snapshot,
    /// The namespaces that the pods name.
    pub named: &'a Named,
    /// The pods that are enrolled, with the cookies of their namespaces.
    pub enrolled: Vec<(&'a NamespacedName, u64)>,
    /// The pods of the mesh on this node, enrolled or not.
    pub wanted: &'a BTreeMap<NamespacedName, Wanted>,
}

impl Claims<'_> {
    /// Whether a pod may be enrolled with a namespace and addresses.
    ///
    /// # Errors
    /// Another pod claims the namespace or an address.
    pub fn check(&self, pod: &NamespacedName, claimed: &Claimed<'_>, addresses: &[IpAddr]) -> Result<(), ClaimError> {
        let netns = || claimed.file.clone();
        let mut enrolled = self.enrolled.iter();
        if let Some((other, _)) = enrolled.find(|(other, cookie)| *cookie == claimed.cookie && *other != pod) {
            return Err(ClaimError::Taken { pod: pod.clone(), netns: netns(), other: (*other).clone() });
        }
        match &claimed.holder {
            Some(holder) if holder.pod == pod.to_string() => {}
            Some(holder) if self.keeps(&holder.pod, claimed.cookie) => {
                return Err(ClaimError::OnRecord { pod: pod.clone(), netns: netns(), other: holder.pod.clone() });
            }
            _ => {
                let others = self.named.others(pod, claimed.netns, claimed.file);
                if !others.is_empty() {
                    let others = others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                    return Err(ClaimError::Named { pod: pod.clone(), netns: netns(), others });
                }
            }
        }
        let proved = claimed.holder.as_ref().filter(|holder| holder.pod == pod.to_string());
        let proved = proved.map(|holder| &*holder.addresses).unwrap_or_default();
        self.addresses(pod, addresses.iter().filter(|address| !proved.contains(address)))
    }

    /// Whether no other pod claims the addresses. For addresses that are not proved to be the pod's.
    ///
    /// # Errors
    /// Another pod claims an address.
    pub fn addresses<'a>(
        &self,
        pod: &NamespacedName,
        addresses: impl IntoIterator<Item = &'a IpAddr>,
    ) -> Result<(), ClaimError> {
        for address in addresses {
            if let Some(claimants) = self.mesh.contested(*address) {
                let claimants = claimants.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                return Err(ClaimError::Contested { pod: pod.clone(), address: *address, claimants });
            }
            if let Some(owner) = self.mesh.workload_at(*address).filter(|owner| owner.name != *pod) {
                let owner = owner.name.clone();
                return Err(ClaimError::Passed { pod: pod.clone(), address: *address, owner });
            }
        }
        Ok(())
    }

    /// Whether the pod on record for a namespace still has it. It has not if it is enrolled with another namespace, or
    /// if it is gone from the mesh. But while a manifest can't be read, the pod may be in that manifest.
    fn keeps(&self, holder: &str, cookie: u64) -> bool {
        let Some((namespace, name)) = holder.split_once('/') else { return false };
        let name = NamespacedName::new(namespace, name);
        match self.enrolled.iter().find(|(enrolled, _)| **enrolled == name) {
            Some((_, enrolled)) => *enrolled == cookie,
            None => self.mesh.is_partial() || self.wanted.contains_key(&name),
        }
    }
}

#[cfg(test)]
mod tests;
