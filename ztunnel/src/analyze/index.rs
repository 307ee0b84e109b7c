//! The mesh by what checks ask for: pods by namespace, label and account.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use super::authentication::Authentication;
use super::nearest::Nearest;
use crate::model::labels::Labels;
use crate::model::local::{LocalPod, LocalPods};
use crate::model::policy::{AuthorizationPolicy, Scope, StringMatch};
use crate::model::service::{Service, ServiceKind};
use crate::model::workload::{Membership, NamespacedName, RefuseReason, Workload};
use crate::store::snapshot::Snapshot;

/// Namespace, key and value of a label; the namespace is empty for all pods.
type Label<'a> = (&'a str, &'a str, &'a str);

/// A snapshot and indexes of it.
pub(super) struct Mesh<'a> {
    pub(super) snapshot: &'a Snapshot,
    local: &'a LocalPods,
    /// Who must prove an identity.
    pub(super) authentication: Authentication<'a>,
    /// What was meant by a name that is not known.
    pub(super) nearest: Nearest,
    services: HashMap<&'a NamespacedName, &'a Service>,
    pods: Vec<&'a Workload>,
    by_namespace: BTreeMap<&'a str, Vec<&'a Workload>>,
    by_label: HashMap<Label<'a>, Vec<&'a Workload>>,
    /// Keys and values of labels in use, by namespace (empty: all).
    labels: HashMap<&'a str, BTreeMap<&'a str, BTreeSet<&'a str>>>,
    /// By namespace and service account.
    accounts: BTreeMap<&'a str, BTreeMap<&'a str, Vec<&'a Workload>>>,
    /// The texts of all identities as policies compare them, ordered; and each written backwards.
    principals: [BTreeSet<String>; 2],
    trust_domains: BTreeSet<&'a str>,
    namespaces: BTreeSet<&'a str>,
}

impl<'a> Mesh<'a> {
    pub(super) fn index(snapshot: &'a Snapshot, local: &'a LocalPods) -> Self {
        let mut mesh = Self {
            snapshot,
            local,
            authentication: Authentication::default(),
            nearest: Nearest::default(),
            services: HashMap::new(),
            pods: snapshot.workloads().map(|pod| &**pod).collect(),
            by_namespace: BTreeMap::new(),
            by_label: HashMap::new(),
            labels: HashMap::new(),
            accounts: BTreeMap::new(),
            principals: [BTreeSet::new(), BTreeSet::new()],
            trust_domains: BTreeSet::new(),
            namespaces: snapshot.namespaces().map(|name| &**name).collect(),
        };
        for pod in mesh.pods.clone() {
            mesh.add(pod);
        }
        for service in snapshot.services().map(|service| &**service) {
            mesh.namespaces.insert(&service.name.namespace);
            if service.kind == ServiceKind::Kubernetes {
                mesh.services.insert(&service.name, service);
            }
        }
        mesh.authentication = Authentication::index(snapshot, &mesh.pods);
        mesh
    }

    fn add(&mut self, pod: &'a Workload) {
        let namespace = &*pod.name.namespace;
        self.namespaces.insert(namespace);
        self.by_namespace.entry(namespace).or_default().push(pod);
        for (key, value) in &pod.labels {
            for namespace in [namespace, ""] {
                self.by_label.entry((namespace, key, value)).or_default().push(pod);
                self.labels.entry(namespace).or_default().entry(key).or_default().insert(value);
            }
        }
        let identity = &pod.identity;
        let of_namespace = self.accounts.entry(&identity.namespace).or_default();
        of_namespace.entry(&identity.service_account).or_default().push(pod);
        self.trust_domains.insert(identity.trust_domain.as_str());
        let text = identity.to_string();
        let text = text.strip_prefix("spiffe://").unwrap_or(&text);
        let [forwards, backwards] = &mut self.principals;
        if forwards.insert(text.to_owned()) {
            backwards.insert(text.chars().rev().collect());
        }
    }

    /// The local facts of a pod, where they are known.
    pub(super) fn local(&self, pod: &Workload) -> Option<&'a LocalPod> {
        self.local.get(&pod.name)
    }

    /// All pods, by name.
    pub(super) fn pods(&self) -> &[&'a Workload] {
        &self.pods
    }

    /// The namespaces that have pods, with them.
    pub(super) fn by_namespace(&self) -> impl Iterator<Item = (&'a str, &[&'a Workload])> {
        self.by_namespace.iter().map(|(name, pods)| (*name, pods.as_slice()))
    }

    /// The pods of a namespace.
    pub(super) fn in_namespace(&self, namespace: &str) -> &[&'a Workload] {
        self.by_namespace.get(namespace).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether the sources describe the namespace or have something in it.
    pub(super) fn knows_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    /// The namespaces that are known.
    pub(super) fn namespaces(&self) -> impl ExactSizeIterator<Item = &'a str> {
        self.namespaces.iter().copied()
    }

    /// The trust domains of the mesh's identities: one, most of the time.
    pub(super) fn trust_domains(&self) -> &BTreeSet<&'a str> {
        &self.trust_domains
    }

    /// The pods with all of these labels in a namespace, or in all. Costs as many steps as its rarest label has pods.
    pub(super) fn selected<'m>(
        &'m self,
        namespace: Option<&'m str>,
        labels: &'m Labels,
    ) -> impl Iterator<Item = &'a Workload> + 'm {
        let of_label = |(key, value): (&'m Arc<str>, &'m Arc<str>)| {
            self.by_label.get(&(namespace.unwrap_or_default(), &**key, &**value))
        };
        let rarest = labels.iter().map(of_label).min_by_key(|pods| pods.map_or(0, Vec::len)).flatten();
        let has_all = |pod: &&Workload| pod.labels.include(labels);
        rarest.into_iter().flatten().copied().filter(has_all)
    }

    /// Keys and values of the labels in use in a namespace, or in all.
    pub(super) fn labels(&self, namespace: Option<&str>) -> Option<&BTreeMap<&'a str, BTreeSet<&'a str>>> {
        self.labels.get(namespace.unwrap_or_default())
    }

    /// The pods of a service account.
    pub(super) fn account(&self, namespace: &str, name: &str) -> &[&'a Workload] {
        let account = self.accounts.get(namespace).and_then(|accounts| accounts.get(name));
        account.map(Vec::as_slice).unwrap_or_default()
    }

    /// The service accounts of a namespace that pods have.
    pub(super) fn accounts_of(&self, namespace: &str) -> Option<&BTreeMap<&'a str, Vec<&'a Workload>>> {
        self.accounts.get(namespace)
    }

    /// Whether the pattern means the identity of some pod.
    pub(super) fn has_principal(&self, pattern: &StringMatch) -> bool {
        let [forwards, backwards] = &self.principals;
        let begins = |texts: &BTreeSet<String>, start: &str| {
            texts
                .range::<str, _>((Bound::Included(start), Bound::Unbounded))
                .next()
                .is_some_and(|text| text.starts_with(start))
        };
        match pattern {
            StringMatch::Exact(text) => forwards.contains(&**text),
            StringMatch::Prefix(start) => begins(forwards, start),
            StringMatch::Suffix(end) => begins(backwards, &end.chars().rev().collect::<String>()),
            StringMatch::Presence => !forwards.is_empty(),
        }
    }

    /// The pods that a policy protects, or would if they were in the mesh.
    pub(super) fn protected<'m>(
        &'m self,
        policy: &'m AuthorizationPolicy,
    ) -> Box<dyn Iterator<Item = &'a Workload> + 'm> {
        match &policy.scope {
            Scope::Mesh => Box::new(self.pods.iter().copied()),
            Scope::Namespace(namespace) => Box::new(self.in_namespace(namespace).iter().copied()),
            Scope::Selector { namespace, labels } => Box::new(self.selected(namespace.as_deref(), labels)),
            Scope::Services(services) => Box::new(services.iter().flat_map(|name| self.behind(name))),
        }
    }

    /// The Kubernetes service of this name.
    pub(super) fn service(&self, name: &NamespacedName) -> Option<&'a Service> {
        self.services.get(name).copied()
    }

    /// The pods behind a Kubernetes service: its endpoints, and what its selector means.
    pub(super) fn behind<'m>(&'m self, name: &'m NamespacedName) -> impl Iterator<Item = &'a Workload> + 'm {
        self.service(name).into_iter().flat_map(move |service| {
            let listed = service.endpoints.iter().filter_map(|endpoint| endpoint.workload.as_ref());
            let listed = listed.filter_map(|name| self.snapshot.workload(name)).map(|pod| &**pod);
            listed.chain(self.selected(Some(&name.namespace), &service.selector))
        })
    }
}

/// Whether nothing of a pod's is enforced, and why. `None` for those in the mesh, and for those that have ended or have no
/// address yet.
pub(super) fn outside(pod: &Workload) -> Option<Outside> {
    if pod.finished {
        return None;
    }
    match pod.membership {
        Membership::InMesh | Membership::Refused(RefuseReason::Finished | RefuseReason::NoAddress) => None,
        Membership::NotLabelled if pod.host_network => Some(Outside::HostNetwork),
        Membership::NotLabelled => Some(Outside::NotLabelled),
        Membership::OptedOut => Some(Outside::OptedOut),
        Membership::Refused(RefuseReason::HostNetwork) => Some(Outside::HostNetwork),
    }
}

/// Whether the mesh carries a pod's traffic.
pub(super) fn is_inside(pod: &Workload) -> bool {
    pod.membership == Membership::InMesh && !pod.finished
}

/// Why a pod is outside of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outside {
    NotLabelled,
    HostNetwork,
    OptedOut,
}

impl Outside {
    /// In words.
    pub(super) fn why(self) -> &'static str {
        match self {
            Self::NotLabelled => "not labelled",
            Self::HostNetwork => "hostNetwork",
            Self::OptedOut => "labelled istio.io/dataplane-mode: none",
        }
    }

    /// What to do about it.
    pub(super) fn remedy(self) -> &'static str {
        match self {
            Self::NotLabelled => "label the namespace, or the pod, istio.io/dataplane-mode: ambient",
            Self::HostNetwork => "run it without hostNetwork, or guard it by other means",
            Self::OptedOut => "take the label off, or guard it by other means",
        }
    }

    /// Whether someone decided so, for this pod.
    pub(super) fn is_wanted(self) -> bool {
        matches!(self, Self::HostNetwork | Self::OptedOut)
    }
}

/// `demo/a, demo/b and 3 more`.
pub(super) fn list(names: impl Iterator<Item = impl fmt::Display>) -> String {
    const SHOWN: usize = 5;
    let mut names = names;
    let shown: Vec<String> = names.by_ref().take(SHOWN).map(|name| name.to_string()).collect();
    match names.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
