//! The PeerAuthentication that applies to a pod, and the mode of the next larger scope.

use std::collections::{BTreeMap, HashMap};

use super::pod::Pod;
use crate::model::policy::{MtlsMode, PeerAuthentication, Scope};
use crate::model::workload::{NamespacedName, Workload};
use crate::store::snapshot::Snapshot;

/// PeerAuthentications by their scope.
#[derive(Default)]
pub(super) struct Authentication<'a> {
    mesh: Option<&'a PeerAuthentication>,
    namespaces: HashMap<&'a str, &'a PeerAuthentication>,
    /// By namespace and the first label of the selector.
    selectors: HashMap<(&'a str, &'a str, &'a str), Vec<&'a PeerAuthentication>>,
    /// Policies without effect on some pod that they select, each with the policy that applies instead.
    beaten: BTreeMap<&'a NamespacedName, (&'a PeerAuthentication, &'a PeerAuthentication)>,
}

/// A mode and its source.
#[derive(Clone, Copy)]
pub(super) struct Mode<'a> {
    pub(super) mode: MtlsMode,
    /// `None`: no policy sets a mode, so that it is PERMISSIVE.
    pub(super) by: Option<&'a PeerAuthentication>,
}

impl Mode<'_> {
    pub(super) fn is_strict(&self) -> bool {
        self.mode == MtlsMode::Strict
    }
}

/// The PeerAuthentications that apply to a pod.
#[derive(Clone, Copy)]
pub(super) struct Effective<'a> {
    /// The mode on ports without a mode of their own.
    pub(super) mode: Mode<'a>,
    /// The policy with a selector.
    pub(super) own: Option<&'a PeerAuthentication>,
}

impl<'a> Effective<'a> {
    /// The PeerAuthentication that makes all or some of the pod's ports STRICT.
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
        // The first policy of a scope applies there.
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
            // A selector in the root namespace selects no pod, and services are never selected.
            Scope::Selector { namespace: None, .. } | Scope::Services(_) => return,
        };
        if first.name != policy.name {
            self.beaten.insert(&policy.name, (policy, first));
        }
    }

    /// The policies whose selectors match the pod; the one that applies comes first.
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

    /// The policies that apply to a pod.
    pub(super) fn of(&self, pod: &Workload) -> Effective<'a> {
        let own = if self.selectors.is_empty() { None } else { self.meaning(pod).next() };
        let mode = own.and_then(said).unwrap_or_else(|| self.of_namespace(&pod.name.namespace));
        Effective { mode, own }
    }

    /// The mode in a namespace for pods without a selector of their own.
    pub(super) fn of_namespace(&self, namespace: &str) -> Mode<'a> {
        self.namespaces.get(namespace).copied().and_then(said).unwrap_or_else(|| self.of_mesh())
    }

    /// The mode in namespaces without a mode of their own.
    pub(super) fn of_mesh(&self) -> Mode<'a> {
        self.mesh.and_then(said).unwrap_or(Mode { mode: MtlsMode::Permissive, by: None })
    }

    /// Policies without effect on a pod that they select, each with the policy that applies instead.
    pub(super) fn beaten(&self) -> impl Iterator<Item = (&'a PeerAuthentication, &'a PeerAuthentication)> {
        self.beaten.values().copied()
    }
}

fn said(policy: &PeerAuthentication) -> Option<Mode<'_>> {
    policy.mode.map(|mode| Mode { mode, by: Some(policy) })
}
