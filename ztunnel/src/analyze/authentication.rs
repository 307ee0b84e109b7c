//! Which PeerAuthentication counts for a pod, and what the next larger scope says.

use std::collections::{BTreeMap, HashMap};

use super::pod::Pod;
use crate::model::policy::{MtlsMode, PeerAuthentication, Scope};
use crate::model::workload::{NamespacedName, Workload};
use crate::store::snapshot::Snapshot;

/// PeerAuthentications by what they are for.
#[derive(Default)]
pub(super) struct Authentication<'a> {
    mesh: Option<&'a PeerAuthentication>,
    namespaces: HashMap<&'a str, &'a PeerAuthentication>,
    /// By namespace and the first label of the selector.
    selectors: HashMap<(&'a str, &'a str, &'a str), Vec<&'a PeerAuthentication>>,
    /// Those that do not count for some pod that they mean, with that which does.
    beaten: BTreeMap<&'a NamespacedName, (&'a PeerAuthentication, &'a PeerAuthentication)>,
}

/// What a mode comes from.
#[derive(Clone, Copy)]
pub(super) struct Mode<'a> {
    pub(super) mode: MtlsMode,
    /// Nothing says anything: then it is PERMISSIVE.
    pub(super) by: Option<&'a PeerAuthentication>,
}

impl Mode<'_> {
    pub(super) fn is_strict(&self) -> bool {
        self.mode == MtlsMode::Strict
    }
}

/// What counts for a pod.
#[derive(Clone, Copy)]
pub(super) struct Effective<'a> {
    /// On ports of which nothing else is said.
    pub(super) mode: Mode<'a>,
    /// The one with a selector.
    pub(super) own: Option<&'a PeerAuthentication>,
}

impl<'a> Effective<'a> {
    /// The PeerAuthentication that makes the pod's ports STRICT, all or some.
    pub(super) fn strict(&self) -> Option<&'a PeerAuthentication> {
        if self.mode.is_strict() {
            return self.mode.by;
        }
        self.own.filter(|own| own.ports.values().any(|mode| *mode == Some(MtlsMode::Strict)))
    }
}

impl<'a> Authentication<'a> {
    pub(super) fn index(snapshot: &'a Snapshot, pods: &[Pod<'a>]) -> Self {
        let mut index = Self::default();
        let mut all: Vec<&PeerAuthentication> =
            snapshot.policies().authentication().iter().map(|policy| &**policy).collect();
        // The first that comes to a place counts there.
        all.sort_by_key(|policy| (policy.created, &policy.name));
        for policy in all {
            index.add(policy);
        }
        if !index.selectors.is_empty() {
            for pod in pods {
                let mut meant = index.meaning(pod);
                let Some(first) = meant.next() else { continue };
                let beaten: Vec<_> = meant.collect();
                for later in beaten {
                    index.beaten.entry(&later.name).or_insert((later, first));
                }
            }
        }
        index
    }

    fn add(&mut self, policy: &'a PeerAuthentication) {
        let first = match &policy.scope {
            Scope::Mesh => *self.mesh.get_or_insert(policy),
            Scope::Namespace(namespace) => *self.namespaces.entry(namespace).or_insert(policy),
            Scope::Selector { namespace: Some(namespace), labels } => {
                if let Some((key, value)) = labels.iter().next() {
                    self.selectors.entry((namespace, key, value)).or_default().push(policy);
                }
                return;
            }
            // A selector in the root namespace means nobody, and services are never meant.
            Scope::Selector { namespace: None, .. } | Scope::Services(_) => return,
        };
        if first.name != policy.name {
            self.beaten.insert(&policy.name, (policy, first));
        }
    }

    /// Those whose selector means the pod, the one that counts first.
    fn meaning(&self, pod: &Workload) -> impl Iterator<Item = &'a PeerAuthentication> + use<'a> {
        let namespace = &*pod.name.namespace;
        let of_labels = pod.labels.iter().filter_map(|(key, value)| self.selectors.get(&(namespace, &**key, &**value)));
        let mut found: Vec<&PeerAuthentication> = of_labels.flatten().copied().collect();
        found.retain(|policy| match &policy.scope {
            Scope::Selector { labels, .. } => pod.labels.include(labels),
            Scope::Mesh | Scope::Namespace(_) | Scope::Services(_) => false,
        });
        found.sort_by_key(|policy| (policy.created, &policy.name));
        found.into_iter()
    }

    /// What counts for a pod.
    pub(super) fn of(&self, pod: &Workload) -> Effective<'a> {
        let own = if self.selectors.is_empty() { None } else { self.meaning(pod).next() };
        let mode = own.and_then(said).unwrap_or_else(|| self.of_namespace(&pod.name.namespace));
        Effective { mode, own }
    }

    /// What counts in a namespace where no selector says otherwise.
    pub(super) fn of_namespace(&self, namespace: &str) -> Mode<'a> {
        self.namespaces.get(namespace).copied().and_then(said).unwrap_or_else(|| self.of_mesh())
    }

    /// What counts where no namespace says otherwise.
    pub(super) fn of_mesh(&self) -> Mode<'a> {
        self.mesh.and_then(said).unwrap_or(Mode { mode: MtlsMode::Permissive, by: None })
    }

    /// Those that do not count for a pod that they mean, each with one that does.
    pub(super) fn beaten(&self) -> impl Iterator<Item = (&'a PeerAuthentication, &'a PeerAuthentication)> {
        self.beaten.values().copied()
    }
}

fn said(policy: &PeerAuthentication) -> Option<Mode<'_>> {
    policy.mode.map(|mode| Mode { mode, by: Some(policy) })
}
