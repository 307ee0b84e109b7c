//! The content of a document: an object of a kind that is read here, a list of objects, or something else.

use std::sync::Arc;

use tracing::debug;

use super::split::Inherited;
use crate::control::field::Step;
use crate::control::objects::{Kind, MESH_CONFIG, ROOT_NAMESPACE, Unenforced, check_name, title};
use crate::control::yaml::Node;
use crate::model::workload::NamespacedName;

/// The content of a document, or of an item of a list.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    Object(Kind),
    /// A list. `apiVersion` and `kind` of its items, if it is a typed list.
    List(Option<Arc<Inherited>>),
    /// A Kubernetes object of a kind that has no meaning here.
    Other,
    /// Not a Kubernetes object.
    Stranger,
}

/// Why the content of a document cannot be determined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unclear {
    pub(super) message: String,
    /// The kind that was probably meant.
    pub(super) kind: Option<Kind>,
    /// It is some kind of policy.
    pub(super) is_policy: bool,
}

impl Unclear {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), kind: None, is_policy: false }
    }
}

/// The most heads that an object with repeated keys may have.
const MOST_HEADS: usize = 64;

/// The head of an object.
#[derive(Clone)]
pub(super) struct Header<'n> {
    version: Option<&'n str>,
    kind: Option<&'n str>,
    namespace: Option<&'n str>,
    name: Option<&'n str>,
    /// It has a field that objects have and other files do not have.
    looks_like_object: bool,
}

impl<'n> Header<'n> {
    pub(super) fn of(node: &'n Node<'_>, inherited: Option<&'n Inherited>) -> Self {
        let text = |key: &str| node.get(key).and_then(Node::text);
        let metadata = |key: &str| node.get("metadata").and_then(|metadata| metadata.get(key)).and_then(Node::text);
        let given = |key: &str| node.get(key).is_some_and(|value| !value.is_null());
        Self {
            version: text("apiVersion")
                .or(inherited.filter(|_| !given("apiVersion")).map(|list| list.version.as_str())),
            kind: text("kind").or(inherited.filter(|_| !given("kind")).map(|list| list.kind.as_str())),
            namespace: metadata("namespace"),
            name: metadata("name"),
            looks_like_object: ["metadata", "spec", "items", "status"].iter().any(|key| node.get(key).is_some()),
        }
    }

    /// `metadata.namespace`, or `default`.
    pub(super) fn namespace(&self) -> &'n str {
        self.namespace.filter(|namespace| !namespace.is_empty()).unwrap_or("default")
    }

    pub(super) fn name(&self) -> Option<&'n str> {
        self.name
    }

    /// Kind, namespace and name as they are written, if they are valid.
    pub(super) fn title(&self) -> Option<String> {
        let kind = self.kind.filter(|kind| kind.chars().all(|c| c.is_ascii_alphanumeric()))?;
        let name = self.name.filter(|name| check_name(name).is_ok())?;
        let namespace = self.namespace.filter(|namespace| !namespace.is_empty()).unwrap_or_default();
        let is_valid = namespace.is_empty() || check_name(namespace).is_ok();
        is_valid.then(|| title(kind, &NamespacedName::new(namespace, name)))
    }

    /// Whether a field of an object belongs to its head.
    pub(super) fn includes(field: &[Step]) -> bool {
        let key = |step: &Step| match step {
            Step::Key(key) => Some(String::from(&**key)),
            Step::Index(_) => None,
        };
        let keys: Option<Vec<String>> = field.iter().take(2).map(key).collect();
        let keys = keys.unwrap_or_default();
        match keys.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["<<", ..] | ["metadata", "<<"] => true,
            ["apiVersion" | "kind" | "metadata"] | ["metadata", "name" | "namespace"] => field.len() == keys.len(),
            _ => false,
        }
    }

    /// The heads that the object may have if these fields of its head count instead of those with the same keys.
    /// `None`: that is not known.
    pub(super) fn possible<'f>(&self, fields: impl Iterator<Item = (&'f [Step], &'f Node<'f>)>) -> Option<Vec<Self>>
    where
        'f: 'n,
    {
        let mut heads = vec![self.clone()];
        for (field, value) in fields {
            let of = |key: &str| value.get(key).and_then(Node::text);
            let other = |head: &Self| {
                let mut head = head.clone();
                match field {
                    [Step::Key(one)] if **one == *"apiVersion" => head.version = value.text(),
                    [Step::Key(one)] if **one == *"kind" => head.kind = value.text(),
                    [Step::Key(one)] if **one == *"metadata" => {
                        (head.namespace, head.name) = (of("namespace"), of("name"));
                    }
                    [Step::Key(_), Step::Key(one)] if **one == *"namespace" => head.namespace = value.text(),
                    [Step::Key(_), Step::Key(one)] if **one == *"name" => head.name = value.text(),
                    _ => return None,
                }
                Some(head)
            };
            let others: Vec<Self> = heads.iter().map(other).collect::<Option<_>>()?;
            heads.extend(others);
            if heads.len() > MOST_HEADS {
                return None;
            }
        }
        Some(heads)
    }

    fn is_mesh_config(&self) -> bool {
        self.name == Some(MESH_CONFIG) && self.namespace == Some(ROOT_NAMESPACE)
    }

    /// The content that the head belongs to. `is_item`: the head is of an item of a list, which surely is meant as an
    /// object.
    pub(super) fn content(&self, is_item: bool) -> Result<Content, Unclear> {
        let (version, kind) = match (self.version, self.kind) {
            (Some(version), Some(kind)) => (version, kind),
            (None, None) if is_item => return Err(Unclear::new("apiVersion and kind are missing: write them")),
            (None, None) => return Ok(Content::Stranger),
            (None, Some(kind)) => return self.without_version(kind),
            (Some(version), None) if is_item || (self.looks_like_object && is_of_groups_read(version)) => {
                let is_policy = group(version) == "security.istio.io";
                return Err(Unclear {
                    is_policy,
                    ..Unclear::new(format!("apiVersion is {version:?}, and kind is missing: write it"))
                });
            }
            (Some(_), None) => return Ok(Content::Stranger),
        };
        // The version inside a group is checked by the type: a known kind in an unknown version is an error.
        let group = group(version);
        if group.is_empty() && kind == "List" {
            return Ok(Content::List(None));
        }
        if let Some(item) =
            kind.strip_suffix("List").filter(|item| *item == "ConfigMap" || known(group, item).is_some())
        {
            let inherited = Inherited { version: version.to_owned(), kind: item.to_owned() };
            return Ok(Content::List(Some(Arc::new(inherited))));
        }
        if let Some(known) = known(group, kind) {
            return Ok(Content::Object(known));
        }
        Ok(match (group, kind) {
            ("", "ConfigMap") if self.is_mesh_config() => Content::Object(Kind::Mesh),
            // The author relies on this object, so it must not count as a kind that another program enforces.
            ("security.istio.io", _) => {
                let message = format!(
                    "{kind:?} is not a kind of security.istio.io: write AuthorizationPolicy, PeerAuthentication or \
                     RequestAuthentication"
                );
                return Err(Unclear { is_policy: true, ..Unclear::new(message) });
            }
            (group, "AuthorizationPolicy" | "PeerAuthentication" | "RequestAuthentication")
                if group.is_empty() || group.ends_with("istio.io") =>
            {
                let message = format!("{version:?} has no {kind}: write apiVersion: security.istio.io/v1");
                return Err(Unclear { kind: known("security.istio.io", kind), is_policy: true, message });
            }
            (_, kind) if kind.eq_ignore_ascii_case("List") => {
                return Err(Unclear::new(format!(
                    "apiVersion {version:?} and kind {kind:?} are not a list of objects: write apiVersion: v1 and \
                     kind: List"
                )));
            }
            (group, kind) => match Unenforced::of(group, kind) {
                Some(kind) => Content::Object(Kind::Unenforced(kind)),
                None => {
                    debug!(api_version = version, kind, "a manifest of another kind is ignored");
                    Content::Other
                }
            },
        })
    }

    fn without_version(&self, kind: &str) -> Result<Content, Unclear> {
        const GROUPS: [&str; 4] = ["", "discovery.k8s.io", "networking.istio.io", "security.istio.io"];
        let item = kind.strip_suffix("List").unwrap_or(kind);
        let Some((group, known)) = GROUPS.iter().find_map(|group| Some((group, known(group, item)?))) else {
            return if kind == "List" && self.looks_like_object {
                Err(Unclear::new("kind is List, and apiVersion is missing: write apiVersion: v1"))
            } else {
                Ok(Content::Stranger)
            };
        };
        let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
        let message = format!("kind is {kind}, and apiVersion is missing: write apiVersion: {version}");
        Err(Unclear { message, kind: (item == kind).then_some(known), is_policy: *group == "security.istio.io" })
    }
}

fn group(version: &str) -> &str {
    version.split_once('/').map_or("", |(group, _)| group)
}

fn is_of_groups_read(version: &str) -> bool {
    matches!(group(version), "discovery.k8s.io" | "networking.istio.io" | "security.istio.io")
        || (group(version).is_empty() && version.starts_with('v'))
}

/// The kinds that are read, except the mesh's ConfigMap, which is recognised by its name.
fn known(group: &str, kind: &str) -> Option<Kind> {
    Some(match (group, kind) {
        ("", "Namespace") => Kind::Namespace,
        ("", "Node") => Kind::Node,
        ("", "Pod") => Kind::Pod,
        ("", "Service") => Kind::Service,
        ("", "Endpoints") => Kind::Endpoints,
        ("discovery.k8s.io", "EndpointSlice") => Kind::Slice,
        ("networking.istio.io", "ServiceEntry") => Kind::Entry,
        ("networking.istio.io", "WorkloadEntry") => Kind::WorkloadEntry,
        ("security.istio.io", "AuthorizationPolicy") => Kind::Authorization,
        ("security.istio.io", "PeerAuthentication") => Kind::PeerAuthentication,
        ("security.istio.io", "RequestAuthentication") => Kind::RequestAuthentication,
        _ => return None,
    })
}

/// The only version of a kind that is read. `None`: the type checks the version, or every version is read.
pub(super) fn version(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Namespace | Kind::Node | Kind::Pod | Kind::Service | Kind::Endpoints | Kind::Mesh => Some("v1"),
        Kind::Slice => Some("discovery.k8s.io/v1"),
        _ => None,
    }
}
