//! A control plane in the network namespace of an API server, with the rights of `deploy/control-plane/rbac.yaml`.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::ApiServer;
use crate::process::{Launch, Process};
use crate::{admin, settings, wait};

/// The rights of the control plane.
pub const RBAC: &str = include_str!("../../../deploy/control-plane/rbac.yaml");

/// The namespace of the control plane and of the node daemons.
pub const NAMESPACE: &str = "istio-system";

/// The service account of the control plane.
pub const ACCOUNT: &str = "ztunnel-control-plane";

/// The audience of the API server itself.
const API_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

/// The control plane looks every 30 s for a type that is not installed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A control plane. Dropping it kills it.
#[derive(Debug)]
pub struct Plane {
    number: u16,
    output: PathBuf,
    process: Process,
}

/// The answer of `/healthz/ready`.
#[derive(Debug)]
pub struct Readiness {
    /// Whether it is ready.
    pub is_ready: bool,
    /// The text.
    pub text: String,
}

impl Plane {
    /// Starts a control plane with further flags. `number` is unique, from 0 on. This does not wait until the control
    /// plane is ready.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn launch(api: &ApiServer, number: u16, flags: &[&str]) -> Result<Self> {
        let token = api.service_account_token(NAMESPACE, ACCOUNT, API_AUDIENCE)?;
        let kubeconfig = api.kubeconfig_for(ACCOUNT, &token)?;
        let source = ["--kubernetes".as_ref(), "--kubeconfig".as_ref(), kubeconfig.as_os_str()];
        Self::launch_with(api, number, source, flags)
    }

    /// Starts a control plane that reads its mesh from a folder, in the same network namespace, and waits until it is
    /// ready.
    ///
    /// # Errors
    /// When it ends or does not become ready; the message has its log.
    pub fn on_folder(api: &ApiServer, number: u16, folder: &Path, flags: &[&str]) -> Result<Self> {
        let mut plane = Self::launch_with(api, number, ["--mesh".as_ref(), folder.as_os_str()], flags)?;
        plane.until_ready(api)?;
        Ok(plane)
    }

    fn launch_with<'a>(
        api: &ApiServer,
        number: u16,
        source: impl IntoIterator<Item = &'a OsStr>,
        flags: &[&str],
    ) -> Result<Self> {
        let output = api.folder().join(format!("control-plane-{number}.log"));
        let port = |of: u16| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), of + 100 * number).to_string();
        let process = Launch::new(&settings::daemon_binary()?.to_string_lossy())
            .args(["control-plane"])
            .args(source)
            .args(["--listen".to_owned(), port(15012), "--metrics".to_owned(), port(15014)])
            .args(["--readiness".to_owned(), port(15022), "--admin".to_owned(), port(15013)])
            .args(["--log", "info,ztunnel::control::kubernetes=debug,ztunnel::plane=debug"])
            .args(flags)
            .inside(api.netns())
            .log_to(&output)
            .start()?;
        Ok(Self { number, output, process })
    }

    /// Starts a control plane like [`Plane::launch`], and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or does not become ready; the message has its log.
    pub fn start(api: &ApiServer, number: u16, flags: &[&str]) -> Result<Self> {
        let mut plane = Self::launch(api, number, flags)?;
        plane.until_ready(api)?;
        Ok(plane)
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// When it ends or does not become ready; the message has its log.
    pub fn until_ready(&mut self, api: &ApiServer) -> Result<()> {
        let ready = wait::until_true("the control plane to be ready", PATIENCE, || {
            if let Some(status) = self.process.ended()? {
                anyhow::bail!("it ended: {status}");
            }
            Ok(self.readiness(api).is_ok_and(|readiness| readiness.is_ready))
        });
        ready.with_context(|| self.log())
    }

    fn address(&self, of: u16) -> String {
        format!("127.0.0.1:{}", of + 100 * self.number)
    }

    /// The address to which nodes connect, in the API server's network namespace.
    #[must_use]
    pub fn listen(&self) -> String {
        self.address(15012)
    }

    /// The control plane's answer whether it is ready.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn readiness(&self, api: &ApiServer) -> Result<Readiness> {
        let answer = admin::get_from(api.netns(), &self.address(15022), "/healthz/ready")?;
        Ok(Readiness { is_ready: answer.status == 200, text: answer.body })
    }

    /// The content of `/debug/nodes`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn nodes(&self, api: &ApiServer) -> Result<Value> {
        let answer = admin::get_from(api.netns(), &self.address(15013), "/debug/nodes").with_context(|| self.log())?;
        ensure!(answer.status == 200, "/debug/nodes answered {}: {}", answer.status, answer.body);
        Ok(serde_json::from_str(&answer.body)?)
    }

    /// Waits until the content of `/debug/nodes` fulfils a condition.
    ///
    /// # Errors
    /// When the condition is not met in time; the message has the content and the log.
    pub fn until(&self, api: &ApiServer, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let met = wait::until_true(what, PATIENCE, || {
            last = self.nodes(api)?;
            Ok(is_so(&last))
        });
        met.with_context(|| format!("{last:#}\n{}", self.log()))?;
        Ok(last)
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self, api: &ApiServer) -> Result<String> {
        Ok(admin::get_from(api.netns(), &self.address(15014), "/metrics")?.body)
    }

    /// The PID of the control plane.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = fs::read_to_string(&self.output).unwrap_or_default();
        text.push_str(&fs::read_to_string(self.output.with_added_extension("err")).unwrap_or_default());
        text
    }

    /// Waits until the control plane has ended.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn ended(&mut self) -> Result<()> {
        self.process.ended_within(PATIENCE).map(drop).with_context(|| self.log())
    }

    /// Kills the control plane with SIGKILL.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Sends SIGTERM to the control plane.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn terminate(&self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)
    }
}

/// Gives the control plane its rights, and Istio's types of objects if asked for.
///
/// # Errors
/// When the API server refuses something.
pub fn prepare(api: &ApiServer, with_crds: bool) -> Result<()> {
    api.apply(RBAC)?;
    if with_crds {
        crds(api)?;
    }
    Ok(())
}

/// Installs Istio's types of objects, without schemas.
///
/// # Errors
/// When the API server refuses one, or does not serve it in time.
pub fn crds(api: &ApiServer) -> Result<()> {
    for (group, kind, plural) in [
        ("networking", "ServiceEntry", "serviceentries"),
        ("networking", "WorkloadEntry", "workloadentries"),
        ("security", "AuthorizationPolicy", "authorizationpolicies"),
        ("security", "PeerAuthentication", "peerauthentications"),
    ] {
        let singular = kind.to_lowercase();
        api.apply(&format!(
            "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: {plural}.{group}.istio.io}}
spec:
  group: {group}.istio.io
  scope: Namespaced
  names: {{kind: {kind}, plural: {plural}, singular: {singular}, listKind: {kind}List}}
  versions:
    - name: v1
      served: true
      storage: true
      subresources: {{status: {{}}}}
      schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}
"
        ))?;
        wait::until_true("the API server has the type", wait::PATIENCE, || {
            Ok(api.try_kubectl(["get", &format!("{plural}.{group}.istio.io"), "-A"])?.success)
        })?;
    }
    Ok(())
}

/// Makes a directory of node tokens with the token of one node.
///
/// # Errors
/// When it can't be written.
pub fn tokens(folder: &Path) -> Result<PathBuf> {
    let tokens = folder.join("node-tokens");
    fs::create_dir_all(&tokens)?;
    let path = tokens.join("node-1");
    fs::write(&path, format!("token-of-node-1-{:0>32}\n", std::process::id()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(tokens)
}
