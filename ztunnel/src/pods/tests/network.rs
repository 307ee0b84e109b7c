//! A network of pods in one process. A table of listeners replaces `ebpf`, `redirect` and the routes of a real node.
//!
//! Connections are real TCP connections over loopback, because the data path reads and writes real sockets, half-closes
//! and resets them. Their addresses are scripted: each end has a name in a table.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use ebpf_common::{HBONE_PORT, Purpose, worker_of};
use socket2::{SockRef, Socket};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
};

use crate::{
    model::local::Exclusions,
    net::{
        dial::Injected,
        node::{Client, NodeConnections},
        socket::{self, Family},
        syn::Syn,
    },
};

/// The source port of all connections of pods, unless a test changes that. The port decides which worker accepts a
/// connection, and each worker has HBONE connections of its own. With one port, exactly one HBONE connection is made
/// where a test counts one. It is also not replaced while a connection is being opened, which the application would see
/// as two connections.
const PORT_OF_PODS: u16 = 32_768;

/// A packet that the daemon has sent within a pod.
pub(super) type Sent = (Injected, Vec<u8>);

/// The whole network. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Network(Arc<Mutex<State>>);

#[derive(Default)]
pub(super) struct State {
    /// The cookie of the namespace to which a path leads.
    pub(super) paths: HashMap<PathBuf, u64>,
    pub(super) namespaces: HashMap<u64, Inside>,
    /// The loopback address of each application's listener.
    applications: HashMap<SocketAddr, SocketAddr>,
    /// The scripted addresses of a connection's ends, by the loopback address of the client.
    pub(super) names: HashMap<SocketAddr, (SocketAddr, SocketAddr)>,
    /// Addresses that do not answer.
    silent: HashSet<IpAddr>,
    /// Addresses that accept connections and never read from them.
    deaf: HashMap<IpAddr, (SocketAddr, std::net::TcpListener)>,
    unheard: usize,
    /// Connections of processes of a node that are in no pod: source and destination.
    of_nodes: HashSet<(SocketAddr, SocketAddr)>,
    /// A loopback address that does not answer, and the sockets that fill its queue.
    hole: Option<(SocketAddr, Vec<Box<dyn Send>>)>,
    next_port: u16,
    /// Each connection of a pod has a source port of its own.
    has_many_ports: bool,
    /// The number of connections to port 15008.
    tunnels: usize,
    /// The capture is gone, and can't be restored.
    pub(super) unhooked: bool,
    /// Enrolments have to wait.
    stalls: bool,
    stalled: usize,
    pub(super) keeps_listeners: bool,
    waiting: usize,
    /// Wakes the waiting tasks.
    goes_on: Arc<Notify>,
    /// The number of accepted connections that have all options.
    pub(super) accepted: usize,
    /// The clients whose SYNs are held, by source and destination.
    pub(super) clients: HashMap<(SocketAddr, SocketAddr), mpsc::UnboundedSender<Sent>>,
}

/// A namespace.
#[derive(Default)]
pub(super) struct Inside {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) changed: Arc<Notify>,
    pub(super) capture: Option<Capture>,
    pub(super) is_foreign: bool,
    is_busy: bool,
}

pub(super) struct Capture {
    /// The node whose kernel captures the pod.
    pub(super) node: &'static str,
    pub(super) pod: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) attached: bool,
    pub(super) workers: u32,
    pub(super) listeners: HashMap<(u32, u16, u16), SocketAddr>,
    /// The same sockets, if a test wants to close them.
    pub(super) sockets: Vec<std::net::TcpListener>,
    pub(super) exclusions: Exclusions,
    /// Where SYNs go if they are held.
    pub(super) syns: Option<mpsc::UnboundedSender<Syn>>,
}

impl Capture {
    /// The pod that is on record for it.
    pub(super) fn recorded(&self) -> Option<&str> {
        (!self.pod.is_empty()).then_some(&*self.pod)
    }
}

impl Network {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Makes a namespace with these addresses.
    pub(super) fn namespace(&self, path: &str, addresses: &[&str]) {
        let mut state = self.lock();
        let cookie = state.namespaces.len() as u64 + 1;
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        state.namespaces.insert(cookie, Inside { addresses, ..Inside::default() });
        state.paths.insert(path.into(), cookie);
    }

    /// Removes the capture from the kernel for good, or allows its restoration.
    pub(super) fn unhook(&self, gone: bool) {
        self.lock().unhooked = gone;
    }

    /// The daemons of nodes are started with another directory of records from now on.
    pub(super) fn forget_records(&self) {
        self.lock()
            .namespaces
            .values_mut()
            .filter_map(|inside| inside.capture.as_mut())
            .for_each(|capture| capture.pod.clear());
    }

    /// Sets whether another installation captures the pod in a namespace.
    pub(super) fn take_over(&self, path: &str, is_foreign: bool) {
        let mut state = self.lock();
        let cookie = state.paths[Path::new(path)];
        let inside = state.namespaces.get_mut(&cookie).unwrap();
        inside.is_foreign = is_foreign;
        inside.changed.notify_one();
    }

    /// From now on, enrolments wait until [`Self::go_on`].
    pub(super) fn stall(&self) {
        self.lock().stalls = true;
    }

    /// The number of waiting enrolments.
    pub(super) fn stalled(&self) -> usize {
        self.lock().stalled
    }

    /// Lets the waiting enrolments continue.
    pub(super) fn go_on(&self) {
        let mut state = self.lock();
        state.stalls = false;
        state.goes_on.notify_waiters();
    }

    /// From now on, requests for the rules and routes of a namespace keep the kernel busy.
    pub(super) fn keep_busy(&self, path: &str) {
        let mut state = self.lock();
        let cookie = state.paths[Path::new(path)];
        let inside = state.namespaces.get_mut(&cookie).unwrap();
        inside.is_busy = true;
        inside.changed.notify_one();
    }

    /// The number of tasks that wait for the busy kernel.
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    pub(super) async fn wait_while_busy(&self, cookie: u64) {
        {
            let mut state = self.lock();
            if !state.namespaces[&cookie].is_busy {
                return;
            }
            state.waiting += 1;
        }
        std::future::pending::<()>().await;
    }

    pub(super) async fn wait_while_stalled(&self) {
        let going_on = {
            let mut state = self.lock();
            if !state.stalls {
                return;
            }
            state.stalled += 1;
            Arc::clone(&state.goes_on).notified_owned()
        };
        going_on.await;
    }

    /// From now on, a test can close the daemon's listeners.
    pub(super) fn keep_listeners(&self) {
        self.lock().keeps_listeners = true;
    }

    /// Closes the daemon's listeners in a namespace, as `ss -K` does.
    pub(super) fn close_listeners(&self, path: &str) {
        let mut state = self.lock();
        let cookie = state.paths[Path::new(path)];
        let capture = state.namespaces.get_mut(&cookie).unwrap().capture.as_mut().unwrap();
        for listener in capture.sockets.drain(..) {
            SockRef::from(&listener).shutdown(Shutdown::Both).unwrap();
        }
    }

    /// Lets another path lead to the same namespace.
    pub(super) fn alias(&self, path: &str, other: &str) {
        let mut state = self.lock();
        let cookie = state.paths[Path::new(path)];
        state.paths.insert(other.into(), cookie);
    }

    /// Removes a path, as a runtime does when it deletes a pod.
    pub(super) fn unmount(&self, path: &str) {
        self.lock().paths.remove(Path::new(path)).unwrap();
    }

    /// Changes the addresses of a namespace, and notifies of the change.
    pub(super) fn readdress(&self, path: &str, addresses: &[&str]) {
        let mut state = self.lock();
        let cookie = state.paths[Path::new(path)];
        let inside = state.namespaces.get_mut(&cookie).unwrap();
        inside.addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        inside.changed.notify_one();
    }

    /// From now on, the address does not answer.
    pub(super) fn silence(&self, address: &str) {
        self.lock().silent.insert(address.parse().unwrap());
    }

    /// From now on, the address answers again.
    pub(super) fn end_silence(&self, address: &str) {
        self.lock().silent.remove(&address.parse().unwrap());
    }

    /// From now on, connections to the address are established, but nobody reads from them.
    pub(super) fn deafen(&self, address: &str) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        self.lock().deaf.insert(address.parse().unwrap(), (at, listener));
    }

    /// The number of connections from which nobody has read.
    pub(super) fn unheard(&self) -> usize {
        self.lock().unheard
    }

    /// From now on, each connection of a pod has a source port of its own, so that all workers accept some.
    pub(super) fn vary_ports(&self) {
        self.lock().has_many_ports = true;
    }

    /// The number of HBONE connections that have been begun.
    pub(super) fn tunnels(&self) -> usize {
        self.lock().tunnels
    }

    /// The number of accepted connections that have all options.
    pub(super) fn accepted(&self) -> usize {
        self.lock().accepted
    }

    /// Whether the pod in a namespace is captured.
    pub(super) fn is_captured(&self, path: &str) -> bool {
        let state = self.lock();
        state.namespaces[&state.paths[Path::new(path)]].capture.is_some()
    }

    /// Whether a pod is captured, in whatever namespace.
    pub(super) fn is_captured_anywhere(&self, pod: &str) -> bool {
        let state = self.lock();
        state.namespaces.values().any(|inside| inside.capture.as_ref().is_some_and(|capture| capture.pod == pod))
    }

    /// Listens as an application of a pod.
    pub(super) async fn listen(&self, at: &str) -> TcpListener {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.lock().applications.insert(at.parse().unwrap(), listener.local_addr().unwrap());
        listener
    }

    /// The client's address of an accepted connection, as the application sees it.
    pub(super) fn client(&self, accepted: &TcpStream) -> SocketAddr {
        self.lock().names[&accepted.peer_addr().unwrap()].0
    }

    /// Connects as an application of the pod that has the address `from`.
    pub(super) async fn connect(&self, from: &str, to: &str) -> io::Result<TcpStream> {
        let (from, to): (IpAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let stream = {
            let mut state = self.lock();
            let from = SocketAddr::new(from, state.port_of_pods());
            let end = state.leave(from, to)?;
            state.begin(end, from, to)?
        };
        finished(stream).await
    }

    /// Connects as a process of a node that is in no pod, such as the kubelet.
    pub(super) async fn connect_from_node(&self, from: &str, to: &str) -> io::Result<TcpStream> {
        self.connect_past(from, to, true).await
    }

    /// Connects as a process outside of all pods and nodes, with any source address.
    pub(super) async fn connect_from_outside(&self, from: &str, to: &str) -> io::Result<TcpStream> {
        self.connect_past(from, to, false).await
    }

    async fn connect_past(&self, from: &str, to: &str, of_node: bool) -> io::Result<TcpStream> {
        let (from, to): (IpAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let stream = {
            let mut state = self.lock();
            let from = SocketAddr::new(from, state.port());
            if of_node {
                state.of_nodes.insert((from, to));
            }
            let end = state.arrive(from, to)?;
            state.begin(end, from, to)?
        };
        finished(stream).await
    }
}

pub(super) async fn finished(stream: TcpStream) -> io::Result<TcpStream> {
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

impl State {
    /// A port for one connection from outside of the pods. Each has its own, because nodes are asked for the owner of a
    /// connection.
    pub(super) fn port(&mut self) -> u16 {
        self.next_port = self.next_port.wrapping_add(1).max(PORT_OF_PODS + 1);
        self.next_port
    }

    pub(super) fn port_of_pods(&mut self) -> u16 {
        if self.has_many_ports { self.port() } else { PORT_OF_PODS }
    }

    pub(super) fn of_address(&self, address: IpAddr) -> Option<&Inside> {
        self.namespaces.values().find(|inside| inside.addresses.contains(&address))
    }

    /// The loopback address for a connection that an application makes. It replaces the hook `connect`.
    pub(super) fn leave(&mut self, from: SocketAddr, to: SocketAddr) -> io::Result<SocketAddr> {
        let inside = self.of_address(from.ip()).unwrap();
        let is_own = inside.addresses.contains(&to.ip());
        match &inside.capture {
            Some(capture) if capture.attached && !is_own && !capture.excludes(to) => {
                capture.listener(Purpose::Outbound, from, to)
            }
            _ => self.arrive(from, to),
        }
    }

    /// The loopback address for a connection that arrives at an address. It replaces the program `steer`.
    pub(super) fn arrive(&mut self, from: SocketAddr, to: SocketAddr) -> io::Result<SocketAddr> {
        if self.silent.contains(&to.ip()) {
            return Ok(self.hole());
        }
        if let Some((at, _)) = self.deaf.get(&to.ip()) {
            self.unheard += 1;
            return Ok(*at);
        }
        let inside = self.of_address(to.ip()).ok_or(io::ErrorKind::HostUnreachable)?;
        let is_own = inside.addresses.contains(&from.ip());
        match &inside.capture {
            Some(capture) if capture.attached && !is_own => {
                if to.port() == HBONE_PORT {
                    let listener = capture.listener(Purpose::Hbone, from, to)?;
                    self.tunnels += 1;
                    return Ok(listener);
                }
                if !capture.exclusions.exclude_inbound(to.port()) {
                    return capture.listener(Purpose::Inbound, from, to);
                }
            }
            _ => {}
        }
        self.application(to)
    }

    pub(super) fn application(&self, at: SocketAddr) -> io::Result<SocketAddr> {
        self.applications.get(&at).copied().ok_or(io::ErrorKind::ConnectionRefused.into())
    }

    /// A listener whose queue is full: the kernel does not answer further connections.
    fn hole(&mut self) -> SocketAddr {
        let (at, _) = self.hole.get_or_insert_with(|| {
            let socket = socket::tcp(Family::V4).unwrap();
            socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
            socket.listen(0).unwrap();
            let at = socket.local_addr().unwrap().as_socket().unwrap();
            let mut kept: Vec<Box<dyn Send>> = vec![Box::new(socket)];
            while let Ok(stream) = std::net::TcpStream::connect_timeout(&at, Duration::from_millis(100)) {
                kept.push(Box::new(stream));
            }
            (at, kept)
        });
        *at
    }

    /// Connects to a loopback address, under scripted names.
    pub(super) fn begin(&mut self, end: SocketAddr, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
        let socket: Socket = socket::tcp(Family::V4)?;
        socket.set_tcp_nodelay(true)?;
        // The client does not use the address of the listeners: with the port of a closed listener, it would connect to
        // itself.
        socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), 0)).into())?;
        let local = socket.local_addr()?.as_socket().unwrap();
        self.names.insert(local, (from, to));
        match socket.connect(&end.into()) {
            Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => Err(error),
            _ => TcpStream::from_std(socket.into()),
        }
    }
}

impl Capture {
    fn excludes(&self, to: SocketAddr) -> bool {
        let Exclusions { outbound_ports, outbound_cidrs, .. } = &self.exclusions;
        outbound_ports.contains(to.port()) || outbound_cidrs.iter().any(|cidr| cidr.contains(&to.ip()))
    }

    fn listener(&self, purpose: Purpose, from: SocketAddr, to: SocketAddr) -> io::Result<SocketAddr> {
        let family = if to.is_ipv4() { ebpf_common::AF_INET } else { ebpf_common::AF_INET6 };
        let worker = worker_of(from.port(), self.workers) as u16;
        let listener = self.listeners.get(&(purpose as u32, family as u16, worker));
        listener.copied().ok_or(io::ErrorKind::ConnectionRefused.into())
    }
}

impl NodeConnections for Network {
    fn client(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Client> {
        let is_here = self.lock().of_nodes.contains(&(local, remote));
        Ok(if is_here { Client::Kubelet } else { Client::Elsewhere })
    }
}
