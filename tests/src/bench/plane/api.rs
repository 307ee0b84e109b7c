//! An API server of Kubernetes with the requests that a control plane makes: lists in pages, and watches.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

/// Pods of a node.
const OF_A_NODE: usize = 100;
/// Pods behind a service.
const OF_A_SERVICE: usize = 10;

/// The server, and the changes that it has sent.
pub(super) struct Api {
    port: u16,
    pods: usize,
    node: String,
    inner: Mutex<Inner>,
    /// Its connections. They end with it.
    _tasks: Mutex<JoinSet<()>>,
}

struct Inner {
    version: u64,
    /// How often each pod has changed.
    changes: HashMap<usize, u64>,
    /// The time of the last change of each pod.
    said: HashMap<usize, Instant>,
    watches: Vec<UnboundedSender<String>>,
}

impl Api {
    /// Serves so many pods, and a Node of this name; within a runtime.
    pub(super) async fn start(pods: usize, node: &str) -> Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen on loopback")?;
        let port = listener.local_addr()?.port();
        let inner = Inner { version: 1, changes: HashMap::new(), said: HashMap::new(), watches: Vec::new() };
        let api =
            Arc::new(Self { port, pods, node: node.to_owned(), inner: Mutex::new(inner), _tasks: Mutex::default() });
        let serving = Arc::downgrade(&api);
        let accept = async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let Some(api) = serving.upgrade() else { return };
                connections.spawn(async move { drop(api.serve(stream).await) });
            }
        };
        api._tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(accept);
        Ok(api)
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// How many pods there are.
    pub(super) fn pods(&self) -> usize {
        self.pods
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod gets another label.
    pub(super) fn change(&self, number: usize) {
        let mut inner = self.inner();
        inner.version += 1;
        let version = inner.version;
        let change = inner.changes.entry(number).or_default();
        *change += 1;
        let event = json!({"type": "MODIFIED", "object": self.pod(number, *change, version)});
        inner.said.insert(number, Instant::now());
        let line = format!("{event}\n");
        inner.watches.retain(|watch| watch.send(line.clone()).is_ok());
    }

    /// When a pod changed last; `None`: it never did.
    pub(super) fn said(&self, number: usize) -> Option<Instant> {
        self.inner().said.get(&number).copied()
    }

    /// The pods that have changed.
    pub(super) fn changed(&self) -> Vec<usize> {
        self.inner().said.keys().copied().collect()
    }

    fn pod(&self, number: usize, change: u64, version: u64) -> Value {
        let address = address(number);
        json!({
            "metadata": {
                "name": format!("p{number}"), "namespace": "demo", "uid": format!("00000000-0000-4000-8000-{number:012}"),
                "resourceVersion": version.to_string(),
                "labels": {"app": format!("a{}", number / OF_A_SERVICE), "version": format!("v{change}"), "tier": "back",
                    "team": format!("t{}", number % 50), "pod-template-hash": "7d9c5b8f6"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                    "name": format!("a{}-7d9c5b8f6", number / OF_A_SERVICE)}],
            },
            "spec": {"nodeName": format!("bench-{}", number / OF_A_NODE), "serviceAccountName": format!("sa{}", number / OF_A_SERVICE),
                "containers": [{"name": "c", "image": "none", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": "True"}]},
        })
    }

    fn service(number: usize) -> Value {
        json!({
            "metadata": {"name": format!("a{number}"), "namespace": "demo", "resourceVersion": "1"},
            "spec": {"clusterIP": format!("10.{}.{}.{}", 240 + number / 60_000, number / 250 % 250, number % 250 + 1),
                "selector": {"app": format!("a{number}")}, "ports": [{"port": 80, "targetPort": "http"}]},
        })
    }

    fn slice(&self, number: usize) -> Value {
        let of_service = number * OF_A_SERVICE..((number + 1) * OF_A_SERVICE).min(self.pods);
        let endpoints = of_service.map(|pod| {
            json!({"addresses": [address(pod)], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "namespace": "demo", "name": format!("p{pod}")}})
        });
        json!({
            "metadata": {"name": format!("a{number}-1"), "namespace": "demo", "resourceVersion": "1",
                "labels": {"kubernetes.io/service-name": format!("a{number}")}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    }

    /// The objects of a path from one number on, and how many there are.
    fn objects(&self, path: &str, from: usize, most: usize) -> Option<(Vec<Value>, usize)> {
        let services = self.pods.div_ceil(OF_A_SERVICE);
        let page = |count: usize, of: &dyn Fn(usize) -> Value| {
            Some(((from..count.min(from + most)).map(of).collect::<Vec<_>>(), count))
        };
        match path {
            "/api/v1/pods" => page(self.pods, &|number| {
                let change = self.inner().changes.get(&number).copied().unwrap_or_default();
                self.pod(number, change, 1)
            }),
            "/api/v1/services" => page(services, &Self::service),
            "/apis/discovery.k8s.io/v1/endpointslices" => page(services, &|number| self.slice(number)),
            "/api/v1/namespaces" => {
                let labels = json!({"istio.io/dataplane-mode": "ambient"});
                page(1, &|_| json!({"metadata": {"name": "demo", "resourceVersion": "1", "labels": labels}}))
            }
            "/api/v1/nodes" => page(1, &|_| json!({"metadata": {"name": self.node, "resourceVersion": "1"}})),
            _ if path.ends_with("/configmaps") => page(0, &|_| Value::Null),
            _ => None,
        }
    }

    async fn serve(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            let head = String::from_utf8(head)?;
            let target = head.split(' ').nth(1).context("no target")?;
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let query: HashMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
            if !head.starts_with("GET ") {
                bail!("{head} is not served");
            }
            if query.get("watch") == Some(&"true") {
                return self.watch(path, stream).await;
            }
            let number = |key: &str| query.get(key).and_then(|text| text.parse::<usize>().ok());
            let (from, most) = (number("continue").unwrap_or(0), number("limit").unwrap_or(usize::MAX / 2));
            let answer = self.objects(path, from, most).map(|(items, count)| {
                let next = if from + most < count { (from + most).to_string() } else { String::new() };
                json!({"metadata": {"resourceVersion": "1", "continue": next}, "items": items})
            });
            let (status, body) = match answer {
                Some(list) => (200, list),
                None => (
                    404,
                    json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": "no such type"}),
                ),
            };
            let body = body.to_string();
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all((head + &body).as_bytes()).await?;
        }
    }

    async fn watch(&self, path: &str, mut stream: BufReader<TcpStream>) -> Result<()> {
        let (sender, mut events) = unbounded_channel();
        let mut quiet = Some(sender);
        if path == "/api/v1/pods" {
            self.inner().watches.extend(quiet.take());
        }
        stream.write_all(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n").await?;
        while let Some(line) = events.recv().await {
            stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await?;
        }
        drop(quiet);
        Ok(())
    }
}

/// The address of a pod.
pub(super) fn address(number: usize) -> String {
    format!("10.{}.{}.{}", 100 + number / 62_500, number / 250 % 250, number % 250 + 1)
}
