//! The sandboxes of pods, which the container runtime makes. A sandbox has its network namespace and addresses before
//! the first container of the pod starts, and before Kubernetes reports the addresses.

use std::net::IpAddr;

use tokio::sync::{mpsc, oneshot};

use crate::model::{
    identity::{SpiffeId, TrustDomain},
    local::Sandbox,
    netns::OpenNetns,
    workload::NamespacedName,
};

/// Messages that wait while the follower is busy. The sender of a further message waits.
const WAITING: usize = 64;

/// Passes sandboxes to the follower.
#[derive(Clone, Debug)]
pub struct Sandboxes(mpsc::Sender<SandboxNews>);

/// A change of a sandbox.
#[derive(Debug)]
pub enum SandboxNews {
    /// It has been made. Facts of an earlier sandbox of the pod no longer count.
    Made {
        /// The pod.
        pod: NamespacedName,
        /// The UID by which the kubelet knows the pod.
        uid: String,
        /// The network namespace, which has been proved to have the addresses.
        netns: OpenNetns,
        /// The addresses, at least one.
        addresses: Vec<IpAddr>,
    },
    /// All sandboxes that the follower knows are asked for.
    Asked(oneshot::Sender<Vec<KnownSandbox>>),
    /// It is being removed.
    Gone {
        /// The pod.
        pod: NamespacedName,
        /// The network namespace.
        netns: OpenNetns,
    },
}

/// The sandbox of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownSandbox {
    /// The pod.
    pub pod: NamespacedName,
    /// The UID of the pod.
    pub uid: String,
    /// The network namespace, which has been proved to have the addresses.
    pub netns: OpenNetns,
    /// The addresses, at least one.
    pub addresses: Vec<IpAddr>,
}

pub(super) fn channel() -> (Sandboxes, mpsc::Receiver<SandboxNews>) {
    let (told, news) = mpsc::channel(WAITING);
    (Sandboxes(told), news)
}

impl Sandboxes {
    /// Passes a change on. `false`: the follower has ended.
    pub async fn tell(&self, news: SandboxNews) -> bool {
        self.0.send(news).await.is_ok()
    }

    /// All sandboxes that the follower knows, after all changes that were passed on before. `None`: the follower has ended.
    pub async fn all(&self) -> Option<Vec<KnownSandbox>> {
        let (reply, known) = oneshot::channel();
        self.tell(SandboxNews::Asked(reply)).await;
        known.await.ok()
    }
}

/// The sandbox of a pod, compared with the pod's status since then.
#[derive(Clone, Debug)]
pub(super) struct Made {
    netns: OpenNetns,
    addresses: Vec<IpAddr>,
    /// The addresses in the status when the sandbox was made: none, or those of an earlier sandbox.
    outdated: Vec<IpAddr>,
    is_ahead: bool,
}

impl Made {
    pub(super) fn new(netns: OpenNetns, addresses: Vec<IpAddr>, status: Vec<IpAddr>) -> Self {
        let is_ahead = !is_same(&status, &addresses);
        Self { netns, addresses, outdated: status, is_ahead }
    }

    pub(super) fn netns(&self) -> &OpenNetns {
        &self.netns
    }

    pub(super) fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Compares the sandbox with the current addresses in the pod's status.
    ///
    /// # Errors
    /// The status has addresses that are neither those of the sandbox nor the outdated ones. The error has the
    /// addresses of the sandbox.
    pub(super) fn compare(&mut self, status: &[IpAddr]) -> Result<(), Vec<IpAddr>> {
        if is_same(status, &self.addresses) {
            self.is_ahead = false;
        } else if !(status.is_empty() || self.is_ahead && is_same(status, &self.outdated)) {
            return Err(self.addresses.clone());
        }
        Ok(())
    }

    /// The facts that the node uses until the mesh knows the pod's addresses.
    pub(super) fn facts(&self, identity: &SpiffeId, trust_domain: &TrustDomain) -> Sandbox {
        Sandbox {
            identity: SpiffeId { trust_domain: trust_domain.clone(), ..identity.clone() },
            addresses: self.addresses.clone(),
            is_ahead_of_status: self.is_ahead,
        }
    }
}

/// Whether both have the same addresses, in whatever order.
fn is_same(one: &[IpAddr], other: &[IpAddr]) -> bool {
    one.len() == other.len() && one.iter().all(|address| other.contains(address))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The channel to a script that replaces the follower.
    pub(crate) fn scripted() -> (Sandboxes, mpsc::Receiver<SandboxNews>) {
        channel()
    }

    fn list(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|address| address.parse().unwrap()).collect()
    }

    fn made(addresses: &str, status: &str) -> Made {
        let file = std::fs::File::open("/").unwrap();
        Made::new(OpenNetns::new(file, "/".into()).unwrap(), list(addresses), list(status))
    }

    #[test]
    fn a_sandbox_counts_until_the_status_tells_other_addresses_than_before() {
        // The addresses in the status one after the other, and whether the sandbox is then ahead of the status; `None`:
        // a contradiction.
        type Statuses = &'static [(&'static str, Option<bool>)];
        let table: [(&str, &str, Statuses); 4] = [
            ("10.0.0.1", "", &[("", Some(true)), ("10.0.0.1", Some(false)), ("", Some(false)), ("10.0.0.2", None)]),
            ("10.0.0.1 fd00::1", "", &[("fd00::1 10.0.0.1", Some(false))]),
            ("10.0.0.2", "10.0.0.1", &[("10.0.0.1", Some(true)), ("10.0.0.2", Some(false)), ("10.0.0.1", None)]),
            ("10.0.0.2", "10.0.0.1", &[("10.0.0.3", None)]),
        ];
        for (addresses, before, told) in table {
            let mut made = made(addresses, before);
            for (status, expected) in told {
                let compared = made.compare(&list(status)).ok().map(|()| made.is_ahead);
                assert_eq!(compared, *expected, "{addresses} {before:?} {status:?}");
            }
        }
    }
}
