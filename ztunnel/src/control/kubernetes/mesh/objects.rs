//! Reads objects of the API into objects of the mesh, and records those that can't be read.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::control::field::Step;
use crate::control::join::{Joiner, Voice};
use crate::control::kubernetes::object::Object;
use crate::control::kubernetes::verdict::{Fault, read};
use crate::control::manifests::{AddressesIn, Hides, PoliciesIn};
use crate::control::objects::{self, Interner, Kind, NETNS, Remark, Said, title};
use crate::control::yaml::Node;
use crate::model::identity::TrustDomain;
use crate::model::origin::Origin;
use crate::model::policy::UnreadPolicies;
use crate::model::problem::{Problem, Severity};
use crate::model::workload::NamespacedName;
use crate::store::change::{Change, Gaps};

/// The existing objects.
#[derive(Debug)]
pub(super) struct Objects {
    joiner: Joiner,
    texts: Interner,
    /// The objects without a readable version, and what each may contain.
    unread: BTreeMap<Arc<str>, Hides>,
    /// The pods and addresses of all objects have been known at some time.
    is_complete: bool,
}

impl Objects {
    pub(super) fn new(trust_domain: TrustDomain) -> Self {
        // A control plane is no node, so it does not need the facts that only the pods' own nodes use.
        let no_node = Some(Arc::from(""));
        Self {
            joiner: Joiner::new(trust_domain, no_node),
            texts: Interner::default(),
            unread: BTreeMap::new(),
            is_complete: false,
        }
    }

    /// Adds or replaces an object.
    pub(super) fn apply(&mut self, kind: Kind, mut object: Object) {
        let name = object.name.clone();
        let (id, origin) = (id(kind, &name), Origin::Object { kind: kind.name(), name: name.clone() });
        let tree = object.tree_mut();
        // A user who may create a pod may write this annotation, which could name any network namespace of the node. So it is
        // ignored.
        let netns = [Step::Key("metadata".into()), Step::Key("annotations".into()), Step::Key(NETNS.into())];
        tree.remove(&netns);
        let hides = Hides::of(kind, &name.namespace, mesh_config(tree));
        let voice = Voice::of(Arc::clone(&id));
        match read(kind, &mut object, &mut self.texts) {
            Ok(Said { name, title, body, remarks }) => {
                let problem = |Remark { message, severity, .. }| Problem {
                    origin: origin.clone(),
                    object: Some(title.clone()),
                    message,
                    severity,
                };
                let problems = remarks.into_iter().map(problem).collect();
                let objects = body.map(|body| objects::Object { name, origin: origin.clone(), body });
                self.unread.remove(&id);
                self.joiner.say(&voice, objects.into_iter().collect(), problems);
            }
            Err(Fault { field, message }) => {
                let last = self.joiner.said(&voice);
                let consequence = match last.is_empty() {
                    false => "the last valid version of the object stays in force".to_owned(),
                    true => consequence(&hides),
                };
                let field = field.map(|field| format!("{field}: ")).unwrap_or_default();
                let problem = Problem {
                    origin,
                    object: Some(title(kind.name(), &name)),
                    message: format!("{field}{message}; {consequence}"),
                    severity: Severity::Error,
                };
                if last.is_empty() {
                    self.unread.insert(id, hides);
                }
                self.joiner.say(&voice, last, vec![problem]);
            }
        }
    }

    /// Removes an object.
    pub(super) fn remove(&mut self, kind: Kind, name: &NamespacedName) {
        let id = id(kind, name);
        self.unread.remove(&id);
        self.joiner.silence(&Voice::of(id));
    }

    /// Whether there are objects and none of them is valid.
    pub(super) fn is_nonsense(&self) -> bool {
        !self.joiner.has_objects() && !self.unread.is_empty()
    }

    /// The problems of the objects themselves.
    pub(super) fn problems(&self) -> Vec<Problem> {
        self.joiner.problems()
    }

    /// The changes, the gaps and the problems.
    pub(super) fn join(&mut self) -> (Vec<Change>, Gaps, Vec<Problem>) {
        let changes = self.joiner.take().changes;
        let partial = self.unread.values().any(|hides| hides.addresses != AddressesIn::Nowhere);
        self.is_complete |= !partial;
        let root = self.joiner.root_namespace();
        let gaps = Gaps { partial, blind: partial && !self.is_complete, unread: self.closed(&root), ..Gaps::default() };
        (changes, gaps, self.joiner.problems())
    }

    /// The namespaces that unreadable policies may protect.
    fn closed(&self, root: &str) -> UnreadPolicies {
        let mut unread = UnreadPolicies::default();
        for (id, hides) in &self.unread {
            match &hides.policies {
                PoliciesIn::Namespaces(namespaces) if !namespaces.contains(root) => {
                    for namespace in namespaces {
                        unread.namespaces.entry(Arc::clone(namespace)).or_insert_with(|| Arc::clone(id));
                    }
                }
                _ => drop(unread.anywhere.get_or_insert_with(|| Arc::clone(id))),
            }
        }
        unread
    }
}

/// The name of an object among the objects of all kinds.
fn id(kind: Kind, name: &NamespacedName) -> Arc<str> {
    title(kind.name(), name).into()
}

/// The text of the mesh's settings in their ConfigMap.
fn mesh_config<'a>(tree: &'a Node<'_>) -> &'a str {
    tree.get("data").and_then(|data| data.get("mesh")).and_then(Node::text).unwrap_or_default()
}

/// The consequence of an object without a readable version.
fn consequence(hides: &Hides) -> String {
    let mut closed = Vec::new();
    if hides.addresses != AddressesIn::Nowhere {
        closed.push("the mesh is not served, because it has not been served before".to_owned());
    }
    match &hides.policies {
        PoliciesIn::Anywhere => closed.push("all pods accept only health probes".to_owned()),
        PoliciesIn::Namespaces(namespaces) if namespaces.is_empty() => {}
        PoliciesIn::Namespaces(namespaces) => {
            let names: Vec<&str> = namespaces.iter().map(|name| &**name).collect();
            closed.push(format!("pods of namespace {} accept only health probes", names.join(", ")));
        }
    }
    if closed.is_empty() {
        return "it is ignored until it is corrected".to_owned();
    }
    format!("until it is corrected, {}", closed.join(" and "))
}
