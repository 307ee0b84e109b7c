//! nginx and curl.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::netns::Netns;
use crate::process::{Launch, Process};
use crate::topology::{Pod, Topology};
use crate::wait;

/// nginx in a pod, on one port of all its addresses.
#[derive(Debug)]
pub struct Nginx {
    folder: PathBuf,
    process: Process,
}

impl Nginx {
    /// Starts nginx: `/` answers with the client's address, `/files/` serves [`Nginx::files`].
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn start(topology: &Topology, pod: &Pod, port: u16, detached: bool) -> Result<Self> {
        Self::start_in(&topology.folder.join(format!("nginx-{}", pod.name)), pod, port, detached)
    }

    /// Starts one of several in a pod, with a name of its own.
    ///
    /// # Errors
    /// As [`Nginx::start`].
    pub fn start_named(topology: &Topology, pod: &Pod, port: u16, name: &str) -> Result<Self> {
        Self::start_in(&topology.folder.join(format!("nginx-{name}")), pod, port, false)
    }

    fn start_in(folder: &Path, pod: &Pod, port: u16, detached: bool) -> Result<Self> {
        let folder = folder.to_owned();
        fs::create_dir_all(folder.join("files")).with_context(|| format!("cannot make {}", folder.display()))?;
        let settings = folder.join("nginx.conf");
        fs::write(&settings, configuration(&folder, port))?;
        let process = Launch::new("nginx")
            .args(["-p".as_ref(), folder.as_os_str(), "-e".as_ref(), folder.join("error.log").as_os_str()])
            .args(["-c".as_ref(), settings.as_os_str()])
            .inside(&pod.netns)
            .detached(detached)
            .log_to(&folder.join("output.log"))
            .start()?;
        let mut nginx = Self { folder, process };
        let what = format!("nginx in {}", pod.name);
        wait::until_true(&what, wait::PATIENCE, || {
            if let Some(status) = nginx.process.ended()? {
                let errors = fs::read_to_string(nginx.folder.join("error.log")).unwrap_or_default();
                anyhow::bail!("{what} ended with {status}: {errors}");
            }
            listens(pod, port)
        })?;
        Ok(nginx)
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Keeps the process running when this value is dropped.
    pub fn keep(&mut self) {
        self.process.keep();
    }

    /// The folder of files it serves.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        self.folder.join("files")
    }

    /// The client addresses of all requests so far, from its log.
    ///
    /// # Errors
    /// When the log contains something else.
    pub fn clients(&self) -> Result<Vec<IpAddr>> {
        let log = fs::read_to_string(self.folder.join("access.log")).unwrap_or_default();
        log.lines().map(|line| line.parse::<IpAddr>().with_context(|| format!("nginx logged {line}"))).collect()
    }
}

fn configuration(folder: &Path, port: u16) -> String {
    let folder = folder.display();
    format!(
        "user root;\ndaemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
         client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;\n\
         uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
         log_format client '$remote_addr';\naccess_log {folder}/access.log client;\ndefault_type text/plain;\n\
         server {{\nlisten 0.0.0.0:{port};\nlisten [::]:{port} ipv6only=on;\n\
         location /files/ {{ alias {folder}/files/; }}\n\
         location / {{ return 200 \"$remote_addr\"; }}\n\
         }}\n}}\n"
    )
}

/// Whether a process listens on a port in a pod, on IPv4 and IPv6. Asks the kernel; no connection is made.
fn listens(pod: &Pod, port: u16) -> Result<bool> {
    let done = Launch::new("ss").args(["-Htnl", &format!("sport = :{port}")]).inside(&pod.netns).finish()?;
    Ok(done.stdout.lines().count() >= 2)
}

/// The result of curl.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The HTTP status.
    pub status: u16,
    /// The client's own port.
    pub local_port: u16,
    /// The body.
    pub body: String,
}

/// Fetches `/` with curl from a pod.
///
/// # Errors
/// When curl fails; the message is curl's.
pub fn curl(pod: &Pod, target: SocketAddr, arguments: &[&str]) -> Result<Page> {
    curl_in(&pod.netns, target, arguments)
}

/// Fetches `/` with curl from any namespace.
///
/// # Errors
/// As [`curl`].
pub fn curl_in(netns: &Netns, target: SocketAddr, arguments: &[&str]) -> Result<Page> {
    let url = format!("http://{target}/");
    let done = Launch::new("curl")
        .args(["-sS", "--max-time", "5", "--noproxy", "*", "-w", "\n%{http_code} %{local_port}"])
        .args(arguments)
        .args([&url])
        .inside(netns)
        .finish()?;
    ensure!(done.success, "curl {url} in {}: {}", netns.name(), done.stderr.trim());
    let (body, facts) = done.stdout.rsplit_once('\n').context("curl wrote no facts")?;
    let (status, port) = facts.split_once(' ').context("curl wrote other facts")?;
    Ok(Page { status: status.parse()?, local_port: port.parse()?, body: body.trim_end().to_owned() })
}
