//! The demo: two nodes with two pods each, and a guest; first without the label, then with the label and policies, then
//! without the label again.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::apps::nginx::Nginx;
use crate::ca;
use crate::control_plane::ControlPlane;
use crate::daemon::{self, Daemon, DaemonOptions};
use crate::footprint::Footprint;
use crate::mesh::Mesh;
use crate::names::Prefix;
use crate::requirements;
use crate::topology::{TWO_NODES, Topology};
use crate::wait;

mod handshake;
mod identities;
mod leftovers;
mod policies;
mod probe;
mod served;
mod table;
mod wire;

use leftovers::Leftovers;
use policies::Scene;
use probe::Cell;

/// The demo's manifests.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo");

const NODES: [&str; 2] = ["node-a", "node-b"];
const WEB_PORT: u16 = 80;

/// A pod on `node-b` without a manifest: it is not in the mesh, and its connections are not captured.
const GUEST: &str = "guest";

/// Options of the demo.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Keeps everything running, labelled, and prints how to enter it.
    pub keep: bool,
    /// Removes the remains of `keep`, and does nothing else.
    pub clean: bool,
    /// A control plane has the manifests and the CA, and the daemons have neither.
    pub control_plane: bool,
    /// The daemon's program.
    pub ztunnel: PathBuf,
}

/// Runs the demo.
///
/// # Errors
/// When a part of it can't be made, or when a result is not as expected.
pub fn run(options: &DemoOptions) -> Result<()> {
    requirements::check()?;
    for program in ["nginx", "curl", "tcpdump", "openssl"] {
        requirements::program(program)?;
    }
    if options.clean {
        return leftovers::clean();
    }
    leftovers::refuse_or_clean()?;
    ensure!(
        options.ztunnel.is_file(),
        "{} is no file: `cargo xtask build` makes the daemon",
        options.ztunnel.display()
    );
    Stage::build(options)?.play(options.keep)
}

/// Everything of the demo, removed in the order of the fields.
struct Stage {
    ztunnel: PathBuf,
    daemons: Vec<Daemon>,
    plane: Option<ControlPlane>,
    webs: Vec<Nginx>,
    mesh: Mesh,
    topology: Topology,
}

/// The three phases of the demo.
const PHASES: [&str; 3] = ["before the label", "with the label", "after unlabelling"];

impl Stage {
    fn build(options: &DemoOptions) -> Result<Self> {
        let source = match options.control_plane {
            true => "a control plane on node-a that alone has the manifests and the key of the CA",
            false => "one CA",
        };
        say(&format!(
            "two nodes on a wire, two pods a node and a guest, nginx in each web, one daemon a node, {source} …"
        ))?;
        let mut topology = Topology::named(Prefix::demo(), TWO_NODES)?;
        topology.grow("node-b", GUEST)?;
        let mut leftovers = Leftovers::begin(&topology.folder)?;
        let mesh = Mesh::copy_of(Path::new(MANIFESTS), &topology.folder.join("mesh"))?;
        handshake::make_ca(&options.ztunnel, &topology)?;
        let mut webs = Vec::new();
        for web in ["web-a", "web-b"] {
            let nginx = Nginx::start(&topology, topology.pod(web)?, WEB_PORT, options.keep)?;
            leftovers.add(nginx.id())?;
            wire::publish(&nginx)?;
            webs.push(nginx);
        }
        let plane = match options.control_plane {
            true => Some(ControlPlane::start(&topology, NODES[0], &mesh, &options.ztunnel, options.keep)?),
            false => None,
        };
        if let Some(plane) = &plane {
            leftovers.add(plane.id())?;
        }
        let mut daemons = Vec::new();
        for node in NODES {
            let mut settings = DaemonOptions::new(options.ztunnel.clone());
            settings.detached = options.keep;
            if let Some(plane) = &plane {
                let of_mesh = topology.pods().iter().filter(|pod| pod.name != GUEST);
                settings.control_plane = Some(plane.remote(&topology, node, of_mesh)?);
            }
            let daemon = Daemon::start(&topology, node, &mesh, settings)?;
            leftovers.add(daemon.id())?;
            daemons.push(daemon);
        }
        Ok(Self { ztunnel: options.ztunnel.clone(), daemons, plane, webs, mesh, topology })
    }

    fn play(mut self, keep: bool) -> Result<()> {
        let before = self.footprints()?;
        let mut columns = vec![self.column(false)?];
        let readable = wire::watch(&self.topology, "before")?;
        self.label()?;
        columns.push(self.column(true)?);
        let ciphered = wire::watch(&self.topology, "with")?;
        let (guest, web) = (self.topology.pod(GUEST)?, self.topology.pod("web-b")?);
        let handshake = handshake::told(&self.ztunnel, &self.topology, guest, web)?;
        let policy = self.policies()?;
        self.unlabel()?;
        columns.push(self.column(false)?);
        say(&table::render(&PHASES, &probe::paths(), &columns))?;
        say(&identities::told(&self.daemons)?)?;
        if let Some(plane) = &self.plane {
            say(&served::told(plane, &self.daemons)?)?;
        }
        say(&format!(
            "On the wire between the nodes, while client-a fetched a page from web-b:\n  \
             before the label: {}\n  with the label:   {}",
            readable.told(),
            ciphered.told()
        ))?;
        say(&handshake)?;
        say(&policy.text)?;
        let mut faults = self.differences(&before)?;
        faults.extend(policy.faults);
        faults.extend(readable.faults(false).into_iter().chain(ciphered.faults(true)));
        faults.extend(columns.iter().flatten().flat_map(Cell::faults));
        if keep && faults.is_empty() {
            self.label()?;
            return self.leave();
        }
        faults.extend(self.end()?);
        self.verdict(&faults)
    }

    fn policies(&self) -> Result<policies::Shown> {
        let files = self.webs.last().context("no web")?.files();
        let (ztunnel, daemons) = (self.ztunnel.as_path(), self.daemons.as_slice());
        Scene { ztunnel, daemons, mesh: &self.mesh, topology: &self.topology, files: &files }.play()
    }

    /// Makes every request once.
    fn column(&self, labelled: bool) -> Result<Vec<Cell>> {
        probe::paths().iter().map(|path| Cell::fill(path, &self.topology, &self.daemons, labelled)).collect()
    }

    fn label(&self) -> Result<()> {
        self.mesh.label()?;
        self.each_pod(Daemon::enrolled)?;
        for daemon in &self.daemons {
            for account in ["client", "web"] {
                daemon.certified(&ca::identity(account))?;
            }
        }
        Ok(())
    }

    fn unlabel(&self) -> Result<()> {
        self.mesh.unlabel()?;
        self.each_pod(Daemon::released)
    }

    fn each_pod(&self, act: impl Fn(&Daemon, &str) -> Result<()>) -> Result<()> {
        for daemon in &self.daemons {
            for pod in self.topology.pods().iter().filter(|pod| pod.node == daemon.node && pod.name != GUEST) {
                act(daemon, &pod.name)?;
            }
        }
        Ok(())
    }

    fn footprints(&self) -> Result<Vec<(String, Footprint)>> {
        self.topology.pods().iter().map(|pod| Ok((pod.name.clone(), Footprint::of(&pod.netns)?))).collect()
    }

    /// The differences to before, once the daemons had time to undo their changes.
    fn differences(&self, before: &[(String, Footprint)]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let _ = wait::until_true("the pods to be as before", wait::PATIENCE / 5, || {
            found.clear();
            for ((pod, before), (_, after)) in before.iter().zip(self.footprints()?) {
                found.extend(before.difference(&after).iter().map(|line| format!("{pod} is not as before: {line}")));
            }
            Ok(found.is_empty())
        });
        Ok(found)
    }

    /// Ends the daemons gracefully, so that no line can be missing from their logs.
    fn end(&mut self) -> Result<Vec<String>> {
        let mut faults = Vec::new();
        for daemon in &mut self.daemons {
            daemon.terminate()?;
            // The connections of openssl have lines, too: about connections to the HBONE port itself.
            let lines = daemon.access()?.iter().filter(|line| line.asked().port() == WEB_PORT).count();
            let wanted = probe::lines_at(&daemon.node) + policies::lines_at(&self.topology, &daemon.node)?;
            if lines != wanted {
                faults.push(format!(
                    "{} logged {lines} connections instead of {wanted}\n{}",
                    daemon.node,
                    daemon.tail()
                ));
            }
            daemon.cleanup().context("after the demo")?;
        }
        if let Some(plane) = &mut self.plane {
            plane.terminate()?;
        }
        Ok(faults)
    }

    fn verdict(self, faults: &[String]) -> Result<()> {
        let pods = self.topology.pods().len();
        drop(self);
        if faults.is_empty() {
            say(&format!(
                "Rules, routes, settings and listeners of all {pods} pods: as before. Everything is removed.\n\
                 (`cargo xtask demo --keep` leaves it running, to look around.)"
            ))
        } else {
            bail!("the demo did not show what it should:\n{}", faults.join("\n"))
        }
    }

    /// Keeps everything running and prints how to enter it.
    fn leave(mut self) -> Result<()> {
        leftovers::mark_kept(&self.topology.folder)?;
        self.daemons.iter_mut().for_each(Daemon::keep);
        self.plane.iter_mut().for_each(ControlPlane::keep);
        self.webs.iter_mut().for_each(Nginx::keep);
        self.topology.keep();
        let web = self.topology.pod("web-b")?;
        let mut text = String::from("Left running, labelled. To enter:\n");
        for pod in self.topology.pods() {
            text.push_str(&format!("  {:<9} nsenter --net={} bash\n", pod.name, pod.netns.path().display()));
        }
        for node in self.topology.nodes() {
            text.push_str(&format!("  {:<9} nsenter --net={} bash\n", node.name, node.netns.path().display()));
        }
        text.push_str(&format!("For example, in client-a: curl http://{}/  or  curl http://[{}]/\n", web.v4, web.v6));
        for daemon in &self.daemons {
            text.push_str(&format!("Log of {}: tail -f {}\n", daemon.node, daemon.output().display()));
        }
        if let Some(plane) = &self.plane {
            text.push_str(&format!("Log of the control plane: tail -f {}\n", plane.output().display()));
            text.push_str(&format!("Ask it, in node-a: curl http://{}/debug/nodes\n", plane.admin()));
        }
        text.push_str(&format!("Unlabel: edit {}/namespace.yaml\n", self.mesh.folder().display()));
        text.push_str("Policies to put beside it: deploy/demo/policies\n");
        text.push_str("Ask a daemon, in its node: curl http://127.0.0.1:15000/config_dump\n");
        text.push_str("Look at the wire, in node-a: tcpdump -ni wire2\n");
        text.push_str(&format!("The CA: ztunnel ca show --ca-dir {}\n", daemon::ca_folder(&self.topology).display()));
        text.push_str("Remove everything: cargo xtask demo --clean");
        say(&text)
    }
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").context("cannot write to standard output")
}
