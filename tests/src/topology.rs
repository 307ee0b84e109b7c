//! Nodes on a wire, pods on a bridge, IPv4 and IPv6.
//!
//! ```text
//!  client-a  web-a                     client-b  web-b      10.10.<node>.10, .11 …   fd00:10:<node>::10, ::11 …
//!      \      /                            \      /
//!     br0, node-a ------- wire ---------- br0, node-b       10.10.<node>.1           fd00:10:<node>::1
//! ```

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::names::Prefix;
use crate::netns::Netns;
use crate::requirements;

/// The deadline of each operation on a socket that [`Pod::connect`] makes.
pub const SOCKET_DEADLINE: Duration = Duration::from_secs(5);

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: SocketAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The address for listening on all addresses.
    #[must_use]
    pub fn any(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The loopback address.
    #[must_use]
    pub fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }
}

/// A node's name and its pods' names.
pub type Shape<'a> = [(&'a str, &'a [&'a str])];

/// Two nodes with two pods each.
pub const TWO_NODES: &Shape<'static> = &[("node-a", &["client-a", "web-a"]), ("node-b", &["client-b", "web-b"])];

/// One node with two pods.
pub const ONE_NODE: &Shape<'static> = &[("node-a", &["client-a", "web-a"])];

/// A node: a namespace with a bridge for its pods and a wire to each other node.
#[derive(Debug)]
pub struct Node {
    /// The node's name.
    pub name: String,
    /// Its namespace; the node's daemon runs in it.
    pub netns: Netns,
    number: u8,
}

impl Node {
    /// The interface through which other nodes reach it: the name of its wire at their end.
    #[must_use]
    pub fn wire(&self) -> String {
        format!("wire{}", self.number)
    }

    /// Its IPv4 address for its own pods, which other nodes reach over the wire.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 10, self.number, 1)
    }

    /// Its IPv6 address, likewise.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, u16::from(self.number), 0, 0, 0, 0, 1)
    }

    /// Its address of a family, for its own pods.
    #[must_use]
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4().into(),
            Family::V6 => self.v6().into(),
        }
    }
}

/// The last part of the address of a node's first pod.
const FIRST_HOST: u8 = 10;

/// The rank of the pod whose address is the last one of the node's network.
const MOST_IN_ORDER: u8 = 254 - FIRST_HOST;

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// The pod's name.
    pub name: String,
    /// The name of its node.
    pub node: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

/// All nodes and pods of one test; everything is removed when this is dropped.
#[derive(Debug)]
pub struct Topology {
    /// The prefix of all names.
    pub prefix: Prefix,
    /// The folder for files of this topology.
    pub folder: PathBuf,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    kept: bool,
}

impl Topology {
    /// Makes a topology under names of its own.
    ///
    /// # Errors
    /// When root or a program is missing, or the kernel refuses something.
    pub fn new(shape: &Shape<'_>) -> Result<Self> {
        Self::named(Prefix::unique(), shape)
    }

    /// Makes a topology under given names.
    ///
    /// # Errors
    /// As [`Topology::new`], and when the names are taken.
    pub fn named(prefix: Prefix, shape: &Shape<'_>) -> Result<Self> {
        requirements::check()?;
        let folder = prefix.folder()?;
        let mut topology = Self { prefix, folder, nodes: Vec::new(), pods: Vec::new(), kept: false };
        for (number, (node, pods)) in (1..).zip(shape) {
            topology.add_node(number, node)?;
            for (rank, pod) in (0..).zip(*pods) {
                topology.add_pod(number, rank, pod)?;
            }
        }
        Ok(topology)
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All pods.
    #[must_use]
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// A node by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("no node {name}"))
    }

    /// A pod by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.iter().find(|pod| pod.name == name).with_context(|| format!("no pod {name}"))
    }

    /// Adds a pod to a node, at the next free address.
    ///
    /// # Errors
    /// When there is no such node or the kernel refuses.
    pub fn grow(&mut self, node: &str, pod: &str) -> Result<()> {
        let number = self.node(node)?.number;
        let rank = self.pods.iter().filter(|other| other.node == node).count();
        self.add_pod(number, u8::try_from(rank)?, pod)
    }

    /// Removes the name of a pod's namespace, as a container runtime does when the pod ends.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn delete_netns(&mut self, pod: &str) -> Result<()> {
        let pod = self.pods.iter_mut().find(|other| other.name == pod).context("no such pod")?;
        pod.netns.remove();
        Ok(())
    }

    /// Whether the node's end of a pod's cable still exists: the kernel removes it with the namespace.
    ///
    /// # Errors
    /// When the node's interfaces can't be listed.
    pub fn plugged(&self, pod: &str) -> Result<bool> {
        let node = &self.pod(pod)?.node;
        let devices = self.node(node)?.netns.read("/proc/thread-self/net/dev")?;
        Ok(devices.contains(&format!("{}:", cable(self.pod(pod)?))))
    }

    /// Leaves everything in place when this is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
        let nodes = self.nodes.iter_mut().map(|node| &mut node.netns);
        let pods = self.pods.iter_mut().map(|pod| &mut pod.netns);
        for netns in nodes.chain(pods) {
            netns.keep();
        }
    }

    fn add_node(&mut self, number: u8, name: &str) -> Result<()> {
        let netns = Netns::create(&self.prefix.member(name))?;
        quick_addresses(&netns)?;
        netns.sysctl("ipv4/ip_forward", "1")?;
        netns.sysctl("ipv6/conf/all/forwarding", "1")?;
        // With br_netfilter loaded a bridge would also apply address translation; routing must not depend on that.
        for hook in ["iptables", "ip6tables", "arptables"] {
            let _ = netns.sysctl(&format!("bridge/bridge-nf-call-{hook}"), "0");
        }
        // The bridge has an address of its own. Otherwise it takes the lowest address of its ports, which changes when
        // a pod is added, and packets of the pods to the old address are lost until they resolve it again.
        let mut batch = format!(
            "link add br0 address 02:00:00:00:00:{number:02x} type bridge mcast_snooping 0\n\
             link set br0 up\n\
             addr add 10.10.{number}.1/24 dev br0\n\
             addr add fd00:10:{number}::1/64 dev br0 nodad\n"
        );
        for other in &self.nodes {
            let (far, wire) = (other.number, format!("10.255.{number}{}", other.number));
            let wire6 = format!("fd00:255:{number}{far}:");
            writeln!(batch, "link add wire{far} type veth peer name wire{number} netns {}", other.netns.name())?;
            writeln!(batch, "link set wire{far} up")?;
            writeln!(batch, "addr add {wire}.1/24 dev wire{far}\naddr add {wire6}:1/64 dev wire{far} nodad")?;
        }
        netns.ip(&batch)?;
        for other in &self.nodes {
            let (far, wire) = (other.number, format!("10.255.{number}{}", other.number));
            let wire6 = format!("fd00:255:{number}{far}:");
            other.netns.ip(&format!(
                "link set wire{number} up\n\
                 addr add {wire}.2/24 dev wire{number}\naddr add {wire6}:2/64 dev wire{number} nodad\n\
                 route add 10.10.{number}.0/24 via {wire}.1\nroute add fd00:10:{number}::/64 via {wire6}:1\n"
            ))?;
            netns.ip(&format!(
                "route add 10.10.{far}.0/24 via {wire}.2\nroute add fd00:10:{far}::/64 via {wire6}:2\n"
            ))?;
        }
        self.nodes.push(Node { name: name.to_owned(), netns, number });
        Ok(())
    }

    fn add_pod(&mut self, number: u8, rank: u8, name: &str) -> Result<()> {
        let node = self.nodes.iter().find(|node| node.number == number).context("no such node")?;
        let netns = Netns::create(&self.prefix.member(name))?;
        quick_addresses(&netns)?;
        // 250 pods: the last of them have the addresses before those of the first.
        let host = if rank <= MOST_IN_ORDER { FIRST_HOST + rank } else { rank - MOST_IN_ORDER + 1 };
        let v6 = format!("fd00:10:{number}::{host}").parse()?;
        let pod =
            Pod { name: name.to_owned(), node: node.name.clone(), netns, v4: Ipv4Addr::new(10, 10, number, host), v6 };
        let cable = cable(&pod);
        node.netns.ip(&format!(
            "link add {cable} type veth peer name eth0 netns {}\nlink set {cable} master br0 up\n",
            pod.netns.name()
        ))?;
        pod.netns.ip(&format!(
            "link set eth0 up\n\
             addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
             route add default via 10.10.{number}.1\nroute add default via fd00:10:{number}::1\n",
            pod.v4, pod.v6
        ))?;
        self.pods.push(pod);
        Ok(())
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for node in &self.nodes {
            let _ = std::fs::remove_dir_all(self.prefix.pins(&node.name));
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Pod {
    /// The pod's address of a family.
    #[must_use]
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// The pod's address of a family, and a port.
    #[must_use]
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(family), port)
    }

    /// A TCP socket in the pod, with deadlines.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn socket(&self, family: Family) -> Result<Socket> {
        self.socket_of(family, Protocol::TCP)
    }

    /// A stream socket of a protocol (TCP or MPTCP) in the pod, with deadlines.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn socket_of(&self, family: Family, protocol: Protocol) -> Result<Socket> {
        let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = self.netns.run(|| Socket::new(domain, Type::STREAM, Some(protocol)))??;
        socket.set_read_timeout(Some(SOCKET_DEADLINE))?;
        socket.set_write_timeout(Some(SOCKET_DEADLINE))?;
        Ok(socket)
    }

    /// Connects from the pod with a plain blocking connect (bounded by the deadline for sending).
    ///
    /// # Errors
    /// When the connect fails.
    pub fn connect(&self, target: SocketAddr) -> Result<TcpStream> {
        let socket = self.socket(Family::of(target))?;
        socket.connect(&target.into()).with_context(|| format!("{} cannot connect to {target}", self.name))?;
        Ok(socket.into())
    }

    /// Listens in the pod.
    ///
    /// # Errors
    /// When the address is not available.
    pub fn listen(&self, address: SocketAddr) -> Result<TcpListener> {
        let listen = || {
            let domain = Domain::for_address(address);
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(4096)?;
            Ok::<_, std::io::Error>(socket.into())
        };
        self.netns.run(listen)?.with_context(|| format!("{} cannot listen on {address}", self.name))
    }
}

/// The node's end of a pod's cable.
fn cable(pod: &Pod) -> String {
    let [.., number, host] = pod.v4.octets();
    format!("pod{number}-{host}")
}

/// Makes addresses usable at once: no duplicate address detection, no waiting for a router.
fn quick_addresses(netns: &Netns) -> Result<()> {
    for scope in ["all", "default"] {
        netns.sysctl(&format!("ipv6/conf/{scope}/accept_dad"), "0")?;
        netns.sysctl(&format!("ipv6/conf/{scope}/accept_ra"), "0")?;
    }
    Ok(())
}
