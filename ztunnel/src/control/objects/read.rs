//! From an object of any kind to its content.

use std::sync::Arc;

use super::body::{Body, title};
use super::intern::Interner;
use super::name::check_name;
use super::report::{FieldError, Remark, Report};
use super::resource::Resource;
use super::{authorization, entry, mesh, namespace, node, peer_authentication, pod, service, slice, workload_entry};
use crate::control::field::FieldPath;
use crate::model::workload::NamespacedName;

/// The content of one object.
#[derive(Debug)]
pub(in crate::control) struct Said {
    /// Its name; the namespace is empty if the kind is not namespaced.
    pub(in crate::control) name: NamespacedName,
    /// Its title in problems.
    pub(in crate::control) title: String,
    /// `None`: the object has no meaning here, which a remark reports.
    pub(in crate::control) body: Option<Body>,
    /// Problems of the object.
    pub(in crate::control) remarks: Vec<Remark>,
}

/// Reads an object.
///
/// # Errors
/// An invalid field makes the whole object invalid. The message names all fields that are known to be invalid.
pub(in crate::control) fn read(resource: Resource, texts: &mut Interner) -> Result<Said, FieldError> {
    let name = match (name(&resource, texts), &resource) {
        (Ok(name), _) => name,
        // Without a valid name the object still has no effect here, and must not replace another one.
        (Err(_), Resource::Unenforced(kind, _)) => {
            let title = kind.name().to_owned();
            return Ok(Said { name: NamespacedName::new("", ""), title, body: None, remarks: Vec::new() });
        }
        (Err(error), _) => return Err(error),
    };
    let title = title(resource.kind().name(), &name);
    let mut report = Report::default();
    let body = body(&name, resource, texts, &mut report).map_err(FieldError::in_one_message)?;
    Ok(Said { name, title, body, remarks: report.finish() })
}

fn name(resource: &Resource, texts: &mut Interner) -> Result<NamespacedName, FieldError> {
    let (namespace, name) = resource.named();
    let wrong = |field: &str| {
        let field = FieldPath::of("metadata").key(field);
        move |message: String| FieldError::new(field, message)
    };
    let name = name.ok_or_else(|| wrong("name")("is missing".to_owned()))?;
    check_name(name).map_err(wrong("name"))?;
    if !resource.kind().is_namespaced() {
        return Ok(NamespacedName::new(texts.text(""), texts.text(name)));
    }
    let namespace = namespace.filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    check_name(namespace).map_err(wrong("namespace"))?;
    Ok(NamespacedName::new(texts.text(namespace), texts.text(name)))
}

fn body(
    name: &NamespacedName,
    resource: Resource,
    texts: &mut Interner,
    report: &mut Report,
) -> Result<Option<Body>, FieldError> {
    Ok(Some(match resource {
        Resource::Namespace(namespace) => Body::Namespace(namespace::read(*namespace, report)),
        Resource::Node(node) => Body::Node(Arc::new(node::read(*node, texts))),
        Resource::Pod(pod) => Body::Pod(Arc::new(pod::read(name, *pod, texts, report))),
        Resource::Service(service) => Body::Service(Arc::new(service::read(name, *service, texts, report))),
        Resource::Slice(slice) => {
            return Ok(slice::read(name, *slice, texts, report).map(|slice| Body::Slice(Arc::new(slice))));
        }
        Resource::Entry(entry) => Body::Entry(Arc::new(entry::read(name, *entry, texts, report))),
        Resource::Mesh(config_map) => Body::Mesh(Arc::new(mesh::read(&config_map)?)),
        Resource::Authorization(policy) => {
            let policy = authorization::read(name, *policy, report)?;
            return Ok(policy.map(|policy| Body::Authorization(Arc::new(policy))));
        }
        Resource::PeerAuthentication(policy) => {
            Body::PeerAuthentication(Arc::new(peer_authentication::read(*policy, report)?))
        }
        Resource::Endpoints(endpoints) => {
            Body::Endpoints(Arc::new(slice::read_endpoints(name, *endpoints, texts, report)))
        }
        Resource::WorkloadEntry(entry) => {
            Body::WorkloadEntry(Arc::new(workload_entry::read(name, *entry, texts, report)))
        }
        Resource::Unenforced(kind, _) => Body::Unenforced(kind),
        Resource::RequestAuthentication(_) => {
            report.warn(
                "RequestAuthentication needs a waypoint: tokens are in requests, which are not visible at layer 4, so \
                 it refuses no connection",
            );
            return Ok(None);
        }
    }))
}
