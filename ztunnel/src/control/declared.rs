//! Declarations in manifests that are not part of the mesh, for [`analyze`](crate::analyze): templates of pods, and
//! fields that do not affect routing.
//!
//! Objects are read here without types of their own: a field of another kind than expected counts as absent. An object
//! that can't be read is reported by the code that reads the mesh.

mod fields;
mod network;
mod split;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use self::fields::{labels, list, name_of, text, texts};
use crate::analyze::declared::{
    ClusterAddress, Declared, HostPorts, Ignored, Ingress, Namespace, ServiceFields, Template,
};
use crate::control::objects::{ANALYZE_IGNORE, Body, Interner, MODE_LABEL, PodManifest, Resource, Said, read, title};
use crate::model::identity::TrustDomain;
use crate::model::labels::Labels;
use crate::model::origin::Origin;
use crate::model::problem::{Problem, Severity};
use crate::model::workload::NamespacedName;

/// The label that Kubernetes gives each namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A text without any of these words declares nothing that is of interest here.
const WORDS: [&str; 10] = [
    "template",
    "Namespace",
    "Service\"",
    "Service\n",
    "Service\r",
    "ServiceAccount",
    "NetworkPolicy",
    "Gateway",
    "hostPort",
    ANALYZE_IGNORE,
];

/// Collects what manifests declare.
#[derive(Debug)]
pub struct Collector {
    /// The namespace of objects that name none.
    namespace: Arc<str>,
    declared: Declared,
    /// Templates for which it is not known yet whether their namespaces are in the mesh.
    templates: Vec<(Arc<str>, Origin, Arc<PodManifest>)>,
    texts: Interner,
}

impl Collector {
    /// `namespace` is the namespace of objects that name none.
    pub fn new(namespace: impl Into<Arc<str>>) -> Self {
        let (declared, templates, texts) = (Declared::default(), Vec::new(), Interner::default());
        Self { namespace: namespace.into(), declared, templates, texts }
    }

    /// Takes one file's text.
    pub fn take(&mut self, file: &Arc<str>, text: &str) {
        for document in split::documents(text) {
            let origin = Origin::line_of(Arc::clone(file), document.line);
            // Parsing takes time, and most objects are of no interest here.
            let is_known = self.declared.objects > 0 && document.text.contains("apiVersion");
            if is_known && !WORDS.iter().any(|word| document.text.contains(word)) {
                self.declared.objects += 1;
                continue;
            }
            for value in document.values() {
                self.object(&value, None, &origin);
            }
        }
    }

    /// All declarations. Identities are of this trust domain.
    #[must_use]
    pub fn finish(mut self, trust_domain: &TrustDomain) -> Declared {
        for (kind, origin, manifest) in self.templates {
            let namespace = self.declared.namespaces.get(&manifest.workload.name.namespace);
            let mode = namespace.and_then(|namespace| namespace.labels.get(MODE_LABEL));
            let workload = manifest.workload(mode.is_some_and(|mode| **mode == *"ambient"), None, trust_domain);
            let (workload, local) = (Arc::unwrap_or_clone(workload), (*manifest.local).clone());
            self.declared.templates.push(Template { kind, origin, workload, local });
        }
        self.declared
    }

    /// Reads an object, or the objects of a list. Items of a typed list may lack `apiVersion` and `kind`.
    fn object(&mut self, value: &Value, of_list: Option<(&str, &str)>, origin: &Origin) {
        if let Value::Array(items) = value {
            items.iter().for_each(|item| self.object(item, None, origin));
            return;
        }
        let own = text(value, "/apiVersion").zip(text(value, "/kind"));
        let Some((version, kind)) = own.or(of_list) else { return };
        if let (Some(of), Some(Value::Array(items))) = (kind.strip_suffix("List"), value.get("items")) {
            let of_list = Some((version, of)).filter(|(_, of)| !of.is_empty());
            items.iter().for_each(|item| self.object(item, of_list, origin));
            return;
        }
        self.declared.objects += 1;
        let Some(name) = name_of(value, &self.namespace) else { return };
        self.ignored(kind, &name, value, origin);
        let group = version.split_once('/').map_or("", |(group, _)| group);
        match (group, kind) {
            ("", "Namespace") => self.namespace(&name, value, origin),
            ("", "Service") => self.declared.services.push(service(name, value, origin)),
            ("", "Pod") => self.host_ports(kind, &name, value, origin),
            ("", "ServiceAccount") => drop(self.declared.accounts.insert(name)),
            ("networking.k8s.io", "NetworkPolicy") => {
                self.declared.network_policies.push(network::policy(name, value, origin));
            }
            ("gateway.networking.k8s.io", "Gateway") => self.gateway(&name, value),
            _ => self.template(kind, &name, value, origin),
        }
    }

    fn ignored(&mut self, kind: &str, name: &NamespacedName, value: &Value, origin: &Origin) {
        let annotation = value.get("metadata").and_then(|metadata| metadata.get("annotations")?.get(ANALYZE_IGNORE));
        let Some(codes) = annotation.and_then(Value::as_str) else { return };
        let codes = codes.split(',').map(str::trim).filter(|code| !code.is_empty()).map(str::to_owned).collect();
        let name = match kind {
            "Namespace" | "Node" => NamespacedName::new("", Arc::clone(&name.name)),
            _ => name.clone(),
        };
        self.declared.ignored.push(Ignored { object: title(kind, &name), origin: origin.clone(), codes });
    }

    fn namespace(&mut self, name: &NamespacedName, value: &Value, origin: &Origin) {
        let own = labels(value.pointer("/metadata/labels"));
        let all: Labels =
            own.iter().map(|(key, value)| (&**key, &**value)).chain([(NAME_LABEL, &*name.name)]).collect();
        let namespace = Namespace { origin: origin.clone(), labels: all };
        self.declared.namespaces.entry(Arc::clone(&name.name)).or_insert(namespace);
    }

    /// The proxy of a Gateway has a service account of its own, named after Gateway and class. A waypoint's is named
    /// after the Gateway only.
    fn gateway(&mut self, name: &NamespacedName, value: &Value) {
        let class = text(value, "/spec/gatewayClassName").unwrap_or_default();
        for account in [name.name.to_string(), format!("{}-{class}", name.name)] {
            self.declared.accounts.insert(NamespacedName::new(Arc::clone(&name.namespace), account));
        }
    }

    fn host_ports(&mut self, kind: &str, name: &NamespacedName, pod: &Value, origin: &Origin) {
        let ports = list(pod.pointer("/spec/containers")).iter().flat_map(|container| list(container.get("ports")));
        let ports = ports.filter_map(|port| u16::try_from(port.get("hostPort")?.as_u64()?).ok());
        let ports: Vec<u16> = ports.filter(|port| *port != 0).collect();
        if !ports.is_empty() {
            let (kind, name, origin) = (kind.into(), name.clone(), origin.clone());
            self.declared.host_ports.push(HostPorts { kind, name, origin, ports });
        }
    }

    /// Any object with a template of pods: Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController, Job,
    /// CronJob, and kinds that others define.
    fn template(&mut self, kind: &str, name: &NamespacedName, value: &Value, origin: &Origin) {
        let places = ["/spec/template", "/spec/jobTemplate/spec/template", "/template"];
        let has_containers = |template: &&Value| template.pointer("/spec/containers").is_some_and(Value::is_array);
        let Some(template) = places.iter().find_map(|place| value.pointer(place).filter(has_containers)) else {
            return;
        };
        self.host_ports(kind, name, template, origin);
        let pod = pod(name, template);
        let object = title(kind, name);
        let mut wrong = |message: String, severity| {
            self.declared.problems.push(Problem {
                origin: origin.clone(),
                object: Some(object.clone()),
                message,
                severity,
            });
        };
        let said = serde_json::from_value(pod).map_err(|error| error.to_string());
        let said =
            said.and_then(|pod| read(Resource::Pod(Box::new(pod)), &mut self.texts).map_err(|error| error.to_string()));
        match said {
            Ok(Said { body: Some(Body::Pod(manifest)), remarks, .. }) => {
                remarks.into_iter().for_each(|remark| wrong(format!("template: {}", remark.message), remark.severity));
                self.templates.push((kind.into(), origin.clone(), manifest));
            }
            Ok(_) => {}
            Err(error) => wrong(format!("the template of its pods cannot be read: {error}"), Severity::Error),
        }
    }
}

/// A pod made of a template, with the fields that are read of pods.
fn pod(name: &NamespacedName, template: &Value) -> Value {
    const OF_SPEC: [&str; 3] = ["serviceAccountName", "serviceAccount", "hostNetwork"];
    const OF_CONTAINER: [&str; 8] =
        ["name", "image", "ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "restartPolicy"];
    let some = |of: &Value, keys: &[&str]| -> serde_json::Map<String, Value> {
        keys.iter().filter_map(|key| Some(((*key).to_owned(), of.get(key)?.clone()))).collect()
    };
    let containers = |key: &str| -> Value {
        let all = list(template.pointer("/spec").and_then(|spec| spec.get(key)));
        let all = all.iter().filter(|container| container.is_object());
        all.map(|container| Value::Object(some(container, &OF_CONTAINER))).collect()
    };
    let mut spec = template.get("spec").map(|spec| some(spec, &OF_SPEC)).unwrap_or_default();
    for key in ["containers", "initContainers"] {
        spec.insert(key.to_owned(), containers(key));
    }
    let metadata = |key: &str| fields::strings(template.pointer("/metadata").and_then(|metadata| metadata.get(key)));
    json!({
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {
            "name": &*name.name, "namespace": &*name.namespace,
            "labels": metadata("labels"), "annotations": metadata("annotations"),
        },
    })
}

fn service(name: NamespacedName, value: &Value, origin: &Origin) -> ServiceFields {
    let spec = value.get("spec").unwrap_or(&Value::Null);
    let given: BTreeSet<Arc<str>> = texts(spec.get("clusterIPs"))
        .into_iter()
        .chain(spec.get("clusterIP").and_then(Value::as_str).map(Arc::from))
        .collect();
    let type_: Arc<str> = text(spec, "/type").unwrap_or("ClusterIP").into();
    let address = match () {
        () if *type_ == *"ExternalName" => {
            ClusterAddress::Alias(text(spec, "/externalName").unwrap_or_default().into())
        }
        () if given.iter().any(|text| **text == *"None") => ClusterAddress::Headless,
        () if given.iter().any(|text| !text.is_empty()) => ClusterAddress::Given,
        () => ClusterAddress::Absent,
    };
    let ingress = list(value.pointer("/status/loadBalancer/ingress"));
    let ingress = ingress.iter().filter_map(|one| {
        let address = text(one, "/ip").or_else(|| text(one, "/hostname"))?;
        Some(Ingress { address: address.into(), is_proxy: text(one, "/ipMode") == Some("Proxy") })
    });
    let is_everyone = |range: &Arc<str>| matches!(range.trim(), "0.0.0.0/0" | "::/0");
    let node_port =
        |port: &Value| port.get("nodePort").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    ServiceFields {
        address,
        external_ips: texts(spec.get("externalIPs")),
        load_balancer: ingress.collect(),
        has_source_ranges: !texts(spec.get("loadBalancerSourceRanges")).iter().all(is_everyone),
        node_ports: list(spec.get("ports")).iter().filter_map(node_port).filter(|port| *port != 0).collect(),
        session_affinity: text(spec, "/sessionAffinity") == Some("ClientIP"),
        name,
        origin: origin.clone(),
        type_,
    }
}

#[cfg(test)]
mod tests;
