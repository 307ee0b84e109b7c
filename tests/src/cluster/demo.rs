//! The demo on a cluster. Four services join a mesh, are protected by policies, and leave the mesh again.

use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::Value;

use super::mesh::{Mesh, Pod};
use super::{Cluster, images};
use crate::wait;

/// The namespace of the services.
const SHOP: &str = "shop";
/// The namespace of the client outside of the mesh.
const OUTSIDE: &str = "outside";

/// The pods, with their nodes. Each has a service account and, in the shop, a Service of the same name.
const PODS: [(&str, &str, &str); 5] = [
    (SHOP, "front", "node-1"),
    (SHOP, "orders", "node-2"),
    (SHOP, "stock", "node-1"),
    (SHOP, "payments", "node-2"),
    (OUTSIDE, "visitor", "node-1"),
];

/// The requests: client and server.
const REQUESTS: [(&str, &str); 5] =
    [("visitor", "front"), ("front", "orders"), ("orders", "stock"), ("orders", "payments"), ("visitor", "payments")];

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}";

const DENY_ALL: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {}";

const ALLOW_ORDERS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: orders-may-pay, namespace: shop}
spec:
  selector: {matchLabels: {app: payments}}
  rules: [{from: [{source: {serviceAccounts: [orders]}}]}]";

/// The result of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It succeeded without a daemon.
    Open,
    /// The daemon of the server's node accepted it in plaintext.
    Plain,
    /// It went through an HBONE connection.
    Tunnel,
    /// It failed.
    Refused,
}

impl Way {
    const fn text(self) -> &'static str {
        match self {
            Self::Open => "200, not captured",
            Self::Plain => "200, plaintext",
            Self::Tunnel => "200, mTLS",
            Self::Refused => "refused",
        }
    }
}

/// A column of the table: the step before the requests, and the expected result of each request.
struct Phase {
    title: &'static str,
    ways: [Way; REQUESTS.len()],
}

const fn phase(title: &'static str, ways: [Way; REQUESTS.len()]) -> Phase {
    Phase { title, ways }
}

const PHASES: [Phase; 7] = {
    use Way::{Open, Plain, Refused, Tunnel};
    [
        phase("installed", [Open; 5]),
        phase("namespace labelled", [Plain, Tunnel, Tunnel, Tunnel, Plain]),
        phase("+ STRICT", [Refused, Tunnel, Tunnel, Tunnel, Refused]),
        phase("+ deny all", [Refused; 5]),
        phase("+ allow orders\nto payments", [Refused, Refused, Refused, Tunnel, Refused]),
        phase("label removed", [Open; 5]),
        phase("uninstalled", [Open; 5]),
    ]
};

/// Runs the demo with an image of the daemon, and prints what happens.
///
/// # Errors
/// When an object can't be made, or a request has an unexpected result.
pub fn run(image: &Path) -> Result<()> {
    let begun = Instant::now();
    let cluster = Cluster::start(2)?;
    say(&format!("Kubernetes with two nodes is ready after {:.1} s.", begun.elapsed().as_secs_f32()))?;
    let begun = Instant::now();
    let mesh = Mesh::install(&cluster, image, &[])?;
    say(&format!("helm install: daemons and control plane are ready after {:.1} s.", begun.elapsed().as_secs_f32()))?;
    let shop = Shop::open(&cluster)?;
    let mut columns = Vec::new();
    let mut reasons = Vec::new();
    for phase in PHASES.iter().take(PHASES.len() - 1) {
        let begun = Instant::now();
        shop.enter(&mesh, phase.title)?;
        let ways = shop.until(Some(&mesh), phase)?;
        if phase.title == "namespace labelled" {
            say(&format!(
                "kubectl label namespace {SHOP}: all pods are in the mesh after {:.1} s.",
                begun.elapsed().as_secs_f32()
            ))?;
        }
        if phase.title == "+ allow orders\nto payments" {
            reasons = shop.reasons(&mesh)?;
        }
        columns.push(ways);
    }
    mesh.uninstall()?;
    columns.push(shop.until(None, PHASES.last().context("no phases")?)?);
    for node in cluster.nodes() {
        let left = cluster.in_kernel(&node.name)?;
        ensure!(left.is_empty(), "{} is not as before: {left:?}", node.name);
    }
    say(&render(&columns))?;
    say("Why, in the words of the daemon of the server's node:")?;
    for reason in reasons {
        say(&format!("  {reason}"))?;
    }
    say("helm uninstall: rules, routes, settings and BPF programs of all pods are as before.")
}

struct Shop<'a> {
    cluster: &'a Cluster,
    pods: Vec<Pod>,
}

impl<'a> Shop<'a> {
    fn open(cluster: &'a Cluster) -> Result<Self> {
        let api = cluster.api();
        for namespace in [SHOP, OUTSIDE] {
            api.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}"))?;
        }
        let manifests = PODS.map(|(namespace, name, node)| manifests(namespace, name, node)).concat();
        api.apply(&manifests)?;
        let mut pods = Vec::new();
        for (namespace, name, _) in PODS {
            let pod = format!("pod/{name}");
            api.kubectl(["wait", "-n", namespace, "--for=condition=Ready", &pod, "--timeout=50s"])?;
            pods.extend(cluster.pods(namespace, &format!("app={name}"))?);
        }
        Ok(Self { cluster, pods })
    }

    fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.iter().find(|pod| pod.name == name).with_context(|| format!("no pod {name}"))
    }

    /// Does the step with which a phase begins.
    fn enter(&self, mesh: &Mesh<'_>, title: &str) -> Result<()> {
        let api = self.cluster.api();
        let in_shop = || self.pods.iter().filter(|pod| pod.namespace == SHOP);
        match title {
            "namespace labelled" => {
                api.kubectl(["label", "namespace", SHOP, "istio.io/dataplane-mode=ambient"])?;
                in_shop().try_for_each(|pod| mesh.wait_for(pod, "enrolled"))
            }
            "label removed" => {
                api.kubectl(["label", "namespace", SHOP, "istio.io/dataplane-mode-"])?;
                in_shop().try_for_each(|pod| mesh.wait_for(pod, "absent"))
            }
            "+ STRICT" => api.apply(STRICT).map(drop),
            "+ deny all" => api.apply(DENY_ALL).map(drop),
            "+ allow orders\nto payments" => api.apply(ALLOW_ORDERS).map(drop),
            _ => Ok(()),
        }
    }

    /// Sends the requests until they have the results of the phase: a policy takes a moment to reach the nodes.
    fn until(&self, mesh: Option<&Mesh<'_>>, phase: &Phase) -> Result<Vec<Way>> {
        let mut last = Vec::new();
        let done = wait::until_true("the requests to go as they should", wait::PATIENCE, || {
            last = REQUESTS.iter().map(|(client, server)| self.request(mesh, client, server)).collect::<Result<_>>()?;
            Ok(last == phase.ways)
        });
        done.with_context(|| format!("{}: {last:?}, not {:?}", phase.title.replace('\n', " "), phase.ways))?;
        Ok(last)
    }

    /// Sends a request to the Service of the server.
    fn request(&self, mesh: Option<&Mesh<'_>>, client: &str, server: &str) -> Result<Way> {
        let (client, server) = (self.pod(client)?, self.pod(server)?);
        let before = self.seen(mesh, client, server)?.len();
        let service = ["get", "service", "-n", SHOP, &server.name, "-o", "jsonpath={.spec.clusterIP}"];
        let address = self.cluster.api().kubectl(service)?;
        match self.cluster.fetch(client, &format!("http://{address}/"))? {
            Err(_) => return Ok(Way::Refused),
            Ok(answer) => ensure!(answer == server.name, "{} answers, not {}", answer, server.name),
        }
        let Some(mesh) = mesh else { return Ok(Way::Open) };
        // The daemon that carries a request logs a line when the connection ends. There is no line for a pod outside of
        // the mesh.
        let state = self.cluster.api().kubectl(["get", "namespace", SHOP, "-o", "jsonpath={.metadata.labels}"])?;
        if !state.contains("ambient") {
            ensure!(self.seen(Some(mesh), client, server)?.len() == before, "a request is carried without the label");
            return Ok(Way::Open);
        }
        let line = wait::until("the line of the request", wait::PATIENCE, || {
            Ok(self.seen(Some(mesh), client, server)?.into_iter().nth(before))
        })?;
        Ok(if line.get("dst.hbone_addr").is_some() { Way::Tunnel } else { Way::Plain })
    }

    /// The log lines of the daemon of the server's node about connections of the client.
    fn seen(&self, mesh: Option<&Mesh<'_>>, client: &Pod, server: &Pod) -> Result<Vec<Value>> {
        let Some(mesh) = mesh else { return Ok(Vec::new()) };
        let mut lines = mesh.access(&server.node, &server.address)?;
        lines.retain(|line| line["direction"] == "inbound" && line["src.workload"] == *client.name);
        Ok(lines)
    }

    /// The reasons of denied requests, the last one for each client and server.
    fn reasons(&self, mesh: &Mesh<'_>) -> Result<Vec<String>> {
        let mut reasons = Vec::new();
        for (client, server) in REQUESTS {
            let lines = self.seen(Some(mesh), self.pod(client)?, self.pod(server)?)?;
            let Some(line) = lines.iter().rfind(|line| line["reason"] == "denied") else { continue };
            reasons.push(format!("{client} -> {server}: {}", line["error"].as_str().unwrap_or_default()));
        }
        Ok(reasons)
    }
}

fn manifests(namespace: &str, name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}, namespace: {namespace}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  serviceAccountName: {name}
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: {}
    imagePullPolicy: IfNotPresent
    command: [/bin/sh, -c, 'mkdir /tmp/www; hostname >/tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www']
    readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
---
",
        images::BUSYBOX
    )
}

fn render(columns: &[Vec<Way>]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let titles = PHASES.iter().map(|phase| phase.title.to_owned());
    table.set_header(["HTTP request".to_owned()].into_iter().chain(titles));
    for (index, (client, server)) in REQUESTS.iter().enumerate() {
        let cells = columns.iter().filter_map(|column| column.get(index)).map(|way| way.text().replace(", ", ",\n"));
        table.add_row([format!("{client} -> {server}")].into_iter().chain(cells));
    }
    table.to_string()
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot print")
}
