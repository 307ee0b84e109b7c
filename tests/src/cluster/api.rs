//! An API server with its etcd, in a network namespace of their own.

use std::cell::Cell;
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::leftovers;
use super::pki::Pki;
use super::programs::{HELM, KUBERNETES, Programs};
use crate::names::Prefix;
use crate::netns::Netns;
use crate::process::{Finished, Launch, Process};
use crate::{requirements, wait};

/// The token of the cluster's administrator.
pub const ADMIN_TOKEN: &str = "admin-of-the-test-cluster";

/// The address of the API server. It listens on the bridge to which nodes are attached.
pub const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)), 6443);

/// The address of the Service `kubernetes`.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// The number of nodes for which there are tokens.
pub const MAX_NODES: u8 = 9;

/// The bridge in the namespace of the API server.
pub(super) const BRIDGE: &str = "lan0";

/// A loaded machine starts an API server in some ten seconds.
const START: Duration = Duration::from_secs(90);

const ETCD: &str = "http://127.0.0.1:2379";

/// The programs to start, and the prefix of their names.
#[derive(Debug)]
pub struct Options {
    /// The prefix of all names.
    pub prefix: Prefix,
    /// Whether the programs live on when this process ends; see also [`ApiServer::keep`].
    pub detached: bool,
    /// Whether the controllers run. They empty deleted namespaces, and make pods for Deployments and DaemonSets.
    pub controllers: bool,
    /// Whether the scheduler runs. It assigns pods to nodes.
    pub scheduler: bool,
}

/// etcd, kube-apiserver and the other programs of the [`Options`]. All of them are removed when this is dropped, also
/// on a panic.
#[derive(Debug)]
pub struct ApiServer {
    others: Vec<Process>,
    server: Option<Process>,
    etcd: Process,
    netns: Netns,
    pki: Pki,
    admin: PathBuf,
    folder: PathBuf,
    programs: Programs,
    options: Options,
    attached: Cell<u8>,
    kept: bool,
}

impl ApiServer {
    /// Starts an API server for this caller only.
    ///
    /// # Errors
    /// When the programs or root are missing (`NOT RUN`), or the API server does not become ready: the message has the
    /// end of its log.
    pub fn start() -> Result<Self> {
        Self::start_with(Options { prefix: Prefix::unique(), detached: false, controllers: false, scheduler: false })
    }

    /// Starts an API server with Kubernetes' controllers.
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub fn start_with_controllers() -> Result<Self> {
        Self::start_with(Options { prefix: Prefix::unique(), detached: false, controllers: true, scheduler: false })
    }

    /// Starts the programs of the options.
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub fn start_with(options: Options) -> Result<Self> {
        requirements::check().context("NOT RUN")?;
        let programs = Programs::cache()?;
        let etcd = programs.unpacked("usr/bin/etcd")?;
        for name in ["kube-apiserver", "kubectl"] {
            programs.built(&KUBERNETES, name)?;
        }
        let folder = options.prefix.folder()?;
        let started = Self::launch(options, &folder, programs, &etcd);
        if started.is_err() {
            let _ = std::fs::remove_dir_all(&folder);
        }
        started
    }

    fn launch(options: Options, folder: &Path, programs: Programs, etcd: &Path) -> Result<Self> {
        let pki = Pki::create(&folder.join("pki"), &[ADDRESS.ip(), SERVICE.into(), Ipv4Addr::LOCALHOST.into()])?;
        let admin = pki.kubeconfig("admin.kubeconfig", &format!("https://{ADDRESS}"), ADMIN_TOKEN)?;
        pki.write("tokens.csv", &tokens())?;
        let netns = Netns::create(&options.prefix.member("api"))?;
        netns.ip(&format!(
            "link add {BRIDGE} type bridge\naddr add {}/24 dev {BRIDGE}\nlink set {BRIDGE} up\n",
            ADDRESS.ip()
        ))?;
        let peer = "http://127.0.0.1:2380";
        let etcd = Launch::new(&etcd.to_string_lossy())
            .args(["--data-dir".as_ref(), folder.join("etcd").as_os_str()])
            .args(["--unsafe-no-fsync", "--listen-client-urls", ETCD, "--advertise-client-urls", ETCD])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster".to_owned(), format!("default={peer}")])
            .inside(&netns)
            .detached(options.detached)
            .log_to(&folder.join("etcd.log"))
            .start()?;
        let (folder, attached, kept) = (folder.to_owned(), Cell::new(0), false);
        let mut api = Self {
            others: Vec::new(),
            server: None,
            etcd,
            netns,
            pki,
            admin,
            folder,
            programs,
            options,
            attached,
            kept,
        };
        api.resume()?;
        if api.options.controllers {
            api.start_other("kube-controller-manager", |pki| {
                let file = |name: &str| pki.file(name).display().to_string();
                vec![
                    format!("--service-account-private-key-file={}", file("sa.key")),
                    format!("--root-ca-file={}", file("ca.crt")),
                ]
            })?;
        }
        if api.options.scheduler {
            api.start_other("kube-scheduler", |_| Vec::new())?;
        }
        Ok(api)
    }

    /// Starts the API server again after [`ApiServer::stop`], and waits until it is ready.
    ///
    /// # Errors
    /// When the API server ends or does not become ready: the message has the end of its log.
    pub fn resume(&mut self) -> Result<()> {
        let file = |name: &str| self.pki.file(name).display().to_string();
        let log = self.folder.join("kube-apiserver.log");
        let server = Launch::new(&self.programs.built(&KUBERNETES, "kube-apiserver")?.to_string_lossy())
            .args([
                format!("--etcd-servers={ETCD}"),
                format!("--bind-address={}", ADDRESS.ip()),
                format!("--advertise-address={}", ADDRESS.ip()),
                format!("--secure-port={}", ADDRESS.port()),
                format!("--tls-cert-file={}", file("api.crt")),
                format!("--tls-private-key-file={}", file("api.key")),
                format!("--client-ca-file={}", file("ca.crt")),
                format!("--token-auth-file={}", file("tokens.csv")),
                format!("--service-account-key-file={}", file("sa.pub")),
                format!("--service-account-signing-key-file={}", file("sa.key")),
                format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
                format!("--kubelet-client-key={}", file("kubelet-client.key")),
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
                "--authorization-mode=Node,RBAC".to_owned(),
                "--enable-admission-plugins=NodeRestriction".to_owned(),
                "--allow-privileged=true".to_owned(),
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
            ])
            .inside(&self.netns)
            .detached(self.options.detached)
            .log_to(&log)
            .start()?;
        let server = self.server.insert(server);
        let netns = &self.netns;
        let listens = || netns.run(|| TcpStream::connect_timeout(&ADDRESS, Duration::from_secs(1)).is_ok());
        let ready = wait::until_true("kube-apiserver listens", START, || {
            for (name, process) in [("kube-apiserver", &mut *server), ("etcd", &mut self.etcd)] {
                if let Some(status) = process.ended()? {
                    bail!("{name} ended: {status}");
                }
            }
            listens()
        });
        let ready = ready.and_then(|()| {
            wait::until_true("kube-apiserver is ready", START, || {
                let answer = self.try_kubectl(["get", "--raw", "/readyz"])?;
                Ok(answer.success && answer.stdout.trim() == "ok")
            })
        });
        ready.with_context(|| format!("the end of {}:\n{}", log.display(), end_of(&log.with_added_extension("err"))))
    }

    /// Ends the API server; etcd keeps its state.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<()> {
        let mut server = self.server.take().context("the API server does not run")?;
        server.kill()
    }

    /// Starts a program of the control plane that has the administrator's kubeconfig.
    fn start_other(&mut self, program: &str, args: impl FnOnce(&Pki) -> Vec<String>) -> Result<()> {
        let path = self.programs.built(&KUBERNETES, program)?;
        let process = Launch::new(&path.to_string_lossy())
            .args([format!("--kubeconfig={}", self.admin.display())])
            .args(["--bind-address=127.0.0.1", "--leader-elect=false"])
            .args(args(&self.pki))
            .inside(&self.netns)
            .detached(self.options.detached)
            .log_to(&self.folder.join(format!("{program}.log")))
            .start()?;
        self.others.push(process);
        Ok(())
    }

    /// Runs kubectl as the administrator; the result is its standard output, without blanks at its ends.
    ///
    /// # Errors
    /// When kubectl fails: the message has its standard error.
    pub fn kubectl<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        self.checked(self.launch_kubectl(&self.admin, args)?)
    }

    /// Runs kubectl as the administrator. It is no error when kubectl fails.
    ///
    /// # Errors
    /// When kubectl can't be run.
    pub fn try_kubectl<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<Finished> {
        self.launch_kubectl(&self.admin, args)?.finish()
    }

    /// Runs kubectl with another kubeconfig, see [`ApiServer::kubeconfig_for`].
    ///
    /// # Errors
    /// When kubectl can't be run.
    pub fn try_kubectl_as<A: AsRef<OsStr>>(
        &self,
        kubeconfig: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Finished> {
        self.launch_kubectl(kubeconfig, args)?.finish()
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.checked(self.launch_kubectl(&self.admin, ["apply", "-f", "-"])?.input(manifests))
    }

    /// Makes a namespace and its service account `default`.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn namespace(&self, name: &str) -> Result<()> {
        self.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}"))?;
        self.service_account(name, "default")
    }

    /// Makes a service account.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn service_account(&self, namespace: &str, name: &str) -> Result<()> {
        let metadata = format!("metadata: {{name: {name}, namespace: {namespace}}}");
        self.apply(&format!("{{apiVersion: v1, kind: ServiceAccount, {metadata}}}")).map(drop)
    }

    /// Merges `status`, which is JSON, into the status of a pod, as its kubelet would.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn pod_status(&self, namespace: &str, pod: &str, status: &str) -> Result<()> {
        let patch = format!("{{\"status\": {status}}}");
        let args = ["patch", "pod", pod, "-n", namespace, "--subresource=status", "--type=merge", "-p", &patch];
        self.kubectl(args).map(drop)
    }

    /// A token of a service account for an audience.
    ///
    /// # Errors
    /// When there is no such account.
    pub fn service_account_token(&self, namespace: &str, name: &str, audience: &str) -> Result<String> {
        self.kubectl(["create", "token", name, "-n", namespace, "--audience", audience])
    }

    /// Writes a kubeconfig with a token. Returns the path of the file.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn kubeconfig_for(&self, name: &str, token: &str) -> Result<PathBuf> {
        self.pki.kubeconfig(&format!("{name}.kubeconfig"), &self.url(), token)
    }

    /// Runs Helm as the administrator; the result is its standard output, without blanks at its ends.
    ///
    /// # Errors
    /// When Helm is not in the cache (`NOT RUN`), or fails: the message has its standard error.
    pub fn helm<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        let helm = helm(&self.programs, &self.folder)?.variable("KUBECONFIG", &self.admin);
        let done = helm.args(args).inside(&self.netns).finish()?;
        ensure!(done.success, "helm failed: {}{}", done.stderr, done.stdout);
        Ok(done.stdout.trim().to_owned())
    }

    /// Connects a network namespace with that of the API server, so that [`ApiServer::url`] can be reached from it.
    /// Returns the address of the namespace's end of the link.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn attach(&self, netns: &Netns) -> Result<Ipv4Addr> {
        let number = self.attached.get() + 1;
        self.attached.set(number);
        let address = Ipv4Addr::new(10, 77, 0, 100 + number);
        self.netns.ip(&format!(
            "link add att{number} type veth peer name api0 netns {}\nlink set att{number} master {BRIDGE} up\n",
            netns.name()
        ))?;
        netns.ip(&format!("addr add {address}/24 dev api0\nlink set api0 up\n"))?;
        Ok(address)
    }

    /// The URL of the API server.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{ADDRESS}")
    }

    /// The kubeconfig of the administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.admin
    }

    /// The certificate of the authority that signed the API server's certificate.
    #[must_use]
    pub fn roots(&self) -> PathBuf {
        self.pki.file("ca.crt")
    }

    /// The network namespace of the API server.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A folder for files of this API server. It is removed with the API server.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The prefix of all names.
    #[must_use]
    pub fn prefix(&self) -> &Prefix {
        &self.options.prefix
    }

    /// The certificates, keys and tokens of the cluster.
    #[must_use]
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The programs from which the API server was started.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Leaves everything in place when this is dropped.
    pub fn keep(&mut self) {
        self.netns.keep();
        for process in self.server.iter_mut().chain(&mut self.others).chain([&mut self.etcd]) {
            process.keep();
        }
        self.kept = true;
    }

    fn launch_kubectl<A: AsRef<OsStr>>(&self, kubeconfig: &Path, args: impl IntoIterator<Item = A>) -> Result<Launch> {
        Ok(kubectl(&self.programs, &self.netns, &self.folder, kubeconfig)?.args(args))
    }

    fn checked(&self, kubectl: Launch) -> Result<String> {
        let done = kubectl.finish()?;
        ensure!(done.success, "kubectl failed: {}{}", done.stderr, done.stdout);
        Ok(done.stdout.trim().to_owned())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for process in self.others.iter().chain(&self.server).chain([&self.etcd]) {
            let _ = process.signal(Signal::SIGKILL);
        }
        for error in leftovers::remove(&self.options.prefix) {
            eprintln!("{error}");
        }
    }
}

/// kubectl in the namespace of an API server whose files are in `folder`.
///
/// # Errors
/// When it is not in the cache.
pub fn kubectl(programs: &Programs, netns: &Netns, folder: &Path, kubeconfig: &Path) -> Result<Launch> {
    let program = programs.built(&KUBERNETES, "kubectl")?;
    Ok(Launch::new(&program.to_string_lossy())
        .variable("KUBECACHEDIR", folder.join("kubectl"))
        .variable("KUBECONFIG", kubeconfig)
        .patience(Duration::from_secs(60))
        .inside(netns))
}

/// Helm, with its own files in `folder`.
///
/// # Errors
/// When it is not in the cache.
pub fn helm(programs: &Programs, folder: &Path) -> Result<Launch> {
    let program = programs.built(&HELM, "helm")?;
    let home = |name: &str| folder.join("helm").join(name);
    Ok(Launch::new(&program.to_string_lossy())
        .variable("HELM_CACHE_HOME", home("cache"))
        .variable("HELM_CONFIG_HOME", home("config"))
        .variable("HELM_DATA_HOME", home("data"))
        .variable("KUBECACHEDIR", home("kubectl"))
        .patience(Duration::from_secs(120)))
}

/// The static tokens: the administrator's, and each node's.
fn tokens() -> String {
    let mut text = format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n");
    for number in 1..=MAX_NODES {
        text.push_str(&format!(
            "{},system:node:{name},{name},\"system:nodes\"\n",
            node_token(number),
            name = node_name(number)
        ));
    }
    text
}

/// The name of a node.
#[must_use]
pub fn node_name(number: u8) -> String {
    format!("node-{number}")
}

/// The token of a node's kubelet.
#[must_use]
pub fn node_token(number: u8) -> String {
    format!("token-of-{}", node_name(number))
}

/// The last lines of a log.
fn end_of(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
}
