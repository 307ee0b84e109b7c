//! Kubernetes manifests to the daemon's model. Pure: texts go in, workloads, services and problems come out.
//!
//! Two steps. [`parse`] takes one file's text and either fails as a whole, so that the caller can keep what the file
//! said before, or gives its objects together with what is wrong inside them. [`assemble`] joins the objects of all
//! files, since what a Pod means depends on its Namespace and what a Service leads to depends on the Pods.

mod annotations;
mod assemble;
mod authorization;
mod bounded;
#[cfg(any(test, fuzzing))]
pub mod check;
mod controller;
mod document;
mod endpoints;
mod entry;
mod field;
mod mesh;
mod node;
mod peer_authentication;
mod pod;
mod probe;
mod security;
mod service;
mod unread;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use serde_saphyr::Spanned;
use thiserror::Error;

use self::annotations::Annotations;
use self::authorization::AuthorizationManifest;
use self::document::{Item, Place, Resource};
use self::entry::EntryManifest;
use self::mesh::MeshSettings;
use self::peer_authentication::PeerAuthenticationManifest;
use self::pod::PodManifest;
use self::service::{ServiceManifest, SliceManifest};
use crate::model::locality::{Distribution, Locality};
use crate::model::origin::Origin;
use crate::model::problem::{Problem, Severity};
use crate::model::workload::NamespacedName;

pub use self::annotations::{EXPORT_TO, TRAFFIC_DISTRIBUTION};
pub use self::assemble::{Assembled, assemble};
pub use self::authorization::DRY_RUN;
pub use self::mesh::{MESH_CONFIG, ROOT_NAMESPACE};
pub use self::pod::{EXCLUDE_INBOUND_PORTS, EXCLUDE_OUTBOUND_CIDRS, EXCLUDE_OUTBOUND_PORTS, MODE_LABEL, NETNS};
pub use self::unread::{PoliciesIn, policies_in};

/// Why a file counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct FileError {
    /// The file's name relative to the mesh folder.
    pub file: Arc<str>,
    /// Line, counted from 1.
    pub line: Option<u64>,
    /// Column, counted from 1 in characters.
    pub column: Option<u64>,
    /// Path of the field in its document, such as `spec.containers[0].ports`.
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        for place in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{place}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ": {field}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl From<FileError> for Problem {
    fn from(error: FileError) -> Self {
        let field = error.field.map(|field| format!("{field}: ")).unwrap_or_default();
        Self {
            origin: Origin::File { file: error.file, line: error.line },
            object: None,
            message: format!("{field}{}", error.message),
            severity: Severity::Error,
        }
    }
}

/// What one file says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FileContent {
    objects: Vec<Object>,
    problems: Vec<Problem>,
}

/// One object of a file, read but not yet related to the others.
#[derive(Debug, Clone, PartialEq)]
struct Object {
    line: u64,
    name: NamespacedName,
    body: Body,
}

#[derive(Debug, Clone, PartialEq)]
enum Body {
    Namespace(NamespaceManifest),
    Node(Locality),
    Pod(Box<PodManifest>),
    Service(Box<ServiceManifest>),
    Slice(Box<SliceManifest>),
    Entry(Box<EntryManifest>),
    Mesh(MeshSettings),
    Authorization(Box<AuthorizationManifest>),
    PeerAuthentication(Box<PeerAuthenticationManifest>),
}

/// What a namespace says to what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct NamespaceManifest {
    /// Its pods are in the mesh.
    labelled: bool,
    /// Which endpoints its services prefer.
    distribution: Option<Distribution>,
}

impl Body {
    fn kind(&self) -> &'static str {
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
        }
    }
}

impl Object {
    /// How it is called in problems. A namespace is not inside one.
    fn title(&self) -> String {
        title(self.body.kind(), &self.name)
    }
}

fn title(kind: &str, name: &NamespacedName) -> String {
    if name.namespace.is_empty() { format!("{kind} {}", name.name) } else { format!("{kind} {name}") }
}

/// Collects the problems of one object.
struct Report<'a> {
    file: &'a Arc<str>,
    line: u64,
    /// The lines of the file before the object's document.
    lines_before: u64,
    object: String,
    problems: &'a mut Vec<Problem>,
}

impl Report<'_> {
    /// Something counts for nothing, or is not done.
    fn error(&mut self, message: impl Into<String>) {
        self.add(self.line, message.into(), Severity::Error);
    }

    fn error_at(&mut self, line: u64, message: impl Into<String>) {
        self.add(line, message.into(), Severity::Error);
    }

    /// Something may not mean what it was meant to.
    fn warn(&mut self, message: impl Into<String>) {
        self.add(self.line, message.into(), Severity::Warning);
    }

    fn warn_at(&mut self, line: u64, message: impl Into<String>) {
        self.add(line, message.into(), Severity::Warning);
    }

    /// Where a value stands in the file.
    fn line_of<T>(&self, value: &Spanned<T>) -> u64 {
        self.lines_before + value.referenced.line()
    }

    fn add(&mut self, line: u64, message: String, severity: Severity) {
        let origin = Origin::line_of(Arc::clone(self.file), line);
        self.problems.push(Problem { origin, object: Some(self.object.clone()), message, severity });
    }
}

/// Reads one file: YAML or JSON, any number of documents, `kind: List` included. `file` is only for messages.
pub fn parse(file: &Arc<str>, text: &str) -> Result<FileContent, FileError> {
    let mut content = FileContent::default();
    for document in document::split(text) {
        for item in document::read(file, &document)? {
            read_item(file, item, &mut content)?;
        }
    }
    Ok(content)
}

/// Where each object comes from, by kind and name; of two with one name, the first, which counts.
pub fn origins<'a>(
    files: impl IntoIterator<Item = (&'a Arc<str>, &'a FileContent)>,
) -> HashMap<(&'static str, NamespacedName), Origin> {
    let mut origins = HashMap::new();
    for (file, content) in files {
        for object in &content.objects {
            let key = (object.body.kind(), object.name.clone());
            origins.entry(key).or_insert_with(|| Origin::line_of(Arc::clone(file), object.line));
        }
    }
    origins
}

fn read_item(file: &Arc<str>, item: Item, content: &mut FileContent) -> Result<(), FileError> {
    let Item { place, resource } = item;
    let wrong = |field: &str, message: String| place.wrong(file, field, message);
    let namespaced = resource.is_namespaced();
    let name = place.name.as_deref().ok_or_else(|| wrong("metadata.name", "is missing".to_owned()))?;
    let namespace = match (namespaced, place.namespace.as_deref()) {
        (false, _) => "",
        (true, None | Some("")) => "default",
        (true, Some(namespace)) => namespace,
    };
    for (field, value) in [("metadata.name", name), ("metadata.namespace", namespace)] {
        if field == "metadata.name" || namespaced {
            check_name(value).map_err(|message| wrong(field, message))?;
        }
    }
    let name = NamespacedName::new(namespace, name);
    let object = title(resource.kind(), &name);
    let mut report =
        Report { file, line: place.line, lines_before: place.lines_before, object, problems: &mut content.problems };
    if let Some(body) = read_body(&name, &place, resource, &mut report)? {
        content.objects.push(Object { line: place.line, name, body });
    }
    Ok(())
}

/// `None`: it means nothing here, which is told.
fn read_body(
    name: &NamespacedName,
    place: &Place,
    resource: Resource,
    report: &mut Report<'_>,
) -> Result<Option<Body>, FileError> {
    let file = report.file;
    Ok(Some(match resource {
        Resource::Namespace(namespace) => Body::Namespace(read_namespace(*namespace, &place.annotations, report)),
        Resource::Node(node) => Body::Node(node::read(*node)),
        Resource::Pod(pod) => Body::Pod(Box::new(pod::read(name, *pod, &place.annotations, report))),
        Resource::Service(service) => {
            Body::Service(Box::new(service::read(name, *service, &place.annotations, report)))
        }
        Resource::Slice(slice) => {
            return Ok(service::read_slice(name, *slice, report).map(|slice| Body::Slice(Box::new(slice))));
        }
        Resource::Entry(entry) => Body::Entry(Box::new(entry::read(name, *entry, &place.annotations, report))),
        Resource::Mesh(config_map) => {
            Body::Mesh(mesh::read(&config_map).map_err(|error| place.wrong(file, &error.field, error.message))?)
        }
        Resource::Authorization(policy) => {
            let read = authorization::read(name, *policy, &place.annotations, report);
            let policy = read.map_err(|error| place.error(file, error))?;
            return Ok(policy.map(|policy| Body::Authorization(Box::new(policy))));
        }
        Resource::PeerAuthentication(policy) => {
            let read = peer_authentication::read(*policy, report);
            Body::PeerAuthentication(Box::new(read.map_err(|error| place.error(file, error))?))
        }
        Resource::RequestAuthentication => {
            report.warn(
                "RequestAuthentication needs a waypoint: tokens are in requests, which can't be seen at this layer, so that \
                 nobody is kept out by it",
            );
            return Ok(None);
        }
    }))
}

fn read_namespace(
    namespace: Namespace,
    annotation_lines: &BTreeMap<String, u64>,
    report: &mut Report<'_>,
) -> NamespaceManifest {
    let labels = namespace.metadata.labels.unwrap_or_default();
    let annotations = namespace.metadata.annotations.unwrap_or_default();
    NamespaceManifest {
        labelled: labels.get(MODE_LABEL).is_some_and(|mode| mode == "ambient"),
        distribution: Annotations { values: &annotations, lines: annotation_lines, report }.distribution(),
    }
}

/// Kubernetes' rule for names (RFC 1123 subdomain). Names reach logs, metrics and identities, so nothing else may pass.
fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.len() <= 253 && name.starts_with(edge) && name.ends_with(edge) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(format!("{name:?} is not a Kubernetes name: lower-case letters, digits, '-' and '.', at most 253"))
}

/// Reads an address and refuses those that name no single other host.
fn usable_address(text: &str) -> Result<std::net::IpAddr, String> {
    let address: std::net::IpAddr = text.trim().parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    let address = address.to_canonical();
    let broadcast = matches!(address, std::net::IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() || broadcast {
        return Err(format!("{address} is a loopback, unspecified, multicast or broadcast address"));
    }
    Ok(address)
}

#[cfg(test)]
pub(crate) mod tests;
