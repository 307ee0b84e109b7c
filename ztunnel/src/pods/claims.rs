//! Which pod a network namespace belongs to, and which addresses are a pod's alone. Pure.
//!
//! The manifest of a pod names the pod's network namespace, and whoever may write a Pod may name any. A namespace that
//! belonged to another pod would be served under the wrong identity. So the pod on record keeps a namespace, and where no pod
//! is on record a namespace that several pods name belongs to none of them. Namespaces are compared themselves, not their
//! paths.

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
        "cannot enrol pod {pod} with {}: pod {others} {} the same network namespace, and no record says whose it is; \
         none of these pods is enrolled; {}",
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
    /// Somebody else claims an address of the pod.
    #[error(
        "cannot enrol pod {pod}: its address {address} is claimed by several pods ({claimants}), so it cannot be told whose network namespace \
         has it; correct status.podIPs of the wrong one, or delete it"
    )]
    Contested {
        /// The pod.
        pod: NamespacedName,
        /// The address.
        address: IpAddr,
        /// All that claim it, separated by commas.
        claimants: String,
    },
    /// An address of a pod that is being deleted belongs to another pod now.
    #[error(
        "cannot enrol pod {pod}: its address {address} belongs to pod {owner} now, because pod {pod} is being deleted or its \
         node is lost; nothing is to be done, or delete pod {pod} with --force if it does not go by itself"
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

/// What to do about a namespace: that depends on whether the pod's manifest names it, or the daemon has found it.
fn remedy<'a>(netns: &NetnsFile, named: &'a str, found: &'a str) -> &'a str {
    match netns {
        NetnsFile::Named(_) => named,
        NetnsFile::Open(_) => found,
    }
}

/// What the pods of this node say of their network namespaces, at one moment.
#[derive(Debug, Default)]
pub struct Named {
    by_netns: HashMap<NetnsId, Vec<NamespacedName>>,
    by_path: HashMap<PathBuf, Vec<NamespacedName>>,
}

impl Named {
    /// Which namespaces the pods name, in the mesh or not. Pods that have finished name none. `identify` tells which namespace
    /// is at a path now, if there is one.
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

    /// The pods but `name` that name the namespace, or its path, which may have led nowhere when they were asked.
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
    /// Which one it is.
    pub netns: NetnsId,
    /// How the node gets at it.
    pub file: &'a NetnsFile,
    /// Who is on record with it.
    pub holder: Option<Holder>,
}

/// All that decides whose a network namespace is.
pub struct Claims<'a> {
    /// The mesh.
    pub mesh: &'a Snapshot,
    /// What the pods say.
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
    /// Who else claims it.
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

    /// Whether addresses that nothing has proved to be a pod's are claimed by the pod alone.
    ///
    /// # Errors
    /// Who else claims one.
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

    /// Whether the pod on record with a namespace still has it. It has not when it is enrolled with another, nor when it is gone
    /// from the mesh: but while a manifest can't be read, it may be in that one.
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
