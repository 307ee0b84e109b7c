//! Everything that takes time before a daemon can take over.

use std::{collections::HashMap, time::Duration};

use futures_util::future::join_all;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tracing::warn;

use super::ask::{Frozen, Predecessor, TakeOverError};
use crate::{
    identity::{cache::Certificates, handle::CertHandle},
    model::node_pods::NodePods,
    pods::{
        kubernetes::sandbox::{KnownSandbox, SandboxNews, Sandboxes},
        local::{LocalSource, known},
        reconcile,
    },
    store::publish::Reader,
};

/// Time for the first certificates of the pods.
const CERTIFICATES: Duration = Duration::from_secs(20);
/// Time for the Kubernetes API to report pods whose sandboxes were handed over. Meanwhile no daemon enrols pods.
const REPORTED: Duration = Duration::from_secs(2);

/// The pods of the daemon that runs, which has stopped all changes.
pub struct Before {
    /// Number of its enrolled pods.
    pub pods: usize,
    /// By cookie: number of connections of a pod from before its enrolment.
    pub connections: HashMap<u64, usize>,
    /// The sandboxes of pods that the CNI plugin has reported to it.
    pub sandboxes: Vec<KnownSandbox>,
    /// The certificates of the pods, kept fresh until the pods have them.
    _certificates: Vec<CertHandle>,
}

/// Reads the mesh and gets the certificates of the pods while the other daemon serves, and then has it stop all changes. `None`: the
/// other daemon has ended meanwhile.
///
/// # Errors
/// The other daemon has aborted the handover.
pub async fn prepare(
    node: &str,
    predecessor: &mut Predecessor,
    mesh: &Reader,
    local: &mut dyn LocalSource,
    certificates: &Certificates,
) -> Result<Option<Before>, TakeOverError> {
    let prepared = async {
        known(mesh, local).await;
        let facts = local.current().unwrap_or_default();
        let wanted = reconcile::wanted(&mesh.load(), node, &facts, |pod| local.missing_netns(pod));
        let identities = wanted.into_values().filter_map(Result::ok).map(|desired| desired.identity);
        let handles: Vec<_> = identities.map(|identity| certificates.handle(identity)).collect();
        let asked = handles.iter().map(|handle| handle.credentials(CERTIFICATES));
        let missing = join_all(asked).await.iter().filter(|asked| asked.is_err()).count();
        if missing > 0 {
            warn!(
                missing,
                of = handles.len(),
                "some certificates have not been issued yet; the pods are taken over without waiting for them"
            );
        }
        handles
    };
    let certificates = tokio::select! {
        handles = prepared => handles,
        given_up = predecessor.given_up() => {
            given_up?;
            return Ok(None);
        }
    };
    let frozen = predecessor.begin().await?;
    Ok(frozen.map(|Frozen { pods, connections_before: connections, sandboxes }| Before {
        pods,
        connections,
        sandboxes,
        _certificates: certificates,
    }))
}

/// Passes the sandboxes of the other daemon to the source of this node's pods. Without them a pod that starts just now would not be served:
/// the Kubernetes API does not report its addresses yet.
pub async fn adopt(known: Vec<KnownSandbox>, mut news: watch::Receiver<NodePods>, sandboxes: &Sandboxes) {
    let deadline = Instant::now() + REPORTED;
    for KnownSandbox { pod, uid, netns, addresses } in known {
        let is_reported =
            |news: &NodePods| news.pods.as_ref().and_then(|pods| pods.get(&pod)).is_some_and(|pod| pod.has_uid(&uid));
        // A pod that is not reported in time has been deleted.
        drop(timeout_at(deadline, news.wait_for(is_reported)).await);
        sandboxes.tell(SandboxNews::Made { pod, uid, netns, addresses }).await;
    }
    // The source has taken all of them when it answers.
    sandboxes.all().await;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        lifecycle::tasks::{TaskCount, TaskSet},
        model::{
            identity::{SpiffeId, TrustDomain},
            local::LocalPod,
            netns::OpenNetns,
            node_pods::NodePod,
            workload::{NamespacedName, Workload},
        },
        pods::kubernetes::sandbox::tests::scripted,
    };

    fn sandbox(pod: &str) -> KnownSandbox {
        let file = std::fs::File::open("/").unwrap();
        KnownSandbox {
            pod: NamespacedName::new("ns", pod),
            uid: format!("uid of {pod}"),
            netns: OpenNetns::new(file, "/".into()).unwrap(),
            addresses: vec![[10, 0, 0, 1].into()],
        }
    }

    fn reported(pod: &str) -> NodePods {
        let name = NamespacedName::new("ns", pod);
        let identity = SpiffeId::new(TrustDomain::default(), "ns", "account");
        let workload = Workload { uid: format!("uid of {pod}").into(), ..Workload::new(name.clone(), identity) };
        let pod = NodePod { workload: Arc::new(workload), local: Arc::new(LocalPod::default()) };
        NodePods { pods: Some([(name, pod)].into()), ..NodePods::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_is_passed_on_when_its_pod_is_reported_and_a_deleted_pod_holds_nobody_up() {
        let (api, news) = watch::channel(NodePods::default());
        let (sandboxes, mut told) = scripted();
        let mut adopting = TaskSet::new(TaskCount::default());
        let known = vec![sandbox("late"), sandbox("deleted")];
        adopting.spawn(tracing::Span::none(), async move { adopt(known, news, &sandboxes).await });
        let begun = Instant::now();
        assert!(timeout_at(begun + REPORTED / 2, told.recv()).await.is_err(), "the pod is not reported yet");
        api.send_replace(reported("late"));
        let mut made = Vec::new();
        let reply = loop {
            match told.recv().await.unwrap() {
                SandboxNews::Made { pod, .. } => made.push((pod.name.to_string(), begun.elapsed())),
                SandboxNews::Asked(reply) => break reply,
                other => panic!("{other:?}"),
            }
        };
        let names: Vec<_> = made.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["late", "deleted"]);
        assert!(made[0].1 < REPORTED && begun.elapsed() < REPORTED + Duration::from_secs(1), "{made:?}");
        reply.send(Vec::new()).unwrap();
        adopting.join_all().await;
    }
}
