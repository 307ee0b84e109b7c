//! Publishes the roots of the authority as a ConfigMap in the namespaces that need it: the namespace of the node
//! daemons, and each namespace with pods of the mesh.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::{
    control::kubernetes::{CONFIG_MAPS, Cluster, ConfigMapState, Report, Selection, Watch},
    identity::{certificate::to_pem, local_ca::LocalCa, source::CertSource as _},
    model::workload::{Membership, NamespacedName},
    store::publish::Reader,
};

/// The key in the ConfigMap. Istio uses the same.
pub const KEY: &str = "root-cert.pem";
/// How long changes of the mesh are gathered. The namespaces that need the roots are found by a search through all
/// pods.
const GATHER: Duration = Duration::from_secs(2);
/// The pause after a failure.
const AGAIN: Duration = Duration::from_secs(15);

/// Publishes the roots.
pub struct Roots {
    /// The API.
    pub cluster: Cluster,
    /// The authority.
    pub ca: Arc<LocalCa>,
    /// The mesh.
    pub mesh: Reader,
    /// Name of the ConfigMaps.
    pub name: Arc<str>,
    /// Namespaces that need the roots whether or not the mesh has pods there.
    pub always: Vec<Arc<str>>,
}

impl Roots {
    /// Keeps the ConfigMaps right, for ever.
    pub async fn publish(self) {
        let fields = Some(format!("metadata.name={}", self.name));
        let mut watch = Watch::new(self.cluster.clone(), CONFIG_MAPS, Selection { fields, ..Selection::default() });
        let mut there: HashMap<Arc<str>, ConfigMapState> = HashMap::new();
        let mut theirs: BTreeSet<Arc<str>> = BTreeSet::new();
        let (mut mesh, mut generation) = (self.mesh.subscribe(), self.ca.generation());
        let (mut is_synced, mut due) = (false, Some(Instant::now()));
        let mut mesh_is_there = true;
        loop {
            let wake = due.filter(|_| is_synced);
            let act = async move {
                match wake {
                    Some(wake) => sleep_until(wake).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                report = watch.next() => {
                    match report {
                        Report::Applied(object) => {
                            there.insert(Arc::clone(&object.name.namespace), object.as_config_map().unwrap_or_default());
                        }
                        Report::Gone(name) => drop(there.remove(&name.namespace)),
                        Report::Synced => is_synced = true,
                        Report::Failed(failure) => warn!(
                            "{failure}; until then changed roots are not published"
                        ),
                        Report::Absent => {}
                    }
                    due.get_or_insert_with(Instant::now);
                }
                changed = mesh.changed(), if mesh_is_there => {
                    mesh_is_there = changed.is_some();
                    due.get_or_insert_with(|| Instant::now() + GATHER);
                }
                Ok(()) = generation.changed() => due = Some(Instant::now()),
                () = act => due = self.apply(&mut there, &mut theirs).await,
            }
        }
    }

    /// Writes the ConfigMaps that are missing or different. Returns the time of the next attempt if a write failed.
    async fn apply(
        &self,
        there: &mut HashMap<Arc<str>, ConfigMapState>,
        theirs: &mut BTreeSet<Arc<str>>,
    ) -> Option<Instant> {
        let roots: String = self.ca.roots().iter().map(|root| to_pem(&root.der)).collect();
        let wanted = ConfigMapState { data: BTreeMap::from([(KEY.to_owned(), roots)]), is_ours: true };
        let mut again = None;
        for namespace in self.namespaces() {
            let known = there.get(&namespace);
            if known == Some(&wanted) {
                continue;
            }
            let name = NamespacedName::new(Arc::clone(&namespace), Arc::clone(&self.name));
            if known.is_some_and(|known| !known.is_ours) {
                if theirs.insert(namespace) {
                    warn!(
                        config_map = %name,
                        "the ConfigMap was not created by the control plane, which does not change it; nodes that \
                         read it may not trust this control plane; delete the ConfigMap, or give another name with \
                         --root-config-map"
                    );
                }
                continue;
            }
            theirs.remove(&namespace);
            match self.cluster.apply_config_map(&name, wanted.data.clone()).await {
                Ok(()) => {
                    info!(config_map = %name, "the roots are published");
                    there.insert(namespace, wanted.clone());
                }
                Err(failure) => {
                    // The namespace may be terminating.
                    warn!(config_map = %name, %failure, "the roots are not published");
                    again = Some(Instant::now() + AGAIN);
                }
            }
        }
        again
    }

    fn namespaces(&self) -> BTreeSet<Arc<str>> {
        let mesh = self.mesh.load();
        let in_mesh = mesh.workloads().filter(|pod| pod.membership == Membership::InMesh && !pod.is_entry);
        in_mesh.map(|pod| Arc::clone(&pod.name.namespace)).chain(self.always.iter().cloned()).collect()
    }
}
