//! YAML and JSON text to typed objects, with the lines where they stand.
//!
//! Every document is read twice: first only as far as the kinds and the lines are concerned, then as the types that the
//! kinds ask for. Reading it once into a generic tree would lose the lines, and take more memory than both.

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use tracing::debug;

use super::error::FileError;
use crate::control::field::FieldPath;
use crate::control::objects::{FieldError, Kind, MESH_CONFIG, ROOT_NAMESPACE, Resource};
use crate::control::yaml::{self, Marked};

/// One document of a file.
pub(super) struct Document<'a> {
    /// The lines of the file before it.
    lines_before: u64,
    text: &'a str,
}

/// One object of a document.
pub(super) struct Item {
    /// Its line in the file.
    pub(super) line: u64,
    /// Its path in the document: `items[2]`, or empty for a document of its own.
    pub(super) path: FieldPath,
    pub(super) resource: Resource,
}

/// What a document, or an item of a list, is.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Content {
    Object(Kind),
    List,
    /// It means nothing here.
    Other,
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
}

/// What stands beside the items of a List is nothing else: a misspelt field would leave all of them out.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "some fields are checked by being read")]
struct ListHeader {
    api_version: Option<IgnoredAny>,
    kind: Option<IgnoredAny>,
    metadata: Option<IgnoredAny>,
    items: Option<Vec<Marked<Header>>>,
}

impl Header {
    fn is_mesh_config(&self) -> bool {
        self.metadata.as_ref().is_some_and(|metadata| {
            metadata.name.as_deref() == Some(MESH_CONFIG) && metadata.namespace.as_deref() == Some(ROOT_NAMESPACE)
        })
    }

    fn content(&self) -> Result<Content, String> {
        let (Some(version), Some(kind)) = (&self.api_version, &self.kind) else {
            return Err("this is not a Kubernetes object: apiVersion or kind is missing".to_owned());
        };
        // The version inside a group is checked by the type: a known kind in an unknown version is an error.
        let group = version.split_once('/').map_or("", |(group, _)| group);
        Ok(match (group, kind.as_str()) {
            ("", "Namespace") => Content::Object(Kind::Namespace),
            ("", "Node") => Content::Object(Kind::Node),
            ("", "ConfigMap") if self.is_mesh_config() => Content::Object(Kind::Mesh),
            ("", "Pod") => Content::Object(Kind::Pod),
            ("", "Service") => Content::Object(Kind::Service),
            ("", "List") => Content::List,
            ("discovery.k8s.io", "EndpointSlice") => Content::Object(Kind::Slice),
            ("networking.istio.io", "ServiceEntry") => Content::Object(Kind::Entry),
            ("security.istio.io", "AuthorizationPolicy") => Content::Object(Kind::Authorization),
            ("security.istio.io", "PeerAuthentication") => Content::Object(Kind::PeerAuthentication),
            ("security.istio.io", "RequestAuthentication") => Content::Object(Kind::RequestAuthentication),
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
                Content::Other
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

/// The first look at a whole document.
enum Headers {
    One(Marked<Header>, Content),
    /// The items of a list.
    List(Vec<Marked<Header>>, Vec<Content>),
}

impl Document<'_> {
    /// Reads the objects of the document.
    pub(super) fn read(&self, file: &Arc<str>) -> Result<Vec<Item>, FileError> {
        let failed = |error| self.unreadable(file, error);
        let Some(headers) = self.headers(file)? else { return Ok(Vec::new()) };
        match headers {
            Headers::One(header, content) => {
                let resource = yaml::read_seed(self.text, content).map_err(failed)?;
                Ok(self.item(&header, FieldPath::default(), resource).into_iter().collect())
            }
            Headers::List(headers, contents) => {
                let resources = yaml::read_seed(self.text, ListSeed(&contents)).map_err(failed)?;
                let items = headers.iter().zip(resources).enumerate();
                let path = |index| FieldPath::of("items").index(index);
                Ok(items.filter_map(|(index, (header, resource))| self.item(header, path(index), resource)).collect())
            }
        }
    }

    /// Kind and namespace of every object, whatever else is wrong with them; `None` where not even that can be read.
    pub(super) fn kinds(&self) -> Option<Vec<(Content, Option<String>)>> {
        let of = |header: Marked<Header>| header.value.metadata.and_then(|metadata| metadata.namespace);
        Some(match self.headers(&"".into()).ok()? {
            None => Vec::new(),
            Some(Headers::One(header, content)) => vec![(content, of(header))],
            Some(Headers::List(headers, contents)) => contents.into_iter().zip(headers.into_iter().map(of)).collect(),
        })
    }

    /// Line in the file and column of each field; see [`yaml::locate`].
    pub(super) fn locate(&self, fields: &[FieldPath]) -> Vec<Option<(u64, u64)>> {
        let in_file = |(line, column)| (self.lines_before + line, column);
        yaml::locate(self.text, fields).into_iter().map(|place| place.map(in_file)).collect()
    }

    /// What is wrong with a field of an object in this line of the file. The field's path begins at the document.
    pub(super) fn wrong_field(&self, file: &Arc<str>, line: u64, error: FieldError) -> FileError {
        let FieldError { field, message } = error;
        let place = self.locate(std::slice::from_ref(&field)).into_iter().flatten().next();
        let (line, column) = place.map_or((line, None), |(line, column)| (line, Some(column)));
        FileError { file: Arc::clone(file), line: Some(line), column, field: Some(field.to_string()), message }
    }

    /// `None` where nothing stands.
    fn headers(&self, file: &Arc<str>) -> Result<Option<Headers>, FileError> {
        let failed = |error| self.unreadable(file, error);
        let parsed = yaml::read::<Option<Marked<Header>>>(self.text);
        let Some(header) = parsed.map_err(failed)? else { return Ok(None) };
        let content = self.content(file, &header)?;
        if content != Content::List {
            return Ok(Some(Headers::One(header, content)));
        }
        let list: ListHeader = yaml::read(self.text).map_err(failed)?;
        let headers = list.items.unwrap_or_default();
        let contents = headers.iter().map(|header| self.content(file, header)).collect::<Result<Vec<_>, _>>()?;
        if let Some((header, _)) = headers.iter().zip(&contents).find(|(_, content)| **content == Content::List) {
            return Err(self.wrong(file, header, "a List inside a List is not read".to_owned()));
        }
        Ok(Some(Headers::List(headers, contents)))
    }

    fn content(&self, file: &Arc<str>, header: &Marked<Header>) -> Result<Content, FileError> {
        header.value.content().map_err(|message| self.wrong(file, header, message))
    }

    fn item(&self, header: &Marked<Header>, path: FieldPath, resource: Option<Resource>) -> Option<Item> {
        Some(Item { line: self.lines_before + header.line, path, resource: resource? })
    }

    fn wrong(&self, file: &Arc<str>, header: &Marked<Header>, message: String) -> FileError {
        let line = Some(self.lines_before + header.line);
        FileError { file: Arc::clone(file), line, column: None, field: None, message }
    }

    fn unreadable(&self, file: &Arc<str>, error: yaml::Error) -> FileError {
        let yaml::Error { place, field, message } = error;
        FileError {
            file: Arc::clone(file),
            line: place.map(|(line, _)| self.lines_before + line),
            column: place.map(|(_, column)| column),
            field: field.map(|field| field.to_string()),
            message,
        }
    }
}

/// Reads an object as the type that its kind asks for.
impl<'de> DeserializeSeed<'de> for Content {
    type Value = Option<Resource>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        match self {
            Self::Object(kind) => kind.deserialize(deserializer).map(Some),
            Self::List | Self::Other => IgnoredAny::deserialize(deserializer).map(|_| None),
        }
    }
}

/// Reads a `kind: List` whose items are these.
struct ListSeed<'a>(&'a [Content]);

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

struct ItemsSeed<'a>(&'a [Content]);

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
        for content in self.0 {
            let resource = items.next_element_seed(*content)?;
            resources.push(resource.ok_or_else(|| de::Error::invalid_length(resources.len(), &self))?);
        }
        // The sequence has no more elements, which has to be seen for it to be over.
        items.next_element::<IgnoredAny>()?;
        Ok(resources)
    }
}
