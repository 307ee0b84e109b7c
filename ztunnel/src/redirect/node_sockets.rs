//! Decides whether a client is the kubelet of this node. The kubelet may probe a pod that demands an identity of other
//! clients.
//!
//! An address proves nothing: a sender can write the node's address into its packets, and address translation can put
//! it into packets that a pod sends to the outside. But when the *other end* of a connection is a socket in the node's
//! own network namespace, a process there has made the connection, and the kernel knows that socket. The kernel also
//! knows the owner of the socket: see [`kubelet`](super::kubelet).
//!
//! The kernel is asked for one socket and not for a list, so that the cost, some microseconds, does not grow with the
//! number of the node's connections. The kernel finds the socket that a packet would reach. That may be a listener on
//! the port, so the answer is compared with the question. A socket that is bound to an interface is not found: probes
//! from such a socket are refused.

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

/// Matches any socket: INET_DIAG_NOCOOKIE of linux/inet_diag.h.
const ANY_COOKIE: [u8; 8] = [0xff; 8];
/// INET_DIAG_CGROUP_ID of linux/inet_diag.h. The library does not have it.
const CGROUP_ID: u16 = 21;
/// The user `nobody`. Any user except root would do.
const NOBODY: u32 = 65_534;

/// The TCP sockets of the network namespace of the thread that made this value. It is cheap to clone, and works on
/// every thread, in whatever network namespace: the netlink socket stays in the namespace in which it was made.
///
/// The netlink socket is behind a lock. The answer is ready when the question has been sent, so a thread waits only for
/// the question of another thread. One socket, instead of a new one for each question, means that no probe fails
/// because a socket cannot be made.
#[derive(Clone, Debug)]
pub struct NodeSockets {
    asker: Arc<Mutex<Asker>>,
    kubelet: Arc<Kubelet>,
    /// Whether the kernel reports the user of a socket that its process has closed (since Linux 6.17), and not 0.
    tells_closed: bool,
}

#[derive(Debug)]
struct Asker {
    socket: Socket,
    /// The number of the last question. It distinguishes the answer from leftovers of a question that failed.
    sequence: u32,
}

impl NodeSockets {
    /// The sockets of the network namespace of this thread. `kubelet`: the cgroups in which the kubelet may be.
    ///
    /// # Errors
    /// When the kernel can't answer (CONFIG_INET_DIAG is missing): then no client can be recognised as a process of
    /// this node.
    pub fn open(kubelet: KubeletCgroup) -> io::Result<Self> {
        // This asks for a list. To a question for one socket, a kernel without support for TCP answers the same as for
        // a socket that does not exist; for a list it does not. The list also loads the kernel's modules now, so that
        // no later question waits for that.
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
        // If this trial fails, the user of a closed socket is not used.
        let tells_closed = node.try_closed().unwrap_or(false);
        Ok(Self { tells_closed, ..node })
    }

    /// Whether the kernel reports the user of a socket that has been closed.
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
        // When a socket has no inode, its process has closed it.
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
        // An IPv4 connection is found as IPv4, even if its application sees IPv4-mapped IPv6 addresses.
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

/// Whether a process may still send or receive on the socket. A listener proves nothing, and neither does the rest of a
/// connection that both sides have ended.
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
