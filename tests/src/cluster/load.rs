//! Load between two pods of the mesh: requests all the time, a stream of numbers, and connections that are idle. The client
//! checks all that comes back, and writes each fault to its log.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::mesh::{Mesh, Pod};
use super::{Cluster, images};
use crate::wait;

/// The namespace of the pods. Its policy is STRICT: a connection outside of the mesh is refused.
pub const NAMESPACE: &str = "load";

/// Connections that are idle until [`Load::wake`].
pub const IDLE: usize = 20;

/// Clients that connect, ask and close in a loop.
const CLIENTS: usize = 6;

/// Requests for each line of the client's log.
const REQUESTS: usize = 10;

/// A look at the client's log takes more of the processor than the load.
const LOOK: Duration = Duration::from_millis(500);

/// The server answers HTTP on port 8080 and echoes on port 9000. On port 9001 it counts, some hundred numbers a second.
const SERVER: &str = "mkdir /tmp/www
hostname >/tmp/www/index.html
echo 'n=0; while :; do n=$((n+1)); echo $n; [ $((n % 50)) = 0 ] && sleep 0.1; done' >/tmp/count
nc -ll -p 9000 -e cat &
nc -ll -p 9001 -e sh /tmp/count &
exec httpd -f -p 8080 -h /tmp/www";

/// Lines of the client's log: `done` after some requests, `flow` after some numbers of the stream, `woke` for an idle connection
/// that still works, `ended` for the stream that was told to end; `failed`, `pause` (in 1/100 s), `gap` and `cut` for faults.
const CLIENT: &str = r#"
now() { read up rest </proc/uptime; echo "${up%.*}${up#*.}"; }
one() {
  n=0; since=
  while :; do
    if error=$(timeout 5 wget -qO- http://SERVER:8080/ 2>&1 >/dev/null); then
      n=$((n+1))
      [ $((n % REQUESTS)) = 0 ] && echo done
      [ -n "$since" ] && echo "pause $(($(now) - since))"
      since=
    else
      [ -z "$since" ] && { since=$(now); echo "failed: $error"; }
      sleep 0.1
    fi
  done
}
idle() {
  (until [ -e /tmp/wake ]; do sleep 1; done; echo woke; sleep 1) | nc SERVER 9000 | {
    read line; [ "$line" = woke ] && echo woke || echo "cut: idle connection: $line"
  }
}
stream() {
  nc SERVER 9001 | /bin/busybox awk '
    $1 != NR { print "gap: " $1 " at " NR; exit }
    NR % 200 == 0 { print "flow"; fflush(); if ((getline line <"/tmp/end") >= 0) { print "ended"; is_over = 1; exit } }
    END { if (!is_over) print "cut: stream after " NR }'
}
CLIENTSstream &
IDLEwait
"#;

/// The two pods.
#[derive(Debug)]
pub struct Load<'a> {
    cluster: &'a Cluster,
    pods: Pods,
}

/// The pods of a load.
#[derive(Debug, Clone)]
pub struct Pods {
    /// The pod with the servers.
    pub server: Pod,
    /// The pod with the clients.
    pub client: Pod,
}

/// What the client has logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Requests that were answered, without the last few.
    pub requests: usize,
    /// Numbers of the stream, in hundreds.
    pub stream: usize,
    /// Idle connections that still worked when they were woken.
    pub woken: usize,
    /// The times without an answer of one client, in 1/100 s.
    pub pauses: Vec<u64>,
    /// All faults, also those that led to a pause.
    pub faults: Vec<String>,
    /// Whether the stream has ended because it was told to.
    pub is_ended: bool,
}

impl<'a> Load<'a> {
    /// Makes the namespace and the pods, waits until both are in the mesh, and until the load is there.
    ///
    /// # Errors
    /// When a pod does not start, or there is a fault.
    pub fn start(cluster: &'a Cluster, mesh: &Mesh<'_>, client: &str, server: &str) -> Result<Self> {
        let api = cluster.api();
        api.apply(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}, labels: {{istio.io/dataplane-mode: ambient}}}}}}\n---\n\
             {{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: strict, namespace: {NAMESPACE}}}, \
             spec: {{mtls: {{mode: STRICT}}}}}}"
        ))?;
        let pod = |name: &str, node: &str, script: &str| -> Result<Pod> {
            let manifest = pod(name, node, script);
            // The controller that makes the service account `default` of a new namespace takes a moment.
            wait::until_true("the pod is accepted", wait::PATIENCE, || Ok(api.apply(&manifest).is_ok()))?;
            api.kubectl(["wait", "-n", NAMESPACE, "--for=condition=Ready", &format!("pod/{name}"), "--timeout=50s"])?;
            let pods = cluster.pods(NAMESPACE, &format!("app={name}"))?;
            let [pod] = pods.as_slice() else { bail!("{pods:?}") };
            mesh.wait_for(pod, "enrolled")?;
            Ok(pod.clone())
        };
        let server = pod("server", server, SERVER)?;
        let script = CLIENT
            .replace("SERVER", &server.address)
            .replace("REQUESTS", &REQUESTS.to_string())
            .replace("CLIENTS", &"one &\n".repeat(CLIENTS))
            .replace("IDLE", &"idle &\n".repeat(IDLE));
        let client = pod("client", client, &script)?;
        let load = Self { cluster, pods: Pods { server, client } };
        load.goes_on("at the start")?;
        Ok(load)
    }

    /// The load of pods that run already.
    #[must_use]
    pub fn of(cluster: &'a Cluster, pods: Pods) -> Self {
        Self { cluster, pods }
    }

    /// Its pods.
    #[must_use]
    pub fn pods(&self) -> &Pods {
        &self.pods
    }

    /// What the client has logged until now.
    ///
    /// # Errors
    /// When there is no log.
    pub fn seen(&self) -> Result<Seen> {
        let log = self.cluster.api().kubectl(["logs", "-n", NAMESPACE, &self.pods.client.name])?;
        let count = |word: &str| log.lines().filter(|line| *line == word).count();
        let known = ["done", "flow", "woke", "ended", ""];
        Ok(Seen {
            requests: count("done") * REQUESTS,
            stream: count("flow") * 2,
            woken: count("woke"),
            pauses: log.lines().filter_map(|line| line.strip_prefix("pause ")?.parse().ok()).collect(),
            faults: log.lines().filter(|line| !known.contains(line)).map(str::to_owned).collect(),
            is_ended: count("ended") > 0,
        })
    }

    /// Makes sure that there was no fault since the start, and waits until all kinds of load have gone on.
    ///
    /// # Errors
    /// With the faults.
    pub fn goes_on(&self, when: &str) -> Result<Seen> {
        let before = self.seen()?;
        self.until(when, |seen| {
            ensure!(seen.faults.is_empty(), "{when}: {:?}", seen.faults);
            Ok(seen.requests >= before.requests + 10 * REQUESTS && (seen.is_ended || seen.stream >= before.stream + 4))
        })
    }

    /// Waits until the log is so.
    ///
    /// # Errors
    /// With the last look, when it is not so in time.
    pub fn until(&self, what: &str, is_so: impl Fn(&Seen) -> Result<bool>) -> Result<Seen> {
        let found = wait::until(what, wait::PATIENCE * 2, || {
            let seen = self.seen()?;
            if is_so(&seen)? {
                return Ok(Some(seen));
            }
            wait::pass(LOOK);
            Ok(None)
        });
        found.with_context(|| format!("{:?}", self.seen()))
    }

    /// Sends over the idle connections, and waits until all have answered. They end then.
    ///
    /// # Errors
    /// When one does not answer.
    pub fn wake(&self) -> Result<()> {
        self.cluster.exec(NAMESPACE, &self.pods.client.name, &["touch", "/tmp/wake"])?;
        self.until("all idle connections answer", |seen| {
            ensure!(seen.faults.is_empty(), "{:?}", seen.faults);
            Ok(seen.woken == IDLE)
        })
        .map(drop)
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end_stream(&self) -> Result<()> {
        self.cluster.exec(NAMESPACE, &self.pods.client.name, &["touch", "/tmp/end"])?;
        self.until("the stream ends", |seen| Ok(seen.is_ended)).map(drop)
    }
}

/// A pod of the namespace that runs a script once.
#[must_use]
pub fn pod(name: &str, node: &str, script: &str) -> String {
    let script = script.replace('\n', "\n      ");
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: {name}}}}}
spec:
  restartPolicy: Never
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {}
    imagePullPolicy: IfNotPresent
    command:
    - /bin/sh
    - -c
    - |
      {script}
",
        images::BUSYBOX
    )
}
