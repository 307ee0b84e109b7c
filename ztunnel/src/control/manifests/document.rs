//! YAML and JSON text to Kubernetes resources, with the places where they stand.
//!
//! Every document is read twice: first only as far as the kind and the lines are concerned, then as the type from
//! `k8s-openapi` that the kind asks for. Reading it once into a generic tree would lose the lines.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_saphyr::{DefaultMessageFormatter, Error, MessageFormatter, Options, Spanned};
use tracing::debug;

use super::FileError;
use super::authorization::AuthorizationPolicy;
use super::entry::ServiceEntry;
use super::field::{self, FieldError};
use super::mesh::{MESH_CONFIG, ROOT_NAMESPACE};
use super::peer_authentication::PeerAuthentication;

/// One document of a file.
pub(super) struct Document<'a> {
    /// The lines of the file before it.
    lines_before: u64,
    text: &'a str,
}

/// One resource of a document.
pub(super) struct Item {
    pub(super) place: Place,
    pub(super) resource: Resource,
}

/// Where a resource stands and what it is called.
pub(super) struct Place {
    pub(super) line: u64,
    /// The lines of the file before its document.
    pub(super) lines_before: u64,
    /// Its place in a list, such as `items[2].`; empty for a document of its own.
    path: String,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    /// The lines of its annotations.
    pub(super) annotations: BTreeMap<String, u64>,
}

impl Place {
    /// What is wrong with a field of which only the name is known.
    pub(super) fn wrong(&self, file: &Arc<str>, field: &str, message: String) -> FileError {
        let (file, field) = (Arc::clone(file), Some(field.to_owned()));
        FileError { file, line: Some(self.line), column: None, field, message }
    }

    /// What is wrong with a field, as seen from the file.
    pub(super) fn error(&self, file: &Arc<str>, error: FieldError) -> FileError {
        let FieldError { place: (line, column), field, message } = error;
        FileError {
            file: Arc::clone(file),
            line: Some(self.lines_before + line),
            column: Some(column),
            field: Some(format!("{}{field}", self.path)),
            message,
        }
    }
}

/// A resource of a kind that means something here.
pub(super) enum Resource {
    Namespace(Box<Namespace>),
    Node(Box<Node>),
    Pod(Box<Pod>),
    Service(Box<Service>),
    Slice(Box<EndpointSlice>),
    Entry(Box<ServiceEntry>),
    /// Istio's mesh-wide settings; other ConfigMaps mean nothing.
    Mesh(Box<ConfigMap>),
    Authorization(Box<AuthorizationPolicy>),
    PeerAuthentication(Box<PeerAuthentication>),
    /// A rule that people rely on and that can't be carried out here.
    RequestAuthentication,
}

impl Resource {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "Namespace",
            Self::Node(_) => "Node",
            Self::Pod(_) => "Pod",
            Self::Service(_) => "Service",
            Self::Slice(_) => "EndpointSlice",
            Self::Entry(_) => "ServiceEntry",
            Self::Mesh(_) => "ConfigMap",
            Self::Authorization(_) => "AuthorizationPolicy",
            Self::PeerAuthentication(_) => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
        }
    }

    pub(super) fn is_namespaced(&self) -> bool {
        !matches!(self, Self::Namespace(_) | Self::Node(_))
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    Slice,
    Entry,
    Mesh,
    Authorization,
    PeerAuthentication,
    RequestAuthentication,
    List,
    Unknown,
}

/// The first look at a document or at an item of a list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<HeaderMetadata>,
}

#[derive(Deserialize)]
struct HeaderMetadata {
    namespace: Option<String>,
    name: Option<String>,
    annotations: Option<BTreeMap<String, Spanned<IgnoredAny>>>,
}

/// What stands beside the items of a List is nothing else: a misspelt field would leave all of them out.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "some fields are checked by being read")]
struct ListHeader {
    api_version: Option<IgnoredAny>,
    kind: Option<IgnoredAny>,
    metadata: Option<IgnoredAny>,
    items: Option<Vec<Spanned<Header>>>,
}

impl Header {
    fn is_mesh_config(&self) -> bool {
        self.metadata.as_ref().is_some_and(|metadata| {
            metadata.name.as_deref() == Some(MESH_CONFIG) && metadata.namespace.as_deref() == Some(ROOT_NAMESPACE)
        })
    }

    fn kind(&self) -> Result<Kind, String> {
        let (Some(version), Some(kind)) = (&self.api_version, &self.kind) else {
            return Err("this is not a Kubernetes object: apiVersion or kind is missing".to_owned());
        };
        // The version inside a group is checked by the type: a known kind in an unknown version is an error.
        let group = version.split_once('/').map_or("", |(group, _)| group);
        Ok(match (group, kind.as_str()) {
            ("", "Namespace") => Kind::Namespace,
            ("", "Node") => Kind::Node,
            ("", "ConfigMap") if self.is_mesh_config() => Kind::Mesh,
            ("", "Pod") => Kind::Pod,
            ("", "Service") => Kind::Service,
            ("", "List") => Kind::List,
            ("discovery.k8s.io", "EndpointSlice") => Kind::Slice,
            ("networking.istio.io", "ServiceEntry") => Kind::Entry,
            ("security.istio.io", "AuthorizationPolicy") => Kind::Authorization,
            ("security.istio.io", "PeerAuthentication") => Kind::PeerAuthentication,
            ("security.istio.io", "RequestAuthentication") => Kind::RequestAuthentication,
            (
                "" | "discovery.k8s.io" | "networking.istio.io" | "security.istio.io",
                "NamespaceList"
                | "NodeList"
                | "ConfigMapList"
                | "ServiceEntryList"
                | "PodList"
                | "ServiceList"
                | "EndpointSliceList"
                | "AuthorizationPolicyList"
                | "PeerAuthenticationList"
                | "RequestAuthenticationList",
            ) => {
                return Err(format!(
                    "kind {kind} is not read: write kind: List, with apiVersion and kind in each item"
                ));
            }
            // Whoever wrote it relies on it: it must not go for another's.
            ("security.istio.io", _) => {
                return Err(format!(
                    "{kind:?} is no kind of security.istio.io: write AuthorizationPolicy, PeerAuthentication or \
                     RequestAuthentication"
                ));
            }
            (group, "AuthorizationPolicy" | "PeerAuthentication" | "RequestAuthentication")
                if group.is_empty() || group.ends_with("istio.io") =>
            {
                return Err(format!("{version:?} has no {kind}: write apiVersion: security.istio.io/v1"));
            }
            (_, kind) if kind.eq_ignore_ascii_case("List") => {
                return Err("what is in it is not read: write apiVersion: v1 and kind: List".to_owned());
            }
            _ => {
                debug!(api_version = version, kind, "a manifest of another kind is ignored");
                Kind::Unknown
            }
        })
    }
}

/// Cuts a file at its document markers. YAML forbids a marker at a line's start inside any scalar, so lines decide.
pub(super) fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut lines_before, mut has_content) = (0, 0, false);
    let mut position = 0;
    for (line_number, line) in (0u64..).zip(text.split_inclusive('\n')) {
        let is_marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        // Comments and directives before a marker belong to the document after it.
        if is_marker && has_content {
            documents.push(Document { lines_before, text: text.get(start..position).unwrap_or_default() });
            (start, lines_before, has_content) = (position, line_number, false);
        }
        let bare = line.strip_prefix("---").filter(|_| is_marker).unwrap_or(line).trim();
        has_content |= !(bare.is_empty() || bare.starts_with(['#', '%']) || bare == "...");
        position += line.len();
    }
    if has_content {
        documents.push(Document { lines_before, text: text.get(start..).unwrap_or_default() });
    }
    documents
}

/// Reads one document.
pub(super) fn read(file: &Arc<str>, document: &Document<'_>) -> Result<Vec<Item>, FileError> {
    let text = document.text;
    let failed = |error: &Error| document.error(file, error);
    let Some(headers) = document.headers(file)? else { return Ok(Vec::new()) };
    match headers {
        Headers::One(header, kind) => {
            let resource = deserialize(text, KindSeed(kind)).map_err(|error| failed(&error))?;
            Ok(document.item(header, String::new(), resource).into_iter().collect())
        }
        Headers::List(headers, kinds) => {
            let resources = deserialize(text, ListSeed(&kinds)).map_err(|error| failed(&error))?;
            let items =
                headers.into_iter().zip(resources).enumerate().filter_map(|(index, (header, resource))| {
                    document.item(header, format!("items[{index}]."), resource)
                });
            Ok(items.collect())
        }
    }
}

/// Kind and namespace of every resource of a document, whatever else is wrong with them; `None` where not even that can
/// be read.
pub(super) fn kinds(document: &Document<'_>) -> Option<Vec<(Kind, Option<String>)>> {
    let of = |header: Spanned<Header>| header.value.metadata.and_then(|metadata| metadata.namespace);
    Some(match document.headers(&"".into()).ok()? {
        None => Vec::new(),
        Some(Headers::One(header, kind)) => vec![(kind, of(header))],
        Some(Headers::List(headers, kinds)) => kinds.into_iter().zip(headers.into_iter().map(of)).collect(),
    })
}

/// The first look at a whole document.
enum Headers {
    One(Spanned<Header>, Kind),
    /// The items of a list.
    List(Vec<Spanned<Header>>, Vec<Kind>),
}

impl Document<'_> {
    /// `None` where nothing stands.
    fn headers(&self, file: &Arc<str>) -> Result<Option<Headers>, FileError> {
        let failed = |error: Error| self.error(file, &error);
        let parsed = serde_saphyr::from_str_with_options::<Option<Spanned<Header>>>(self.text, options());
        let Some(header) = parsed.map_err(failed)? else { return Ok(None) };
        let kind = self.kind(file, &header)?;
        if kind != Kind::List {
            return Ok(Some(Headers::One(header, kind)));
        }
        let list: ListHeader = serde_saphyr::from_str_with_options(self.text, options()).map_err(failed)?;
        let headers = list.items.unwrap_or_default();
        let kinds = headers.iter().map(|header| self.kind(file, header)).collect::<Result<Vec<_>, _>>()?;
        if let Some((header, _)) = headers.iter().zip(&kinds).find(|(_, kind)| **kind == Kind::List) {
            return Err(self.wrong(file, header, "a List inside a List is not read".to_owned()));
        }
        Ok(Some(Headers::List(headers, kinds)))
    }

    fn kind(&self, file: &Arc<str>, header: &Spanned<Header>) -> Result<Kind, FileError> {
        header.value.kind().map_err(|message| self.wrong(file, header, message))
    }

    fn item(&self, header: Spanned<Header>, path: String, resource: Option<Resource>) -> Option<Item> {
        let line = self.line(header.referenced.line());
        let (namespace, name, annotations) = match header.value.metadata {
            Some(metadata) => (metadata.namespace, metadata.name, metadata.annotations.unwrap_or_default()),
            None => (None, None, BTreeMap::new()),
        };
        let annotations =
            annotations.into_iter().map(|(key, value)| (key, self.line(value.referenced.line()))).collect();
        Some(Item {
            place: Place { line, lines_before: self.lines_before, path, namespace, name, annotations },
            resource: resource?,
        })
    }

    fn line(&self, line_in_document: u64) -> u64 {
        self.lines_before + line_in_document
    }

    fn wrong(&self, file: &Arc<str>, header: &Spanned<Header>, message: String) -> FileError {
        let line = Some(self.line(header.referenced.line()));
        FileError { file: Arc::clone(file), line, column: None, field: None, message }
    }

    fn error(&self, file: &Arc<str>, error: &Error) -> FileError {
        let place = error.location().map(|location| (location.line(), location.column()));
        FileError {
            file: Arc::clone(file),
            line: place.map(|(line, _)| self.line(line)),
            column: place.map(|(_, column)| column),
            field: place.and_then(|(line, column)| field::path_at(self.text, line, column)),
            message: message(error),
        }
    }
}

/// The error's own words: place and excerpt are told otherwise, and control characters must not reach a log.
pub(super) fn message(error: &Error) -> String {
    let mut inner = error.without_snippet();
    while let Error::AliasError { error, .. } = inner {
        inner = error.without_snippet();
    }
    let text = DefaultMessageFormatter.format_message(inner);
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { clean.extend(c.escape_default()) } else { clean.push(c) }
    }
    clean
}

/// Duplicate keys are errors and the limits on aliases stay as they are by default; the limits on size are raised to
/// what manifests fit into 16 MiB.
pub(super) fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 10_000_000,
            max_nodes: 4_000_000,
        },
        with_snippet: false,
    }
}

fn deserialize<'de, S: DeserializeSeed<'de>>(text: &'de str, seed: S) -> Result<S::Value, Error> {
    serde_saphyr::with_deserializer_from_str_with_options(text, options(), |deserializer| {
        seed.deserialize(deserializer)
    })
}

/// Reads a value as the type that a kind asks for.
struct KindSeed(Kind);

impl<'de> DeserializeSeed<'de> for KindSeed {
    type Value = Option<Resource>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        Ok(Some(match self.0 {
            Kind::Namespace => Resource::Namespace(Box::deserialize(deserializer)?),
            Kind::Node => Resource::Node(Box::deserialize(deserializer)?),
            Kind::Pod => Resource::Pod(Box::deserialize(deserializer)?),
            Kind::Service => Resource::Service(Box::deserialize(deserializer)?),
            Kind::Slice => Resource::Slice(Box::deserialize(deserializer)?),
            Kind::Entry => Resource::Entry(Box::deserialize(deserializer)?),
            Kind::Mesh => Resource::Mesh(Box::deserialize(deserializer)?),
            Kind::Authorization => Resource::Authorization(Box::deserialize(deserializer)?),
            Kind::PeerAuthentication => Resource::PeerAuthentication(Box::deserialize(deserializer)?),
            Kind::RequestAuthentication => {
                IgnoredAny::deserialize(deserializer)?;
                Resource::RequestAuthentication
            }
            Kind::List | Kind::Unknown => {
                IgnoredAny::deserialize(deserializer)?;
                return Ok(None);
            }
        }))
    }
}

/// Reads a `kind: List` whose items have these kinds.
struct ListSeed<'a>(&'a [Kind]);

impl<'de> DeserializeSeed<'de> for ListSeed<'_> {
    type Value = Vec<Option<Resource>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ListSeed<'_> {
    type Value = Vec<Option<Resource>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a List")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" && !self.0.is_empty() {
                items = map.next_value_seed(ItemsSeed(self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(items)
    }
}

struct ItemsSeed<'a>(&'a [Kind]);

impl<'de> DeserializeSeed<'de> for ItemsSeed<'_> {
    type Value = Vec<Option<Resource>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ItemsSeed<'_> {
    type Value = Vec<Option<Resource>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut resources = Vec::with_capacity(self.0.len());
        for kind in self.0 {
            let resource = items.next_element_seed(KindSeed(*kind))?;
            resources.push(resource.ok_or_else(|| de::Error::invalid_length(resources.len(), &self))?);
        }
        // The sequence has no more elements, which has to be seen for it to be over.
        items.next_element::<IgnoredAny>()?;
        Ok(resources)
    }
}
