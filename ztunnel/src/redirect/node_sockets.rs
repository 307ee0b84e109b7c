//! Whether a client is the kubelet of this node, when it probes a pod that asks others for an identity.
//!
//! An address proves nothing: whoever can send packets can write the node's address into them, and what a pod sends to the
//! outside may bear it by translation. A connection whose *other end* is a socket in the node's own network namespace was
//! made by a process there, and that the kernel knows. It also knows whose socket it is: see [`kubelet`](super::kubelet).
//!
//! It is asked for the one socket, not for a list, so that the cost does not grow with the node's connections: some
//! microseconds. What it looks up is what a packet would reach, and that may be a listener on the port; therefore the
//! answer is compared with the question. A socket that is bound to an interface is not found: whoever binds his probes
//! to one is refused.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::fchown,
    sync::{Arc, Mutex, PoisonError},
};

use netlink_packet_core::{NLM_F_DUMP, Nla as _};
use netlink_packet_sock_diag::{
    constants::{AF_INET, TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2},
    inet::{InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::Socket;

use super::{
    cgroup,
    kubelet::{Kubelet, KubeletCgroup, SocketOwner},
    sock_diag::{self, Answer},
};
use crate::net::node::{Client, NodeConnections};

/// Any: INET_DIAG_NOCOOKIE of linux/inet_diag.h.
const ANY_COOKIE: [u8; 8] = [0xff; 8];
/// INET_DIAG_CGROUP_ID of linux/inet_diag.h; the library does not know it.
const CGROUP_ID: u16 = 21;
/// Of the user called nobody; any but root would do.
const NOBODY: u32 = 65_534;

/// The TCP sockets of one network namespace, that of the thread that made it. Cheap to clone, and good on every thread,
/// wherever that is: the question goes through a socket that stays where it was made.
///
/// Behind a lock, because the answer is there when the question has been sent: nobody waits for anything but another
/// question, and one socket in place of one for each question leaves nothing to go wrong at a probe.
#[derive(Clone, Debug)]
pub struct NodeSockets {
    asker: Arc<Mutex<Asker>>,
    kubelet: Arc<Kubelet>,
    /// Whether the kernel tells the user of a socket that its process has closed (since Linux 6.17), and not 0.
    tells_closed: bool,
}

#[derive(Debug)]
struct Asker {
    socket: Socket,
    /// Of the last question, so that what was left from one that failed is told from its answer.
    sequence: u32,
}

impl NodeSockets {
    /// The sockets of the network namespace that this thread is in, and where the kubelet is.
    ///
    /// # Errors
    /// When the kernel can't tell (CONFIG_INET_DIAG is missing): then nobody can be told to be of this node.
    pub fn open(kubelet: KubeletCgroup) -> io::Result<Self> {
        // Where the kernel knows nothing of TCP's sockets it says the same as of a socket that is not there, but not so of
        // an empty list. It loads its modules by that, too, which nobody should have to wait for later.
        let trial = sock_diag::open()?;
        trial.send(&sock_diag::request(AF_INET, SocketId::new_v4(), StateFlags::empty(), NLM_F_DUMP, 0), 0)?;
        for (_, answer) in sock_diag::receive(&trial)? {
            answer?;
        }
        let socket = sock_diag::open()?;
        socket.set_non_blocking(true)?;
        let kubelet = Arc::new(Kubelet::new(kubelet, cgroup::root().ok()));
        let asker = Arc::new(Mutex::new(Asker { socket, sequence: 0 }));
        let node = Self { asker, kubelet, tells_closed: false };
        // Where that can't be tried, nothing is concluded from the user of a closed socket.
        let tells_closed = node.try_closed().unwrap_or(false);
        Ok(Self { tells_closed, ..node })
    }

    /// Whether the kernel tells the user of a socket that has been closed.
    fn try_closed(&self) -> io::Result<bool> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (local, remote) = (client.local_addr()?, client.peer_addr()?);
        fchown(&client, Some(NOBODY), None)?;
        drop(client);
        Ok(self.find(local, remote)?.is_some_and(|found| found.header.uid == NOBODY))
    }

    /// The socket with these two ends, if it is open.
    fn find(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<InetResponse>> {
        let (local, remote) = (canonical(local), canonical(remote));
        if local.is_ipv4() != remote.is_ipv4() {
            return Ok(None);
        }
        let id = SocketId {
            source_address: local.ip(),
            source_port: local.port(),
            destination_address: remote.ip(),
            destination_port: remote.port(),
            interface_id: 0,
            cookie: ANY_COOKIE,
        };
        let mut asker = self.asker.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(asker.ask(id)?.filter(|found| is_open(found) && has_ends(found, local, remote)))
    }

    fn owner(&self, found: &InetResponse) -> SocketOwner {
        // A socket without an inode is one that its process has closed.
        let is_told = found.header.inode != 0 || found.header.uid != 0 || self.tells_closed;
        let cgroup = found.nlas.iter().find_map(cgroup_of);
        SocketOwner { uid: is_told.then_some(found.header.uid), cgroup }
    }
}

impl NodeConnections for NodeSockets {
    fn client(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Client> {
        let found = self.find(local, remote)?;
        Ok(found.map_or(Client::Elsewhere, |found| self.kubelet.judge(self.owner(&found))))
    }
}

impl Asker {
    /// The socket that a packet from the other end would reach.
    fn ask(&mut self, id: SocketId) -> io::Result<Option<InetResponse>> {
        self.sequence = self.sequence.wrapping_add(1);
        // A socket that speaks IPv4 is found as such, also where its application sees mapped addresses of IPv6.
        let family = sock_diag::family_of(&id);
        let request = sock_diag::request(family, id, StateFlags::all(), 0, self.sequence);
        self.socket.send(&request, 0)?;
        loop {
            for (sequence, answer) in sock_diag::receive(&self.socket)? {
                match answer {
                    _ if sequence != self.sequence => {}
                    Ok(Answer::Socket(found)) => return Ok(Some(*found)),
                    Ok(Answer::Done | Answer::Other) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// The number of the cgroup in which a socket was made.
fn cgroup_of(attribute: &Nla) -> Option<u64> {
    let Nla::Other(other) = attribute else { return None };
    let mut id = [0; 8];
    if other.kind() != CGROUP_ID || other.value_len() != id.len() {
        return None;
    }
    other.emit_value(&mut id);
    Some(u64::from_ne_bytes(id))
}

/// Whether a process there may still send or receive on it; a listener, or what is left of a connection that both sides have
/// ended, proves nothing.
fn is_open(found: &InetResponse) -> bool {
    matches!(found.header.state, TCP_ESTABLISHED | TCP_FIN_WAIT1 | TCP_FIN_WAIT2 | TCP_CLOSE_WAIT)
}

fn has_ends(found: &InetResponse, local: SocketAddr, remote: SocketAddr) -> bool {
    let id = &found.header.socket_id;
    let ends = |ip: IpAddr, port: u16| (ip.to_canonical(), port);
    ends(id.source_address, id.source_port) == (local.ip(), local.port())
        && ends(id.destination_address, id.destination_port) == (remote.ip(), remote.port())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
