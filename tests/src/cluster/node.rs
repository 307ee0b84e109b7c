//! A node: a kubelet and its container runtime in network, mount, PID, UTS and IPC namespaces of their own, with cgroups of
//! their own.
//!
//! The node shares everything else with the machine: the kernel, the files outside of `/run`, `/var/lib` and
//! `/var/log`, and the hierarchies of cgroups. When the first process of the node's PID namespace ends, the kernel ends
//! every process of the node.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::fchdir;

use super::api::{ADDRESS, ApiServer, BRIDGE, MAX_NODES, node_name};
use super::programs::{KUBERNETES, Programs};
use crate::names::Prefix;
use crate::netns::{self, Netns};
use crate::process::{Finished, Launch, Process};
use crate::{cgroups, requirements, wait};

mod configuration;
mod faults;

/// The socket of the container runtime, as seen on the node.
pub const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// A loaded machine needs some seconds for each step of a start.
const START: Duration = Duration::from_secs(60);

/// The folder of the node's CNI programs.
pub const CNI_PROGRAMS: &str = "/var/lib/cni/bin";

/// The folder of the node's CNI configuration.
pub const CNI_CONFIGURATION: &str = "/var/lib/cni/net.d";

/// The file of the node's CNI configuration.
pub const CONFLIST: &str = "10-bridge.conflist";

/// Folders that belong to the node only. They are empty at its start.
const OWN: [&str; 3] = ["/run", "/var/lib", "/var/log"];

/// Sysctls of the whole machine for which a kubelet requires certain values. The kubelet sees files with these values
/// instead.
const SETTINGS: [(&str, &str); 3] =
    [("vm/overcommit_memory", "1"), ("kernel/panic", "10"), ("kernel/panic_on_oops", "1")];

/// The file that has the PID of a node's first process.
const FIRST: &str = "first-process";

/// The folder with the manifests of static pods, in the folder of the node.
const STATIC_PODS: &str = "static-pods";

/// A node of a cluster.
#[derive(Debug)]
pub struct Node {
    /// The name of the node in Kubernetes.
    pub name: String,
    /// Its network namespace.
    pub netns: Netns,
    kubelet: Option<Process>,
    proxy: Option<Process>,
    containerd: Process,
    holder: Process,
    first: i32,
    number: u8,
    folder: PathBuf,
    programs: Programs,
    detached: bool,
}

impl Node {
    /// Makes node `number` and its network, and starts its container runtime.
    ///
    /// # Errors
    /// When the kernel refuses something, or the container runtime does not answer.
    pub fn start(api: &ApiServer, number: u8, detached: bool) -> Result<Self> {
        let name = node_name(number);
        let member = api.prefix().member(&name);
        let folder = api.folder().join(&name);
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let netns = Netns::create(&member)?;
        let Booted { holder, first } = boot(api, &netns, (&name, number), &folder, detached)?;
        let programs = api.programs().clone();
        let containerd = launch_containerd(first, &programs, &folder, detached)?;
        let mut node = Self {
            name,
            netns,
            kubelet: None,
            proxy: None,
            containerd,
            holder,
            first,
            number,
            folder,
            programs,
            detached,
        };
        node.wait_for_containerd()?;
        Ok(node)
    }

    /// Starts the kubelet, and kube-proxy for the Services.
    ///
    /// # Errors
    /// When one of the programs can't be started.
    pub fn start_kubelet(&mut self) -> Result<()> {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let program = self.programs.built(&KUBERNETES, "kubelet")?;
        let kubelet = Self::launch_in(self.first, &self.programs, &program)
            .args([
                format!("--config={}", file("kubelet.yaml")),
                format!("--kubeconfig={}", file("kubelet.kubeconfig")),
                format!("--hostname-override={}", self.name),
                format!("--node-ip={}", address(self.number)),
                "--root-dir=/var/lib/kubelet".to_owned(),
                "--cert-dir=/var/lib/kubelet/pki".to_owned(),
                "--v=2".to_owned(),
            ])
            .detached(self.detached)
            .log_to(&self.folder.join("kubelet.log"))
            .start()?;
        self.kubelet = Some(kubelet);
        let program = self.programs.built(&KUBERNETES, "kube-proxy")?;
        // The sysctls of connection tracking belong to the machine. With 0, kube-proxy does not change them.
        let proxy = Self::launch_in(self.first, &self.programs, &program)
            .args([format!("--kubeconfig={}", file("proxy.kubeconfig")), format!("--hostname-override={}", self.name)])
            .args(["--proxy-mode=nftables", "--conntrack-max-per-core=0", "--conntrack-min=0"])
            .args(["--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s"])
            .detached(self.detached)
            .log_to(&self.folder.join("kube-proxy.log"))
            .start()?;
        self.proxy = Some(proxy);
        Ok(())
    }

    /// A program of the machine that is started in all namespaces of the node.
    #[must_use]
    pub fn launch(&self, program: &str) -> Launch {
        Self::launch_in(self.first, &self.programs, Path::new(program))
    }

    /// Imports an image: a tar with one or more OCI layouts.
    ///
    /// # Errors
    /// With what the container runtime says.
    pub fn load_image(&self, image: &Path) -> Result<()> {
        import(self.first, &self.programs, image)
    }

    /// The current CNI configuration of the node.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn conflist(&self) -> Result<String> {
        let done = self.launch("cat").args([format!("{CNI_CONFIGURATION}/{CONFLIST}")]).finish()?;
        ensure!(done.success, "cannot read the CNI configuration of {}: {}", self.name, done.stderr);
        Ok(done.stdout)
    }

    /// Runs `ctr` on the node, with the containers and images of Kubernetes.
    ///
    /// # Errors
    /// When it can't be run.
    pub fn ctr(&self, args: &[&str]) -> Result<Finished> {
        ctr(self.first, &self.programs)?.args(args).finish()
    }

    /// The log file of the kubelet.
    #[must_use]
    pub fn kubelet_log(&self) -> PathBuf {
        self.folder.join("kubelet.log.err")
    }

    /// Has the kubelet run a static pod.
    ///
    /// # Errors
    /// When the manifest can't be written.
    pub fn run_static_pod(&self, name: &str, manifest: &str) -> Result<()> {
        let path = self.folder.join(STATIC_PODS).join(format!("{name}.yaml"));
        fs::write(&path, manifest).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The first process of the node's PID namespace: its PID on the machine.
    #[must_use]
    pub fn first(&self) -> i32 {
        self.first
    }

    /// Leaves the node in place when this is dropped.
    pub fn keep(&mut self) {
        self.netns.keep();
        for process in self.kubelet.iter_mut().chain(&mut self.proxy).chain([&mut self.containerd, &mut self.holder]) {
            process.keep();
        }
    }

    fn launch_in(first: i32, programs: &Programs, program: &Path) -> Launch {
        let (bin, sbin) = (programs.debian().join("usr/bin"), programs.debian().join("usr/sbin"));
        Launch::new("nsenter")
            .args(["-t".to_owned(), first.to_string()])
            .args(["-m", "-u", "-i", "-n", "-p", "--"])
            .args([program])
            .variable("PATH", format!("{}:{}:{}", bin.display(), sbin.display(), requirements::PATH))
            .patience(START)
    }

    fn wait_for_containerd(&mut self) -> Result<()> {
        let (first, programs, containerd) = (self.first, &self.programs, &mut self.containerd);
        let answers = wait::until_true("containerd answers", START, || {
            if let Some(status) = containerd.ended()? {
                bail!("containerd ended: {status}");
            }
            Ok(ctr(first, programs)?.args(["version"]).finish()?.success)
        });
        answers.with_context(|| format!("{}: see {}", self.name, self.folder.join("containerd.log.err").display()))
    }
}

/// What is there of a node before its programs run.
struct Booted {
    /// unshare(1), which waits for the first process.
    holder: Process,
    /// The first process of the node's PID namespace.
    first: i32,
}

/// Makes the network, the cgroups, the first process and the folders of a node.
fn boot(api: &ApiServer, netns: &Netns, (name, number): (&str, u8), folder: &Path, detached: bool) -> Result<Booted> {
    let member = api.prefix().member(name);
    network(api, netns, number)?;
    cgroups::create(&member)?;
    // unshare(1) waits for the first process of the PID namespace, which is killed when unshare ends. The first
    // process is a shell, because a shell reaps every orphan of the namespace.
    let holder = Launch::new("unshare")
        .args(["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["sh", "-c", "sleep infinity; exit"])
        .inside(netns)
        .detached(detached)
        .log_to(&folder.join("holder.log"))
        .start()?;
    let first = first_process(holder.id())?;
    fs::write(folder.join(FIRST), first.to_string())?;
    furnish(first, name, number, folder, api)?;
    configuration::configure(folder, number, &member, api)?;
    Ok(Booted { holder, first })
}

fn launch_containerd(first: i32, programs: &Programs, folder: &Path, detached: bool) -> Result<Process> {
    let containerd = programs.unpacked("usr/bin/containerd")?;
    Node::launch_in(first, programs, &containerd)
        .args(["--config".as_ref(), folder.join("containerd.toml").as_os_str()])
        .detached(detached)
        .log_to(&folder.join("containerd.log"))
        .start()
}

/// The nodes of a running cluster, each with its first process.
///
/// # Errors
/// When a node has ended.
pub fn running(prefix: &Prefix) -> Result<Vec<(String, i32)>> {
    let inode = |path: PathBuf| path.metadata().ok().map(|data| (data.dev(), data.ino()));
    let mut nodes = Vec::new();
    for name in (1..=MAX_NODES).map(node_name) {
        let file = prefix.folder_path().join(&name).join(FIRST);
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let first = text.trim().parse().with_context(|| format!("{} has no number", file.display()))?;
        // Another process may have the PID by now.
        let netns = inode(Path::new(netns::FOLDER).join(prefix.member(&name)));
        ensure!(netns.is_some() && netns == inode(PathBuf::from(format!("/proc/{first}/ns/net"))), "{name} has ended");
        nodes.push((name, first));
    }
    Ok(nodes)
}

/// Imports an image on the node whose first process is `first`.
///
/// # Errors
/// With what the container runtime says.
pub fn import(first: i32, programs: &Programs, image: &Path) -> Result<()> {
    // The node may not see the file. So it is opened here, and becomes the standard input of the program.
    let image = image.canonicalize().with_context(|| format!("there is no image {}", image.display()))?;
    let file = File::open(&image).with_context(|| format!("cannot open {}", image.display()))?;
    let done = ctr(first, programs)?.args(["images", "import", "-"]).input_file(file).finish()?;
    ensure!(done.success, "cannot import {}: {}{}", image.display(), done.stderr, done.stdout);
    Ok(())
}

fn ctr(first: i32, programs: &Programs) -> Result<Launch> {
    Ok(Node::launch_in(first, programs, &programs.unpacked("usr/bin/ctr")?).args(["--namespace", "k8s.io"]))
}

/// A node's address on the network between the nodes.
#[must_use]
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + number)
}

/// Makes the link to the API server. It is also the way to the pods of the other nodes.
fn network(api: &ApiServer, netns: &Netns, number: u8) -> Result<()> {
    let address = address(number);
    api.netns().ip(&format!(
        "link add {name} type veth peer name eth0 netns {}\nlink set {name} master {BRIDGE} up\n\
         route add 10.244.{number}.0/24 via {address}\n",
        netns.name(),
        name = node_name(number)
    ))?;
    netns.ip(&format!("addr add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {}\n", ADDRESS.ip()))?;
    netns.sysctl("ipv4/ip_forward", "1")?;
    api.netns().sysctl("ipv4/ip_forward", "1")
}

/// The process that unshare(1) has started. Once it runs its program, /proc is mounted.
fn first_process(holder: u32) -> Result<i32> {
    wait::until("the first process of the node", START, || {
        let children = fs::read_to_string(format!("/proc/{holder}/task/{holder}/children")).unwrap_or_default();
        let Some(child) = children.split_whitespace().next() else { return Ok(None) };
        let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        if name.trim() == "sh" { Ok(Some(child.parse()?)) } else { Ok(None) }
    })
}

/// Mounts the node's own folders and files in its mount namespace.
fn furnish(first: i32, name: &str, number: u8, folder: &Path, api: &ApiServer) -> Result<()> {
    let fakes = folder.join("settings");
    for (setting, value) in SETTINGS {
        let path = fakes.join(setting);
        fs::create_dir_all(path.parent().unwrap_or(&fakes))?;
        fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let debian = api.programs().debian();
    let kept = [api.folder().to_owned(), api.programs().root().to_owned()];
    in_mounts_of(first, || {
        change("/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
        change("/", None, MsFlags::MS_REC | MsFlags::MS_SHARED)?;
        let hidden = kept.map(|path| open_path(&path).map(|file| (path, file)));
        for path in OWN {
            change(path, Some("tmpfs"), MsFlags::empty())?;
            change(path, None, MsFlags::MS_SHARED)?;
        }
        for found in hidden {
            let (path, file) = found?;
            if !path.exists() {
                fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
                // The bind mount uses the thread's working folder and not `/proc/self/fd`: /proc is that of the node,
                // in which this process has no entry.
                fchdir(&file).with_context(|| format!("cannot enter {}", path.display()))?;
                bind(".", &path)?;
            }
        }
        for made in ["/run/netns", "/run/lock", "/var/log/pods", "/var/lib/kubelet"] {
            fs::create_dir_all(made).with_context(|| format!("cannot make {made}"))?;
        }
        for (setting, _) in SETTINGS {
            bind(&fakes.join(setting).to_string_lossy(), &Path::new("/proc/sys").join(setting))?;
        }
        network_of_pods(&debian, number)?;
        change("/sys/fs/bpf", Some("bpf"), MsFlags::empty())
    })?;
    let named = Launch::new("nsenter").args(["-t", &first.to_string(), "-u", "--", "hostname", name]).finish()?;
    ensure!(named.success, "cannot name {name}: {}", named.stderr);
    Ok(())
}

/// Copies the CNI programs and their configuration into the node's own folders.
fn network_of_pods(debian: &Path, number: u8) -> Result<()> {
    for folder in [CNI_PROGRAMS, CNI_CONFIGURATION] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {folder}"))?;
    }
    for program in ["bridge", "host-local", "loopback"] {
        let from = debian.join("usr/lib/cni").join(program);
        std::os::unix::fs::symlink(&from, Path::new(CNI_PROGRAMS).join(program))
            .with_context(|| format!("cannot link {}", from.display()))?;
    }
    let text = format!(
        r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [{{"type": "bridge", "bridge": "cni0", "isGateway": true,
 "ipMasq": false, "hairpinMode": true, "ipam": {{"type": "host-local", "dataDir": "/run/cni-ipam",
 "ranges": [[{{"subnet": "10.244.{number}.0/24"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}
"#
    );
    fs::write(Path::new(CNI_CONFIGURATION).join(CONFLIST), text).context("cannot write the CNI configuration")
}

/// Runs `work` in the mount namespace of a process, on a thread of its own.
fn in_mounts_of(process: i32, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let file = File::open(format!("/proc/{process}/ns/mnt")).context("the node has ended")?;
    #[expect(clippy::disallowed_methods, reason = "the thread ends after its work, so there is nothing to restore")]
    let enter = || {
        // A thread can enter a mount namespace only if it shares its root and working folder with no other thread.
        unshare(CloneFlags::CLONE_FS)?;
        nix::sched::setns(&file, CloneFlags::CLONE_NEWNS)
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter().context("cannot enter the mount namespace of the node")?;
            work()
        });
        thread.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
    })
}

fn open_path(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = File::options().read(true).custom_flags(OFlag::O_PATH.bits()).open(path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

/// Mounts a file system of type `kind`, or changes the propagation of a mount.
fn change(path: &str, kind: Option<&str>, flags: MsFlags) -> Result<()> {
    let data = (kind == Some("tmpfs")).then_some("mode=755");
    mount(kind, path, kind, flags, data)
        .with_context(|| format!("cannot mount {} on {path} ({flags:?})", kind.unwrap_or("nothing new")))
}

fn bind(source: &str, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot mount {source} on {}", target.display()))
}
