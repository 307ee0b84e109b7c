//! Properties that hold for any bytes from a control plane: run by the fuzz target, and on its seeds.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::certificate::IstioCertificateResponse;
use super::discovery::Resource;
use super::object::{self, Object, ObjectKind};
use super::read::{self, Facts, ObjectFacts, Read, Reader};
use super::report::PodReport;
use super::security::Authorization;
use super::settings;
use super::standard::Any;
use super::workload::{Address, AddressType};
use crate::model::name::check_name;
use crate::model::policy::Scope;

/// Reads the bytes as the content of a resource of each type. The result is within the bounds on which all other code
/// relies.
///
/// # Panics
/// When a property does not hold.
pub fn resources(bytes: &[u8]) {
    let mut texts = |text: &str| Arc::from(text);
    let mut reader = Reader { cluster: "c1", network: "", texts: &mut texts };
    let content = Bytes::copy_from_slice(bytes);
    let named = |name: String| Resource {
        name,
        resource: Some(Any { type_url: String::new(), value: content.clone() }),
        ..Resource::default()
    };
    let name = match Address::decode(bytes).ok().and_then(|address| address.r#type) {
        Some(AddressType::Workload(workload)) => workload.uid,
        Some(AddressType::Service(service)) => format!("{}/{}", service.namespace, service.hostname),
        None => String::new(),
    };
    match read::address(&named(name), &mut reader) {
        Ok(Read { value: Facts::Workload(facts), .. }) => {
            let workload = &facts.workload;
            assert!(!workload.name.namespace.contains('/') && !workload.identity.service_account.contains('/'));
            assert!(workload.addresses.iter().all(|address| !address.is_loopback() && !address.is_unspecified()));
        }
        Ok(Read { value: Facts::Service(facts), .. }) => {
            assert!(facts.service.ranges.iter().all(|range| range.addr() == range.network()));
        }
        Err(flaw) => assert!(!flaw.to_string().is_empty()),
    }
    let name = Authorization::decode(bytes).map(|policy| format!("{}/{}", policy.namespace, policy.name));
    if let Ok(Read { value, .. }) = read::policy(&named(name.unwrap_or_default()), &mut reader) {
        assert!(!value.name.namespace.contains('/'));
    }
    if let Ok(Read { value, .. }) = read::settings(&named(settings::NAME.to_owned())) {
        assert!(value.unread.namespaces.len() <= bytes.len());
    }
    if let Ok(Read { value, .. }) = read::object(&named(object_name(bytes)), &mut reader) {
        let scope = match &value {
            ObjectFacts::Authorization(policy) => Some(&policy.scope),
            ObjectFacts::Authentication(policy) => Some(&policy.scope),
            ObjectFacts::Service(facts) => {
                assert!(facts.exactly.is_some());
                None
            }
        };
        assert!(!matches!(scope, Some(Scope::Selector { labels, .. }) if labels.is_empty()), "it selects everything");
    }
}

/// The PEM texts of the answer to a certificate request; `None`: the bytes are no such message.
#[must_use]
pub fn certificate_texts(bytes: &[u8]) -> Option<Vec<String>> {
    IstioCertificateResponse::decode(bytes).ok().map(|answer| answer.cert_chain)
}

/// Reads the bytes as a node's report of its pods. Returns whether the report is accepted.
///
/// # Panics
/// When a property does not hold.
pub fn pod_report(bytes: &[u8]) -> bool {
    let Ok(report) = PodReport::decode(bytes) else { return false };
    match read::pods(&report) {
        Ok(pods) => {
            assert!(pods.len() == report.pods.len() && pods.len() <= read::MOST_PODS);
            let is_name = |name: &str| check_name(name).is_ok();
            assert!(pods.iter().all(|pod| is_name(&pod.name.namespace) && is_name(&pod.name.name)));
            true
        }
        Err(flaw) => {
            let text = flaw.to_string();
            assert!(!text.is_empty() && text.len() <= 2048 && !text.contains('\n'), "{text}");
            false
        }
    }
}

/// The name of an object's resource.
fn object_name(bytes: &[u8]) -> String {
    match Object::decode(bytes).ok().and_then(|object| object.kind) {
        Some(ObjectKind::Authorization(policy)) => object::authorization_name(&policy.namespace, &policy.name),
        Some(ObjectKind::Authentication(policy)) => object::authentication_name(&policy.namespace, &policy.name),
        Some(ObjectKind::Service(service)) => {
            object::hidden_service_name(&service.namespace, &service.hostname.to_ascii_lowercase())
        }
        None => String::new(),
    }
}
