//! What happens to nodes: their programs end and are started again, and the whole node is.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Booted, Node, START, boot, launch_containerd};
use crate::cluster::api::ApiServer;
use crate::netns::Netns;
use crate::process::Process;
use crate::{cgroups, wait};

/// Folders whose files are there after a reboot: those of the daemon, and the CNI programs with their configuration.
const LASTING: [&str; 2] = ["var/lib/ztunnel", "var/lib/cni"];

impl Node {
    /// Kills the kubelet, and starts it again.
    ///
    /// # Errors
    /// When it does not end, or cannot be started.
    pub fn restart_kubelet(&mut self) -> Result<()> {
        for mut process in self.kubelet.take().into_iter().chain(self.proxy.take()) {
            end(&mut process)?;
        }
        self.start_kubelet()
    }

    /// Kills the container runtime, and starts it again. Containers run on, as each has a process of its own that holds it.
    ///
    /// # Errors
    /// When it does not end, or does not answer afterwards.
    pub fn restart_containerd(&mut self) -> Result<()> {
        end(&mut self.containerd)?;
        self.containerd = launch_containerd(self.first, &self.programs, &self.folder, self.detached)?;
        self.wait_for_containerd()
    }

    /// Ends all processes and namespaces of the node, as a reset of a machine does, and starts the node again. The images and [`LASTING`]
    /// folders are kept.
    ///
    /// # Errors
    /// When something of it does not end, or does not start.
    pub fn reboot(&mut self, api: &ApiServer) -> Result<()> {
        let saved = self.folder.join("saved.tar");
        let archive = saved.display().to_string();
        let packed = self.launch("tar").args(["-C", "/", "-cf", &archive]).args(LASTING).finish()?;
        ensure!(packed.success, "cannot save the folders of {}: {}", self.name, packed.stderr);
        for process in self.kubelet.take().iter_mut().chain(&mut self.proxy.take()).chain([&mut self.containerd]) {
            process.kill()?;
        }
        // When the first process of the PID namespace ends, the kernel ends all others.
        kill(Pid::from_raw(self.first), Signal::SIGKILL).context("the node has ended")?;
        self.holder.ended_within(START)?;
        let member = api.prefix().member(&self.name);
        for group in cgroups::named(&member) {
            wait::until_true("the processes of the node have ended", START, || Ok(cgroups::remove(&group).is_ok()))?;
        }
        self.netns.remove();
        wait::until_true("the network of the node is gone", START, || {
            // The kernel removes the other end of the link with the namespace.
            let _gone = api.netns().ip(&format!("link del {}\n", self.name));
            Ok(api.netns().ip(&format!("link show {}\n", self.name)).is_err())
        })?;
        api.netns().ip(&format!("route del 10.244.{}.0/24\n", self.number))?;
        self.netns = Netns::create(&member)?;
        let Booted { holder, first } = boot(api, &self.netns, (&self.name, self.number), &self.folder, self.detached)?;
        (self.holder, self.first) = (holder, first);
        let restored = self.launch("tar").args(["-C", "/", "-xf", &archive]).finish()?;
        ensure!(restored.success, "cannot restore the folders of {}: {}", self.name, restored.stderr);
        self.containerd = launch_containerd(self.first, &self.programs, &self.folder, self.detached)?;
        self.wait_for_containerd()?;
        self.start_kubelet()
    }
}

/// Ends a program that was started by nsenter(1), which waits for it.
fn end(waiting: &mut Process) -> Result<()> {
    let children = format!("/proc/{id}/task/{id}/children", id = waiting.id());
    let children = fs::read_to_string(&children).with_context(|| format!("cannot read {children}"))?;
    for child in children.split_whitespace() {
        kill(Pid::from_raw(child.parse()?), Signal::SIGKILL).context("the program has ended already")?;
    }
    waiting.ended_within(START).map(drop)
}
