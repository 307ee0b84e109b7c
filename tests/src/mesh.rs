//! The folder of Kubernetes manifests that the daemons of a test read.
//!
//! One folder serves all nodes of a test, as one API server serves all nodes of a cluster. Each file is replaced as a
//! whole (written next to it, then renamed), so a daemon never reads half a file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::topology::{Node, Pod};

/// The label that puts a namespace or a pod into the mesh.
pub const MODE_LABEL: &str = "istio.io/dataplane-mode";

/// The namespace of all pods of a test.
pub const NAMESPACE: &str = "demo";

/// The label of pods with which [`Mesh::service`] selects its endpoints.
pub const GROUP_LABEL: &str = "group";

/// The annotation that names a pod's network namespace.
pub const NETNS_ANNOTATION: &str = "ambient.mesh/netns";

/// A folder of manifests.
#[derive(Debug)]
pub struct Mesh {
    folder: PathBuf,
}

/// The manifest of a pod, which can be changed and written.
#[derive(Debug, Clone)]
pub struct PodManifest {
    name: String,
    node: String,
    addresses: Vec<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    service_account: String,
    ports: Vec<(String, u16)>,
    host_network: bool,
    namespace: String,
    probes: Map<String, Value>,
    node_addresses: Vec<String>,
}

impl Mesh {
    /// Makes the folder, with an unlabelled namespace in it.
    ///
    /// # Errors
    /// When the folder can't be made.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mesh = Self { folder: folder.to_owned() };
        mesh.unlabel()?;
        Ok(mesh)
    }

    /// Makes the folder from a copy of another's manifests; its namespace is unlabelled.
    ///
    /// # Errors
    /// When a file can't be copied.
    pub fn copy_of(source: &Path, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for entry in fs::read_dir(source).with_context(|| format!("cannot read {}", source.display()))? {
            let path = entry?.path();
            if let (Some(name), true) = (path.file_name(), path.extension().is_some_and(|end| end == "yaml")) {
                fs::copy(&path, folder.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
            }
        }
        Self::new(folder)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Labels the namespace.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn label(&self) -> Result<()> {
        self.write("namespace.yaml", &namespace(&format!("  labels:\n    {MODE_LABEL}: ambient\n")))
    }

    /// Removes the namespace's label.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn unlabel(&self) -> Result<()> {
        self.write("namespace.yaml", &namespace(""))
    }

    /// Writes a pod's manifest.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn pod(&self, manifest: &PodManifest) -> Result<()> {
        self.write(&format!("pod-{}.yaml", manifest.name), &format!("{:#}\n", manifest.value()))
    }

    /// Whether the folder has exactly this manifest of a pod.
    #[must_use]
    pub fn has_pod(&self, manifest: &PodManifest) -> bool {
        let text = fs::read_to_string(self.folder.join(format!("pod-{}.yaml", manifest.name)));
        text.is_ok_and(|text| text == format!("{:#}\n", manifest.value()))
    }

    /// Writes a service with one port, `http`. Its endpoints are the pods whose label `group` is the name of the
    /// service.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn service(&self, name: &str, addresses: &[&str], port: u16, target: &Value) -> Result<()> {
        let (first, addresses) = match addresses.first() {
            Some(first) => (*first, addresses),
            None => ("None", ["None"].as_slice()),
        };
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": {
                "selector": { GROUP_LABEL: name },
                "clusterIP": first,
                "clusterIPs": addresses,
                "ports": [{ "name": "http", "port": port, "targetPort": target }],
            },
        });
        self.write(&format!("service-{name}.yaml"), &format!("{service:#}\n"))
    }

    /// Writes a labelled namespace in addition to [`NAMESPACE`].
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn labelled_namespace(&self, name: &str) -> Result<()> {
        let labels = json!({ MODE_LABEL: "ambient" });
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": name, "labels": labels },
        });
        self.write(&format!("namespace-{name}.yaml"), &format!("{namespace:#}\n"))
    }

    /// Writes policies, one or several documents, to the file that [`policy_file`] names.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn policy(&self, name: &str, yaml: &str) -> Result<()> {
        self.write(&policy_file(name), yaml)
    }

    /// Removes the file of [`Mesh::policy`].
    ///
    /// # Errors
    /// When there is none.
    pub fn remove_policy(&self, name: &str) -> Result<()> {
        self.remove(&policy_file(name))
    }

    /// Writes a manifest unchanged.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.folder.join(file);
        let beside = self.folder.join(format!(".{file}.new"));
        fs::write(&beside, text).with_context(|| format!("cannot write {}", beside.display()))?;
        fs::rename(&beside, &path).with_context(|| format!("cannot rename to {}", path.display()))
    }

    /// Removes a pod's manifest.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove_pod(&self, name: &str) -> Result<()> {
        self.remove(&format!("pod-{name}.yaml"))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove(&self, file: &str) -> Result<()> {
        let path = self.folder.join(file);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}

/// The file of a policy, as the daemon names it.
#[must_use]
pub fn policy_file(name: &str) -> String {
    format!("policy-{name}.yaml")
}

fn namespace(labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n{labels}")
}

impl PodManifest {
    /// The manifest that matches a pod.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let netns = pod.netns.path().display().to_string();
        Self {
            name: pod.name.clone(),
            node: pod.node.clone(),
            addresses: vec![pod.v4.to_string(), pod.v6.to_string()],
            labels: BTreeMap::from([("app".to_owned(), pod.name.clone())]),
            annotations: BTreeMap::from([(NETNS_ANNOTATION.to_owned(), netns)]),
            service_account: pod.name.clone(),
            ports: Vec::new(),
            host_network: false,
            namespace: NAMESPACE.to_owned(),
            probes: Map::new(),
            node_addresses: Vec::new(),
        }
    }

    /// Gives it another name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Puts it on another node.
    #[must_use]
    pub fn node(mut self, name: &str) -> Self {
        name.clone_into(&mut self.node);
        self
    }

    /// Puts it into another namespace.
    #[must_use]
    pub fn namespace(mut self, name: &str) -> Self {
        name.clone_into(&mut self.namespace);
        self
    }

    /// Gives its container a probe: `livenessProbe`, `readinessProbe` or `startupProbe`.
    #[must_use]
    pub fn probe(mut self, kind: &str, probe: &Value) -> Self {
        self.probes.insert(kind.to_owned(), probe.clone());
        self
    }

    /// Sets the addresses of its node.
    #[must_use]
    pub fn on(mut self, node: &Node) -> Self {
        self.node_addresses = vec![node.v4().to_string(), node.v6().to_string()];
        self
    }

    /// Sets a service account other than the default, which has the pod's name.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// Sets a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Names one of its ports.
    #[must_use]
    pub fn port(mut self, name: &str, number: u16) -> Self {
        self.ports.push((name.to_owned(), number));
        self
    }

    /// Sets the pod's own mode: `none` or `ambient`.
    #[must_use]
    pub fn mode(mut self, mode: &str) -> Self {
        self.labels.insert(MODE_LABEL.to_owned(), mode.to_owned());
        self
    }

    /// Sets an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Removes the network namespace.
    #[must_use]
    pub fn no_netns(mut self) -> Self {
        self.annotations.remove(NETNS_ANNOTATION);
        self
    }

    /// Sets a network namespace, right or wrong.
    #[must_use]
    pub fn netns(self, path: &Path) -> Self {
        self.annotation(NETNS_ANNOTATION, &path.display().to_string())
    }

    /// Sets the addresses.
    #[must_use]
    pub fn addresses(mut self, addresses: &[&str]) -> Self {
        self.addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
        self
    }

    /// Makes it a pod in the host's network.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    fn value(&self) -> Value {
        let ips: Vec<Value> = self.addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        let port = |(name, number): &(String, u16)| json!({ "name": name, "containerPort": number });
        let ports: Vec<Value> = self.ports.iter().map(port).collect();
        let mut container = self.probes.clone();
        container.extend([("name".to_owned(), json!("app")), ("image".to_owned(), json!("app"))]);
        container.insert("ports".to_owned(), json!(ports));
        let nodes: Vec<Value> = self.node_addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "uid": format!("uid-{}", self.name),
                "labels": self.labels,
                "annotations": self.annotations,
            },
            "spec": {
                "nodeName": self.node,
                "serviceAccountName": self.service_account,
                "hostNetwork": self.host_network,
                "containers": [container],
            },
            "status": {
                "phase": "Running",
                "hostIP": self.node_addresses.first(),
                "hostIPs": nodes,
                "podIP": self.addresses.first(),
                "podIPs": ips,
            },
        })
    }
}
