//! Beds for the comparison of connects with and without the mesh: the settings of `--connect`, the paths to a
//! destination, and destinations that are silent, slow or unreachable.

use std::fmt;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::attempt::{AT_ONCE, Attempt, Way};
use crate::mesh::PodManifest;
use crate::netns::Netns;
use crate::policy::hardware_address;
use crate::process::Launch;
use crate::testbed::Testbed;
use crate::topology::{Family, Pod, TWO_NODES};
use crate::wait;

/// When the connect of a captured pod returns, in the words of `--connect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connect {
    /// The daemon accepts first.
    Early,
    /// The connect waits for the destination.
    Held,
}

impl Connect {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Early, Self::Held];

    /// The arguments of the daemon, with further ones.
    #[must_use]
    pub fn arguments(self, further: &[&str]) -> Vec<String> {
        let setting = self.to_string();
        ["--connect", &setting].iter().chain(further).map(|argument| (*argument).to_owned()).collect()
    }
}

impl fmt::Display for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Early => "early",
            Self::Held => "held",
        })
    }
}

/// The path from `client-a` to `web-b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// The destination is outside the mesh: its node has no daemon.
    Outside,
    /// Both pods are in the mesh.
    Tunnel,
}

impl Path {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Outside, Self::Tunnel];

    /// The nodes with a daemon.
    #[must_use]
    pub fn nodes(self) -> &'static [&'static str] {
        match self {
            Self::Outside => &["node-a"],
            Self::Tunnel => &["node-a", "node-b"],
        }
    }
}

/// Two nodes with two pods each and the daemons of a path. Nothing is labelled yet.
///
/// # Errors
/// When a part of it can't be made.
pub fn unlabelled(connect: Connect, path: Path, further: &[&str]) -> Result<Testbed> {
    let mut bed = Testbed::new(TWO_NODES)?;
    for node in path.nodes() {
        bed.start_with(node, |options| options.arguments = connect.arguments(further))?;
    }
    Ok(bed)
}

/// The same with all pods of these nodes enrolled.
///
/// # Errors
/// When a part of it can't be made.
pub fn enrolled(connect: Connect, path: Path, further: &[&str]) -> Result<Testbed> {
    let bed = unlabelled(connect, path, further)?;
    bed.enrol()?;
    Ok(bed)
}

/// Makes the attempts of `client-a` without the mesh, enrols the pods, makes them again, and checks that each ended as
/// before, and not later beyond [`AT_ONCE`]. Returns the attempts with the mesh.
///
/// # Errors
/// When one ended otherwise, or was not captured.
pub fn compared(bed: &Testbed, attempts: impl Fn(&Pod) -> Result<Vec<Attempt>>) -> Result<Vec<Attempt>> {
    compared_within(bed, AT_ONCE, attempts)
}

/// The same, with another tolerance.
///
/// # Errors
/// As [`compared`].
pub fn compared_within(
    bed: &Testbed,
    slack: Duration,
    attempts: impl Fn(&Pod) -> Result<Vec<Attempt>>,
) -> Result<Vec<Attempt>> {
    let without = attempts(bed.pod("client-a")?).context("without the mesh")?;
    bed.enrol()?;
    let daemon = bed.daemon("node-a")?;
    let captured = daemon.verdict("client-a", "captured")?;
    let with = attempts(bed.pod("client-a")?).context("with the mesh")?;
    ensure!(!with.is_empty() && with.len() == without.len(), "{} attempts, then {}", without.len(), with.len());
    let captured = daemon.verdict("client-a", "captured")? - captured;
    ensure!(captured >= u64::try_from(with.len())?, "only {captured} of {} connects were captured", with.len());
    for (with, without) in with.iter().zip(&without) {
        println!(
            "{:?} to {}: {:?} after {:?}, without the mesh {:?} after {:?}",
            with.way, with.target, with.end, with.took, without.end, without.took
        );
    }
    for (with, without) in with.iter().zip(&without) {
        with.same_as(without, slack).with_context(|| daemon.tail())?;
    }
    Ok(with)
}

/// Attempts in these ways at each destination, one after the other.
///
/// # Errors
/// When one can't be made.
pub fn in_turn(pod: &Pod, ways: &[Way], targets: &[SocketAddr]) -> Result<Vec<Attempt>> {
    let each = targets.iter().flat_map(|target| ways.iter().map(move |way| (way, target)));
    each.map(|(way, target)| way.attempt(pod, *target)).collect()
}

/// The same, all at once: for attempts that take seconds.
///
/// # Errors
/// When one can't be made.
pub fn at_once(pod: &Pod, ways: &[Way], targets: &[SocketAddr]) -> Result<Vec<Attempt>> {
    let each = targets.iter().flat_map(|target| ways.iter().map(move |way| (*way, *target)));
    thread::scope(|scope| {
        let running: Vec<_> = each.map(|(way, target)| scope.spawn(move || way.attempt(pod, target))).collect();
        running.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("an attempt panicked"))?).collect()
    })
}

/// A port of a pod at which packets are dropped, until [`Silence::end`].
#[derive(Debug)]
pub struct Silence(Netns);

impl Silence {
    /// Drops what comes to a port of a pod.
    ///
    /// # Errors
    /// When the kernel takes no such rule.
    pub fn at(pod: &Pod, port: u16) -> Result<Self> {
        pod.netns.nft(&format!(
            "table inet silence {{ chain in {{ type filter hook input priority 0; tcp dport {port} drop; }}; }}"
        ))?;
        Ok(Self(Netns::existing(pod.netns.name())))
    }

    /// Lets packets through again.
    ///
    /// # Errors
    /// When the rule is gone.
    pub fn end(self) -> Result<()> {
        self.0.nft("delete table inet silence")
    }
}

/// Makes the first packet to a pod wait on its node for `delay`, while `act` runs; then it arrives. Nothing is lost, so
/// nothing has to be sent again: the node lacks the address of the pod's device for that time.
///
/// # Errors
/// When the kernel refuses, or `act` fails.
pub fn answered_after<T: Send>(
    bed: &Testbed,
    name: &str,
    delay: Duration,
    act: impl FnOnce() -> T + Send,
) -> Result<T> {
    let pod = bed.pod(name)?;
    let node = &bed.topology.node(&pod.node)?.netns;
    let card = hardware_address(pod)?;
    let each = |line: &dyn Fn(String) -> String| -> String {
        Family::BOTH.iter().map(|family| line(pod.ip(*family).to_string())).collect()
    };
    pod.netns.sysctl("ipv4/conf/all/arp_ignore", "8")?;
    pod.netns.nft(
        "table inet mute { chain in { type filter hook input priority 0; icmpv6 type nd-neighbor-solicit drop; }; }",
    )?;
    // An entry may be there or not; after this there is none.
    node.ip(&each(&|ip| format!("neigh replace {ip} lladdr {card} dev br0 nud reachable\nneigh del {ip} dev br0\n")))?;
    let outcome = thread::scope(|scope| -> Result<T> {
        let acting = scope.spawn(act);
        wait::pass(delay);
        node.ip(&each(&|ip| format!("neigh replace {ip} lladdr {card} dev br0 nud reachable\n")))?;
        acting.join().map_err(|_| anyhow::anyhow!("the act panicked"))
    });
    pod.netns.nft("delete table inet mute")?;
    pod.netns.sysctl("ipv4/conf/all/arp_ignore", "0")?;
    outcome
}

/// Takes the limits off the rate of ICMP messages in the node of a pod.
///
/// # Errors
/// When the kernel has no such setting.
pub fn unlimited_icmp(bed: &Testbed, node: &str) -> Result<()> {
    let netns = &bed.topology.node(node)?.netns;
    netns.sysctl("ipv4/icmp_ratelimit", "0")?;
    netns.sysctl("ipv6/icmp/ratelimit", "0")
}

/// A pod of the mesh on `node-b` that has a manifest, but no network namespace and no device.
///
/// # Errors
/// When the manifest can't be written.
pub fn ghost(bed: &Testbed) -> Result<[SocketAddr; 2]> {
    const ADDRESSES: [&str; 2] = ["10.10.2.99", "fd00:10:2::99"];
    let manifest = PodManifest::of(bed.pod("web-b")?).named("ghost").no_netns().addresses(&ADDRESSES);
    bed.change(|mesh| mesh.pod(&manifest))?;
    let [v4, v6] = ADDRESSES.map(|ip| Ok::<_, anyhow::Error>(SocketAddr::new(ip.parse()?, 7000)));
    Ok([v4?, v6?])
}

/// The connects without an answer in a pod, those of the daemon included, as `ss` lists them.
///
/// # Errors
/// When `ss` fails.
pub fn connecting(pod: &Pod) -> Result<Vec<String>> {
    let done = Launch::new("ss").args(["-Htan", "state", "syn-sent"]).inside(&pod.netns).finish()?;
    ensure!(done.success, "{}", done.stderr);
    Ok(done.stdout.lines().map(ToOwned::to_owned).collect())
}

/// Waits until no connect without an answer is left in these pods.
///
/// # Errors
/// When one is after a while.
pub fn nobody_connects(bed: &Testbed, pods: &[&str], patience: Duration) -> Result<()> {
    for name in pods {
        let pod = bed.pod(name)?;
        let met =
            wait::until_true(&format!("the connects in {name} to end"), patience, || Ok(connecting(pod)?.is_empty()));
        met.with_context(|| format!("{:?}", connecting(pod)))?;
    }
    Ok(())
}

/// A counter of the kernel's TCP in a pod, for example `TCPSynRetrans`.
///
/// # Errors
/// When there is none.
pub fn tcp_counter(pod: &Pod, name: &str) -> Result<u64> {
    let text = pod.netns.read("/proc/thread-self/net/netstat")?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().context("no names")?, lines.next().context("no values")?);
    let found = names.split(' ').zip(values.split(' ')).find(|(other, _)| *other == name);
    Ok(found.with_context(|| format!("no counter {name}"))?.1.parse()?)
}
