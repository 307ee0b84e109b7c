//! Checks that the mesh knows the node's name: a daemon with a wrong name captures nothing, and nobody would notice.
//! Pure.

use std::sync::Arc;

use thiserror::Error;

use crate::store::snapshot::Snapshot;

/// Names that are compared: more than a cluster has nodes.
const COMPARED: usize = 10_000;
/// The least similarity, between 0 and 1 (Jaro-Winkler), of a name that was likely meant. A common beginning counts
/// most, as with `node-a` and `node-a.internal`. A name with the same first DNS label was meant in any case: `n1` is
/// hardly similar to `n1.internal`.
const SIMILAR: f64 = 0.8;

/// The mesh has nodes, but none with this name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "no Node and no Pod of the mesh names the node {node:?}, so no pod is captured here; {}set --node to the name that pods have \
     in spec.nodeName (`kubectl get nodes`)",
    closest.as_ref().map(|name| format!("the closest known name is {name:?}; ")).unwrap_or_default()
)]
pub struct UnknownNode {
    /// The name.
    pub node: String,
    /// The name that was likely meant.
    pub closest: Option<Arc<str>>,
}

impl UnknownNode {
    /// Looks up a node. `None`: it is known, or the mesh names no node at all.
    #[must_use]
    pub fn in_mesh(mesh: &Snapshot, node: &str) -> Option<Self> {
        if mesh.knows_node(node) {
            return None;
        }
        let names = mesh.node_names();
        names.first()?;
        let similarity = |name: &Arc<str>| (have_same_label(node, name), strsim::jaro_winkler(node, name));
        let similar = names.into_iter().take(COMPARED).map(|name| (similarity(name), name));
        let similar = similar.filter(|((has_label, similar), _)| *has_label || *similar >= SIMILAR);
        let closest = similar.max_by(|((one_label, one), _), ((other_label, other), _)| {
            one_label.cmp(other_label).then(one.total_cmp(other))
        });
        Some(Self { node: node.to_owned(), closest: closest.map(|(_, name)| Arc::clone(name)) })
    }
}

/// Whether two names have the same first DNS label. The first part of an IP address is no label.
fn have_same_label(one: &str, other: &str) -> bool {
    let label = |name: &str| {
        let first = name.split('.').next().unwrap_or_default();
        first.contains(|c: char| !c.is_ascii_digit()).then(|| first.to_owned())
    };
    label(one).is_some_and(|label_of_one| label(other) == Some(label_of_one))
}

#[cfg(test)]
mod tests {
    use super::UnknownNode;
    use crate::{
        model::{
            identity::{SpiffeId, TrustDomain},
            workload::{NamespacedName, Workload},
        },
        store::{
            change::{Batch, Change},
            snapshot::Snapshot,
        },
    };

    /// A mesh with a pod on each node of `with_pods`, and a Node object for each of `described`.
    fn mesh(with_pods: &[&str], described: &[&str]) -> Snapshot {
        let pod = |node: &&str| {
            let identity = SpiffeId::new(TrustDomain::default(), "ns", "default");
            Workload { node: Some((*node).into()), ..Workload::new(NamespacedName::new("ns", *node), identity) }
        };
        let snapshot = Snapshot::build(1, with_pods.iter().map(pod).collect(), vec![], vec![]);
        snapshot.apply(Batch::of(described.iter().map(|node| Change::Node((*node).into())).collect()))
    }

    #[test]
    fn a_name_that_nobody_has_is_told_with_the_closest() {
        let table = [
            ("node-a.internal", &["node-a", "node-b"][..], Some("node-a")),
            ("node-a", &["node-a.internal", "node-b.internal"], Some("node-a.internal")),
            ("ip-10-0-0-1", &["node-a"], None),
            ("n1.internal", &["n1", "n2"], Some("n1")),
            ("n1", &["n1.eu-west-1.compute.internal", "n10", "n2"], Some("n1.eu-west-1.compute.internal")),
            ("10.0.0.1", &["10.254.199.7"], None),
            ("ndoe-b", &["node-a", "node-b"], Some("node-b")),
        ];
        for (node, known, closest) in table {
            for mesh in [mesh(known, &[]), mesh(&[], known)] {
                let unknown = UnknownNode::in_mesh(&mesh, node).unwrap();
                assert_eq!(unknown.closest.as_deref(), closest, "{node}");
                let text = unknown.to_string();
                assert!(
                    text.contains("--node") && text.contains(node) && text.contains(closest.unwrap_or("")),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn a_node_is_known_by_its_pods_or_by_itself() {
        let mesh = mesh(&["node-a"], &["node-b"]);
        for known in ["node-a", "node-b"] {
            assert_eq!(UnknownNode::in_mesh(&mesh, known), None, "{known}");
        }
        assert_eq!(UnknownNode::in_mesh(&Snapshot::default(), "node-a"), None, "there is nothing to compare with yet");
        let gone = mesh.apply(Batch::of(vec![Change::NodeGone("node-b".into())]));
        assert!(UnknownNode::in_mesh(&gone, "node-b").is_some());
    }
}
