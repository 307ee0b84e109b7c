//! Indexes of the mesh for the checks: pods by namespace, label and account.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use super::authentication::Authentication;
use super::declared::Declared;
use super::nearest::Nearest;
use super::pod::Pod;
use crate::model::labels::Labels;
use crate::model::local::LocalPods;
use crate::model::policy::{AuthorizationPolicy, Scope, StringMatch};
use crate::model::service::{Service, ServiceKind};
use crate::model::workload::NamespacedName;
use crate::store::selectors::Selectors;
use crate::store::snapshot::Snapshot;

/// Namespace, key and value of a label; the namespace is empty for all pods.
type Label<'a> = (&'a str, &'a str, &'a str);

/// A snapshot and indexes of it.
pub(super) struct Mesh<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) declared: &'a Declared,
    /// The mode (STRICT or PERMISSIVE) of pods and namespaces.
    pub(super) authentication: Authentication<'a>,
    /// Finds the known name that was probably meant by an unknown one.
    pub(super) nearest: Nearest,
    services: HashMap<&'a NamespacedName, &'a Service>,
    /// Services by their selectors.
    selecting: Selectors<Arc<[&'a Service]>>,
    pods: Vec<Pod<'a>>,
    by_namespace: BTreeMap<&'a str, Vec<Pod<'a>>>,
    by_label: HashMap<Label<'a>, Vec<Pod<'a>>>,
    /// Keys and values of labels in use, by namespace (empty: all).
    labels: HashMap<&'a str, BTreeMap<&'a str, BTreeSet<&'a str>>>,
    /// By namespace and service account.
    accounts: BTreeMap<&'a str, BTreeMap<&'a str, Vec<Pod<'a>>>>,
    /// The texts of all identities as policies compare them, sorted; and each of them reversed.
    principals: [BTreeSet<String>; 2],
    trust_domains: BTreeSet<&'a str>,
    namespaces: BTreeSet<&'a str>,
}

impl<'a> Mesh<'a> {
    pub(super) fn index(snapshot: &'a Snapshot, local: &'a LocalPods, declared: &'a Declared) -> Self {
        let namespaces: BTreeSet<&str> = snapshot.namespaces().map(|name| &**name).collect();
        let real = snapshot.workloads().filter(|pod| !pod.is_entry).map(|pod| Pod::real(pod, local.get(&pod.name)));
        let planned = declared.templates.iter();
        let planned =
            planned.map(|template| Pod::planned(template, namespaces.contains(&*template.workload.name.namespace)));
        let mut mesh = Self {
            snapshot,
            declared,
            authentication: Authentication::default(),
            nearest: Nearest::default(),
            services: HashMap::new(),
            selecting: Selectors::default(),
            pods: real.chain(planned).collect(),
            by_namespace: BTreeMap::new(),
            by_label: HashMap::new(),
            labels: HashMap::new(),
            accounts: BTreeMap::new(),
            principals: [BTreeSet::new(), BTreeSet::new()],
            trust_domains: BTreeSet::new(),
            namespaces,
        };
        for pod in mesh.pods.clone() {
            mesh.add(pod);
        }
        for service in snapshot.services().map(|service| &**service) {
            mesh.namespaces.insert(&service.name.namespace);
            if service.kind == ServiceKind::Kubernetes {
                mesh.services.insert(&service.name, service);
            }
            mesh.select(service);
        }
        mesh.authentication = Authentication::index(snapshot, &mesh.pods);
        mesh
    }

    fn select(&mut self, service: &'a Service) {
        if service.selector.is_empty() {
            return;
        }
        let namespace = Some(&service.name.namespace);
        let known =
            self.selecting.get(namespace, &service.selector).into_iter().flat_map(|known| known.iter().copied());
        let with = known.chain([service]).collect();
        self.selecting.set(namespace, &service.selector, Some(with));
    }

    fn add(&mut self, pod: Pod<'a>) {
        let Pod { workload, .. } = pod;
        let namespace = &*workload.name.namespace;
        self.namespaces.insert(namespace);
        self.by_namespace.entry(namespace).or_default().push(pod);
        for (key, value) in &workload.labels {
            for namespace in [namespace, ""] {
                self.by_label.entry((namespace, key, value)).or_default().push(pod);
                self.labels.entry(namespace).or_default().entry(key).or_default().insert(value);
            }
        }
        let identity = &workload.identity;
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

    /// All pods by name, then the pods of templates.
    pub(super) fn pods(&self) -> &[Pod<'a>] {
        &self.pods
    }

    /// The namespaces with pods, and their pods.
    pub(super) fn by_namespace(&self) -> impl Iterator<Item = (&'a str, &[Pod<'a>])> {
        self.by_namespace.iter().map(|(name, pods)| (*name, pods.as_slice()))
    }

    /// The pods of a namespace.
    pub(super) fn in_namespace(&self, namespace: &str) -> &[Pod<'a>] {
        self.by_namespace.get(namespace).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether the sources have the Namespace or an object in it.
    pub(super) fn knows_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    /// The known namespaces.
    pub(super) fn namespaces(&self) -> impl ExactSizeIterator<Item = &'a str> {
        self.namespaces.iter().copied()
    }

    /// The trust domains of the mesh's identities; usually one.
    pub(super) fn trust_domains(&self) -> &BTreeSet<&'a str> {
        &self.trust_domains
    }

    /// The pods of a namespace, or of all namespaces, with all of these labels. The cost is proportional to the pods
    /// with the rarest label.
    pub(super) fn selected<'m>(
        &'m self,
        namespace: Option<&'m str>,
        labels: &'m Labels,
    ) -> impl Iterator<Item = Pod<'a>> + 'm {
        let of_label = |(key, value): (&'m Arc<str>, &'m Arc<str>)| {
            self.by_label.get(&(namespace.unwrap_or_default(), &**key, &**value))
        };
        let rarest = labels.iter().map(of_label).min_by_key(|pods| pods.map_or(0, Vec::len)).flatten();
        let has_all = |pod: &Pod<'a>| pod.labels.include(labels);
        rarest.into_iter().flatten().copied().filter(has_all)
    }

    /// Keys and values of the labels in use in a namespace, or in all namespaces.
    pub(super) fn labels(&self, namespace: Option<&str>) -> Option<&BTreeMap<&'a str, BTreeSet<&'a str>>> {
        self.labels.get(namespace.unwrap_or_default())
    }

    /// The pods of a service account.
    pub(super) fn account(&self, namespace: &str, name: &str) -> &[Pod<'a>] {
        let account = self.accounts.get(namespace).and_then(|accounts| accounts.get(name));
        account.map(Vec::as_slice).unwrap_or_default()
    }

    /// The service accounts in a namespace that pods have.
    pub(super) fn accounts_of(&self, namespace: &str) -> Option<&BTreeMap<&'a str, Vec<Pod<'a>>>> {
        self.accounts.get(namespace)
    }

    /// Whether the pattern matches the identity of some pod.
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

    /// The pods that a policy selects, or would select if they were in the mesh.
    pub(super) fn protected<'m>(&'m self, policy: &'m AuthorizationPolicy) -> Box<dyn Iterator<Item = Pod<'a>> + 'm> {
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

    /// The pods behind a Kubernetes service: its endpoints, and the pods that its selector matches.
    pub(super) fn behind<'m>(&'m self, name: &'m NamespacedName) -> impl Iterator<Item = Pod<'a>> + 'm {
        self.service(name).into_iter().flat_map(move |service| {
            self.endpoints(service).chain(self.selected(Some(&name.namespace), &service.selector))
        })
    }

    /// The pods among the endpoints of a service.
    pub(super) fn endpoints<'m>(&'m self, service: &'m Service) -> impl Iterator<Item = Pod<'a>> + 'm {
        let named = service.endpoints.iter().filter_map(|endpoint| endpoint.workload.as_ref());
        named.filter_map(|name| self.pod(name))
    }

    /// The pods of templates that a service selects.
    pub(super) fn planned<'m>(&'m self, service: &'m Service) -> impl Iterator<Item = Pod<'a>> + 'm {
        let selected = self.selected(Some(&service.name.namespace), &service.selector);
        selected.filter(Pod::is_planned)
    }

    /// The pod of this name, which is not a pod of a template.
    fn pod(&self, name: &NamespacedName) -> Option<Pod<'a>> {
        let found = self.pods.partition_point(|pod| !pod.is_template() && pod.name < *name);
        self.pods.get(found).copied().filter(|pod| !pod.is_template() && pod.name == *name)
    }

    /// The services that a pod is behind.
    pub(super) fn services_of(&self, pod: &Pod<'a>) -> Vec<&'a Service> {
        if !pod.is_planned() {
            return self.snapshot.services_of(&pod.name).map(|service| &**service).collect();
        }
        let mut found = Vec::new();
        self.selecting.find(&pod.name.namespace, &pod.labels, |services| found.extend(services.iter().copied()));
        found
    }

    /// Whether the manifests are those of a repository: no pod in them is running.
    pub(super) fn is_repository(&self) -> bool {
        self.pods.iter().all(Pod::is_planned)
    }

    /// Whether the sources have a Namespace object of this name.
    pub(super) fn describes(&self, namespace: &str) -> bool {
        self.snapshot.namespaces().any(|known| **known == *namespace)
    }

    /// Whether a service account is declared, even if no pod has it.
    pub(super) fn declares_account(&self, name: &NamespacedName) -> bool {
        self.declared.accounts.contains(name)
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
