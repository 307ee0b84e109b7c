//! The mode on which findings are based is the mode that the data path enforces.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::pod;
use crate::analyze::declared::Declared;
use crate::analyze::index::Mesh;
use crate::model::labels::Labels;
use crate::model::local::{LocalPod, LocalPods};
use crate::model::origin::Origin;
use crate::model::policy::{MtlsMode, PeerAuthentication, PolicySet, Scope};
use crate::model::workload::NamespacedName;
use crate::policy::PodPolicies;
use crate::store::snapshot::Snapshot;

const MODES: [Option<MtlsMode>; 4] =
    [None, Some(MtlsMode::Permissive), Some(MtlsMode::Strict), Some(MtlsMode::Disable)];

fn authentication(random: &mut Rng, index: usize) -> PeerAuthentication {
    let selector = |app: &str| Scope::Selector { namespace: Some("demo".into()), labels: Labels::from([("app", app)]) };
    let scope = match random.usize(..5) {
        0 => Scope::Mesh,
        1 => Scope::Namespace("demo".into()),
        2 => Scope::Namespace("other".into()),
        3 => selector("web"),
        _ => selector("client"),
    };
    let has_ports = matches!(scope, Scope::Selector { .. }) && random.bool();
    PeerAuthentication {
        name: NamespacedName::new("demo", format!("p{index}")),
        origin: Origin::line_of("f", 1),
        created: random.bool().then(|| random.i64(0..2)),
        mode: MODES[random.usize(..4)],
        ports: if has_ports { BTreeMap::from([(8080, MODES[random.usize(..4)])]) } else { BTreeMap::new() },
        scope,
    }
}

#[test]
fn modes_are_those_of_the_data_path() {
    let mut random = Rng::with_seed(1);
    let pods = [
        pod("demo", "web", &[("app", "web")]),
        pod("demo", "client", &[("app", "client")]),
        pod("other", "web", &[("app", "web")]),
    ];
    let mut strict = 0;
    for _ in 0..1_000 {
        let authentication: Vec<_> = (0..random.usize(..6)).map(|index| authentication(&mut random, index)).collect();
        let policies = PolicySet { authentication, ..PolicySet::default() };
        let shown = format!("{policies:#?}");
        let snapshot = Snapshot::build(1, pods.to_vec(), Vec::new(), Vec::new()).with_policies(policies);
        let local = LocalPods::new();
        let declared = Declared::default();
        let mesh = Mesh::index(&snapshot, &local, &declared);
        for pod in mesh.pods() {
            let found = mesh.authentication.of(pod);
            let guard = PodPolicies::of(&snapshot, pod, &LocalPod::default());
            let expected = guard.mode();
            let by = found.mode.by.map(|policy| &policy.name);
            assert_eq!((found.mode.mode, by), (expected.mode, expected.from.as_ref()), "{} {shown}", pod.name);
            let is_strict = found.mode.is_strict() || expected.ports.values().any(|mode| *mode == MtlsMode::Strict);
            assert_eq!(found.strict().is_some(), is_strict, "{} {shown}", pod.name);
            strict += usize::from(is_strict);
        }
    }
    assert!(strict > 300, "{strict}");
}
