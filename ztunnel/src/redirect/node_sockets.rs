//! Whether a client is a process of this node: the kubelet, when it probes a pod that asks others for an identity.
//!
//! An address proves nothing: whoever can send packets can write the node's address into them, and what a pod sends to the
//! outside may bear it by translation. A connection whose *other end* is a socket in the node's own network namespace was
//! made by a process there, and that the kernel knows.
//!
//! It is asked for the one socket, not for a list, so that the cost does not grow with the node's connections: some
//! microseconds. What it looks up is what a packet would reach, and that may be a listener on the port; therefore the
//! answer is compared with the question. A socket that is bound to an interface is not found: whoever binds his probes
//! to one is refused.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_sock_diag::{
    constants::{AF_INET, TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2},
    inet::{InetResponse, SocketId, StateFlags},
};
use netlink_sys::Socket;

use super::sock_diag::{self, Answer};
use crate::net::node::NodeConnections;

/// Any: INET_DIAG_NOCOOKIE of linux/inet_diag.h.
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// The TCP sockets of one network namespace, that of the thread that made it. Cheap to clone, and good on every thread,
/// wherever that is: the question goes through a socket that stays where it was made.
///
/// Behind a lock, because the answer is there when the question has been sent: nobody waits for anything but another
/// question, and one socket in place of one for each question leaves nothing to go wrong at a probe.
#[derive(Clone, Debug)]
pub struct NodeSockets(Arc<Mutex<Asker>>);

#[derive(Debug)]
struct Asker {
    socket: Socket,
    /// Of the last question, so that what was left from one that failed is told from its answer.
    sequence: u32,
}

impl NodeSockets {
    /// The sockets of the network namespace that this thread is in.
    ///
    /// # Errors
    /// When the kernel can't tell (CONFIG_INET_DIAG is missing): then nobody can be told to be of this node.
    pub fn open() -> io::Result<Self> {
        // Where the kernel knows nothing of TCP's sockets it says the same as of a socket that is not there, but not so of
        // an empty list. It loads its modules by that, too, which nobody should have to wait for later.
        let trial = sock_diag::open()?;
        trial.send(&sock_diag::request(AF_INET, SocketId::new_v4(), StateFlags::empty(), NLM_F_DUMP, 0), 0)?;
        for (_, answer) in sock_diag::receive(&trial)? {
            answer?;
        }
        let socket = sock_diag::open()?;
        socket.set_non_blocking(true)?;
        Ok(Self(Arc::new(Mutex::new(Asker { socket, sequence: 0 }))))
    }
}

impl NodeConnections for NodeSockets {
    fn holds(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        let (local, remote) = (canonical(local), canonical(remote));
        if local.is_ipv4() != remote.is_ipv4() {
            return Ok(false);
        }
        let id = SocketId {
            source_address: local.ip(),
            source_port: local.port(),
            destination_address: remote.ip(),
            destination_port: remote.port(),
            interface_id: 0,
            cookie: ANY_COOKIE,
        };
        let mut asker = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(asker.ask(id)?.is_some_and(|found| is_open(&found) && has_ends(&found, local, remote)))
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
