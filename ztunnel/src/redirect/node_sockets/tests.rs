//! These tests use sockets of their own network namespace, which needs no privilege.

use std::{
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    thread,
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{Client, KubeletCgroup, NOBODY, NodeConnections as _, NodeSockets};

/// A connection; the client's end comes first.
fn connected(to: &TcpListener, through: SocketAddr) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(through).unwrap();
    (client, to.accept().unwrap().0)
}

fn ends(stream: &TcpStream) -> (SocketAddr, SocketAddr) {
    (stream.local_addr().unwrap(), stream.peer_addr().unwrap())
}

impl NodeSockets {
    fn holds(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        self.find(local, remote).unwrap().is_some()
    }
}

/// A socket for both IP families, as most servers and clients have it.
fn dual_stack() -> Socket {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_only_v6(false).unwrap();
    socket
}

#[test]
fn a_connection_is_held_by_both_of_its_ends_here() {
    let node = NodeSockets::open(KubeletCgroup::OutsideOfPods).unwrap();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).unwrap();
        let (client, _server) = connected(&listener, listener.local_addr().unwrap());
        let (local, remote) = ends(&client);
        assert!(node.holds(local, remote), "{address}");
        assert!(node.holds(remote, local), "{address}: the accepted end");
    }
}

#[test]
fn ipv4_over_a_socket_of_ipv6_is_found_by_either_address() {
    let node = NodeSockets::open(KubeletCgroup::OutsideOfPods).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(at) = listener.local_addr().unwrap() else { panic!("not IPv4") };
    let client = dual_stack();
    client.connect(&SocketAddr::from((at.ip().to_ipv6_mapped(), at.port())).into()).unwrap();
    let (client, server) = (TcpStream::from(client), listener.accept().unwrap().0);
    let (mapped_local, mapped_remote) = ends(&client);
    assert!(mapped_local.is_ipv6() && mapped_remote.is_ipv6());
    let (remote, local) = ends(&server);
    assert!(local.is_ipv4() && remote.is_ipv4());
    assert!(node.holds(local, remote));
    assert!(node.holds(mapped_local, mapped_remote));
    assert!(node.holds(local, mapped_remote));
}

#[test]
fn a_listener_is_no_connection() {
    let node = NodeSockets::open(KubeletCgroup::OutsideOfPods).unwrap();
    let (v4, any) = (TcpListener::bind("127.0.0.1:0").unwrap(), dual_stack());
    any.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()).unwrap();
    any.listen(1).unwrap();
    let any = TcpListener::from(any);
    for (listener, at, from) in [
        (&v4, "127.0.0.1", "127.0.0.1:9"),
        (&any, "127.0.0.1", "127.0.0.1:9"),
        (&any, "::1", "[::1]:9"),
        (&any, "::1", "[fd00::1]:9"),
    ] {
        let local = SocketAddr::new(at.parse().unwrap(), listener.local_addr().unwrap().port());
        assert!(!node.holds(local, from.parse().unwrap()), "{local} from {from}");
    }
}

#[test]
fn whoever_has_the_wrong_port_or_address_is_not_of_this_node() {
    let node = NodeSockets::open(KubeletCgroup::OutsideOfPods).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, _server) = connected(&listener, listener.local_addr().unwrap());
    let (local, remote) = ends(&client);
    let other_port = |address: SocketAddr| SocketAddr::new(address.ip(), address.port() ^ 1);
    let other_address = |address: SocketAddr| SocketAddr::new("127.0.0.2".parse().unwrap(), address.port());
    assert!(!node.holds(other_port(local), remote));
    assert!(!node.holds(local, other_port(remote)));
    assert!(!node.holds(other_address(local), remote));
    assert!(!node.holds(local, other_address(remote)), "the listener on that port is found, and is not it");
    assert!(!node.holds("[::1]:9".parse().unwrap(), remote), "two families");
    assert!(node.holds(local, remote));
}

#[test]
fn a_connection_is_held_until_both_sides_have_ended_it() {
    let node = NodeSockets::open(KubeletCgroup::OutsideOfPods).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, server) = connected(&listener, listener.local_addr().unwrap());
    let (local, remote) = ends(&client);
    client.shutdown(Shutdown::Write).unwrap();
    assert!(node.holds(local, remote), "it still listens to the answer");
    assert!(node.holds(remote, local), "it has not ended its side");
    // The kubelet closes a connection of a TCP probe in this way.
    drop(client);
    assert!(node.holds(local, remote), "and its process was there a moment ago");
    drop(server);
    assert!(!node.holds(local, remote), "what waits for stragglers is no connection");
    assert!(!node.holds(remote, local));

    let (client, server) = connected(&listener, listener.local_addr().unwrap());
    let (local, remote) = ends(&client);
    SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    assert!(!node.holds(local, remote), "reset");
}

#[test]
fn many_threads_ask_at_once_and_each_gets_its_own_answer() {
    let node = NodeSockets::open(KubeletCgroup::OutsideOfPods).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            let (client, server) = connected(&listener, listener.local_addr().unwrap());
            let node = node.clone();
            scope.spawn(move || {
                let (local, remote) = ends(&client);
                for _ in 0..2000 {
                    assert!(node.holds(local, remote));
                    assert!(!node.holds(SocketAddr::new(local.ip(), 9), remote));
                }
                drop(server);
            });
        }
    });
}

/// When the process has closed a socket, its owner is still known, or is reported as unknown. It is never reported as
/// root.
#[test]
fn the_owner_of_a_socket_is_told_also_when_it_is_closed() {
    let node = NodeSockets::open(KubeletCgroup::OutsideOfPods).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, _server) = connected(&listener, listener.local_addr().unwrap());
    let (local, remote) = ends(&client);
    let own = std::fs::metadata("/proc/self").map(|process| process.uid()).unwrap();
    let owner = node.owner(&node.find(local, remote).unwrap().unwrap());
    assert_eq!(owner.uid, Some(own));
    assert!(owner.cgroup.is_some(), "{owner:?}");
    drop(client);
    let closed = node.owner(&node.find(local, remote).unwrap().unwrap());
    assert_eq!(closed.cgroup, owner.cgroup);
    assert!(closed.uid == Some(own) || (closed.uid.is_none() && !node.tells_closed), "{closed:?}");
}

#[test]
fn another_user_is_not_the_kubelet_and_learns_why() {
    let node = NodeSockets::open(KubeletCgroup::OutsideOfPods).unwrap();
    let found = |uid, inode| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, _server) = connected(&listener, listener.local_addr().unwrap());
        let (local, remote) = ends(&client);
        let mut found = node.find(local, remote).unwrap().unwrap();
        (found.header.uid, found.header.inode) = (uid, inode);
        node.kubelet.judge(node.owner(&found))
    };
    for inode in [0, 7] {
        let Client::Other { why } = found(NOBODY, inode) else { panic!("taken for the kubelet") };
        assert!(why.contains("uid 65534"), "{why}");
    }
    assert_eq!(node.client("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()).unwrap(), Client::Elsewhere);
}
