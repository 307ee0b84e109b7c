//! A network of pods in one process, and the kernel of each of its nodes. A table of listeners replaces `ebpf`,
//! `redirect` and the routes of a real node.
//!
//! Connections are real TCP connections over loopback, because the data path reads and writes real sockets, half-closes
//! and resets them. Their addresses are scripted: each end has a name in a table.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use ebpf_common::{HBONE_PORT, Listener, Purpose, Verdict, worker_of};
use socket2::{SockRef, Socket};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use crate::{
    model::{
        addr::{OrigDst, PeerAddr},
        local::Exclusions,
        netns::NetnsFile,
        workload::NamespacedName,
    },
    net::{
        dial::{Begun, DialError, Sockets},
        netns::{NetnsError, NetnsId},
        node::{Client, NodeConnections},
        socket::{self, Family, Keepalive, ListenOptions},
    },
    pods::kernel::{Kernel, Link, Namespace},
    redirect::{
        EnrolError, Enrolment, ForeignError, NetnsFacts, controller::StartError, link::LinkError, load::LoadError,
        maps::MapUse, record::Holder, survey::SurveyError,
    },
};

/// The source port of all connections of pods, unless a test changes that. The port decides which worker accepts a
/// connection, and each worker has HBONE connections of its own. With one port, exactly one HBONE connection is made
/// where a test counts one. It is also not replaced while a connection is being opened, which the application would see
/// as two connections.
const PORT_OF_PODS: u16 = 32_768;

/// The whole network. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Network(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The cookie of the namespace to which a path leads.
    paths: HashMap<PathBuf, u64>,
    namespaces: HashMap<u64, Inside>,
    /// The loopback address of each application's listener.
    applications: HashMap<SocketAddr, SocketAddr>,
    /// The scripted addresses of a connection's ends, by the loopback address of the client.
    names: HashMap<SocketAddr, (SocketAddr, SocketAddr)>,
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
    unhooked: bool,
    /// Enrolments have to wait.
    stalls: bool,
    stalled: usize,
    keeps_listeners: bool,
    waiting: usize,
    /// Wakes the waiting tasks.
    goes_on: Arc<Notify>,
    /// The number of accepted connections that have all options.
    accepted: usize,
}

/// A namespace.
#[derive(Default)]
struct Inside {
    addresses: Vec<IpAddr>,
    changed: Arc<Notify>,
    capture: Option<Capture>,
    is_foreign: bool,
    is_busy: bool,
}

struct Capture {
    /// The node whose kernel captures the pod.
    node: &'static str,
    pod: String,
    addresses: Vec<IpAddr>,
    attached: bool,
    workers: u32,
    listeners: HashMap<(u32, u16, u16), SocketAddr>,
    /// The same sockets, if a test wants to close them.
    sockets: Vec<std::net::TcpListener>,
    exclusions: Exclusions,
}

impl Capture {
    /// The pod that is on record for it.
    fn recorded(&self) -> Option<&str> {
        (!self.pod.is_empty()).then_some(&*self.pod)
    }
}

impl Network {
    fn lock(&self) -> MutexGuard<'_, State> {
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

    async fn wait_while_busy(&self, cookie: u64) {
        {
            let mut state = self.lock();
            if !state.namespaces[&cookie].is_busy {
                return;
            }
            state.waiting += 1;
        }
        std::future::pending::<()>().await;
    }

    async fn wait_while_stalled(&self) {
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

async fn finished(stream: TcpStream) -> io::Result<TcpStream> {
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

impl State {
    /// A port for one connection from outside of the pods. Each has its own, because nodes are asked for the owner of a
    /// connection.
    fn port(&mut self) -> u16 {
        self.next_port = self.next_port.wrapping_add(1).max(PORT_OF_PODS + 1);
        self.next_port
    }

    fn port_of_pods(&mut self) -> u16 {
        if self.has_many_ports { self.port() } else { PORT_OF_PODS }
    }

    fn of_address(&self, address: IpAddr) -> Option<&Inside> {
        self.namespaces.values().find(|inside| inside.addresses.contains(&address))
    }

    /// The loopback address for a connection that an application makes. It replaces the hook `connect`.
    fn leave(&mut self, from: SocketAddr, to: SocketAddr) -> io::Result<SocketAddr> {
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
    fn arrive(&mut self, from: SocketAddr, to: SocketAddr) -> io::Result<SocketAddr> {
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

    fn application(&self, at: SocketAddr) -> io::Result<SocketAddr> {
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
    fn begin(&mut self, end: SocketAddr, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
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

/// A namespace that is kept open.
#[derive(Clone)]
pub(super) struct Opened {
    network: Network,
    path: PathBuf,
    cookie: u64,
}

impl Namespace for Opened {
    fn path(&self) -> &Path {
        &self.path
    }

    fn id(&self) -> NetnsId {
        NetnsId { device: 0, inode: self.cookie }
    }

    fn cookie(&self) -> u64 {
        self.cookie
    }

    fn is_current(&self) -> bool {
        self.network.lock().paths.get(&self.path) == Some(&self.cookie)
    }
}

impl Link for Opened {
    async fn facts(&self) -> Result<NetnsFacts, LinkError> {
        let state = self.network.lock();
        Ok(NetnsFacts { addresses: state.namespaces[&self.cookie].addresses.clone(), ..NetnsFacts::default() })
    }

    fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.network.lock().namespaces[&self.cookie].changed)
    }

    async fn redirect(&self, _facts: &NetnsFacts, _addresses: &[IpAddr]) -> Result<(), LinkError> {
        self.network.wait_while_busy(self.cookie).await;
        Ok(())
    }
}

/// The sockets of the pod in a namespace.
impl Sockets for Opened {
    fn upstream(&self, to: SocketAddr, from: Option<IpAddr>) -> Result<Begun, DialError> {
        let failed = |source| DialError::Connect { to, source };
        let mut state = self.network.lock();
        let own = &state.namespaces[&self.cookie].addresses;
        let first = own.iter().copied().find(|own| own.is_ipv4() == to.is_ipv4());
        let from = from.or(first).ok_or(failed(io::ErrorKind::NetworkUnreachable.into()))?;
        let local = SocketAddr::new(from, state.port_of_pods());
        let end = state.arrive(local, to).map_err(failed)?;
        let stream = state.begin(end, local, to).map_err(failed)?;
        socket::reset_on_close(&stream);
        Ok(Begun { stream, local })
    }

    fn deliver(&self, to: SocketAddr, from: SocketAddr) -> Result<Begun, DialError> {
        let failed = |source| DialError::Connect { to, source };
        let mut state = self.network.lock();
        let end = state.application(to).map_err(failed)?;
        let stream = state.begin(end, from, to).map_err(failed)?;
        socket::reset_on_close(&stream);
        Ok(Begun { stream, local: from })
    }

    fn ends(&self, accepted: &TcpStream, peer: SocketAddr) -> io::Result<(PeerAddr, OrigDst)> {
        assert_options(accepted);
        self.network.lock().accepted += 1;
        let (from, to) = self.network.lock().names.remove(&peer).ok_or(io::ErrorKind::NotConnected)?;
        Ok((PeerAddr::new(from), OrigDst::new(to)))
    }
}

const KEEPALIVE: Keepalive = Keepalive { idle: Duration::from_secs(61), interval: Duration::from_secs(11), probes: 7 };

/// Checks that a socket has the options that every connection with another node needs.
pub(super) fn assert_options(socket: &impl AsFd) {
    let socket = SockRef::from(socket);
    assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    let (idle, interval) = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
    let Keepalive { idle: expected, interval: between, probes } = KEEPALIVE;
    assert_eq!((idle, interval, socket.tcp_keepalive_retries().unwrap()), (expected, between, probes));
}

/// The kernel of one node.
pub(super) struct Scripted {
    pub(super) node: &'static str,
    pub(super) network: Network,
    pub(super) workers: u32,
}

impl Scripted {
    fn captured<T>(&self, cookie: u64, act: impl FnOnce(&mut Option<Capture>) -> T) -> T {
        act(&mut self.network.lock().namespaces.get_mut(&cookie).unwrap().capture)
    }

    fn refuse_foreign(&self, pod: &Enrolment<'_, Opened, Opened>) -> Result<(), EnrolError> {
        let is_foreign = self.network.lock().namespaces[&pod.netns.cookie].is_foreign;
        if is_foreign { Err(ForeignError::Captured(Box::default()).into()) } else { Ok(()) }
    }

    fn place(&self, pod: &Enrolment<'_, Opened, Opened>) {
        let keeps_listeners = self.network.lock().keeps_listeners;
        self.captured(pod.netns.cookie, |capture| {
            let capture = capture.get_or_insert_with(|| Capture {
                node: self.node,
                pod: pod.name.to_string(),
                addresses: Vec::new(),
                attached: false,
                workers: self.workers,
                listeners: HashMap::new(),
                sockets: Vec::new(),
                exclusions: Exclusions::default(),
            });
            capture.pod = pod.name.to_string();
            capture.addresses = pod.addresses.to_vec();
            // From here on connections may arrive. They keep the options that they inherit.
            pod.listeners.iter().for_each(|(_, listener)| assert_options(listener));
            let places = pod.listeners.iter().map(|(key, listener)| {
                let Listener { purpose, family, worker, .. } = *key;
                ((purpose, family, worker), listener.local_addr().unwrap())
            });
            capture.listeners.extend(places);
            if keeps_listeners {
                capture.sockets.extend(pod.listeners.iter().map(|(_, listener)| listener.try_clone().unwrap()));
            }
            capture.attached = true;
        });
    }
}

impl Kernel for Scripted {
    type Namespace = Opened;
    type Link = Opened;
    type Connection = ();

    fn open(&self, file: &NetnsFile) -> Result<Opened, NetnsError> {
        let path = file.path();
        let failed = || NetnsError::Open { path: path.to_owned(), source: io::ErrorKind::NotFound.into() };
        let cookie = *self.network.lock().paths.get(path).ok_or_else(failed)?;
        Ok(Opened { network: self.network.clone(), path: path.to_owned(), cookie })
    }

    fn identify(&self, file: &NetnsFile) -> Option<NetnsId> {
        self.network.lock().paths.get(file.path()).map(|cookie| NetnsId { device: 0, inode: *cookie })
    }

    fn link(&self, netns: &Opened) -> Result<Opened, LinkError> {
        Ok(netns.clone())
    }

    fn listen(
        &self,
        _netns: &Opened,
        _family: Family,
        purpose: Purpose,
        backlog: i32,
    ) -> Result<io::Result<std::net::TcpListener>, NetnsError> {
        let options = ListenOptions { keepalive: KEEPALIVE, is_local: purpose == Purpose::Outbound, backlog };
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Ok(socket::tcp(Family::V4).and_then(|socket| socket::listen(socket, at, options)))
    }

    fn sockets(&self, netns: &Opened) -> Arc<dyn Sockets> {
        Arc::new(netns.clone())
    }

    fn connections(&self, _netns: &Opened) -> Result<Vec<()>, SurveyError> {
        Ok(Vec::new())
    }

    fn cut(&self, _netns: &Opened, connections: &[()]) -> Result<usize, SurveyError> {
        Ok(connections.len())
    }

    async fn enrol(&mut self, pod: &Enrolment<'_, Opened, Opened>) -> Result<Exclusions, EnrolError> {
        self.network.wait_while_stalled().await;
        self.refuse_foreign(pod)?;
        self.place(pod);
        self.set_exclusions(pod.netns.cookie, pod.exclusions)?;
        Ok(pod.exclusions.clone())
    }

    fn follow(&mut self, pod: &Enrolment<'_, Opened, Opened>, routes: Result<(), LinkError>) -> Result<(), EnrolError> {
        routes?;
        self.refuse_foreign(pod)?;
        self.place(pod);
        Ok(())
    }

    fn set_exclusions(&mut self, cookie: u64, exclusions: &Exclusions) -> Result<(), EnrolError> {
        self.captured(cookie, |capture| capture.as_mut().unwrap().exclusions = exclusions.clone());
        Ok(())
    }

    fn refresh_closed(&mut self, _netns: &Opened, _facts: &NetnsFacts) {}

    fn detach(&mut self, cookie: u64) {
        self.captured(cookie, |capture| capture.iter_mut().for_each(|capture| capture.attached = false));
    }

    async fn release(&mut self, netns: &Opened, _link: Option<&Opened>) {
        self.captured(netns.cookie, |capture| *capture = None);
    }

    async fn release_others(&mut self, keep: impl Fn(Option<&str>, u64) -> bool) {
        for (cookie, inside) in &mut self.network.lock().namespaces {
            inside.capture.take_if(|capture| capture.node == self.node && !keep(capture.recorded(), *cookie));
        }
    }

    async fn release_recorded(&mut self, pod: &NamespacedName, taken: &HashSet<u64>) {
        let pod = pod.to_string();
        for (cookie, inside) in &mut self.network.lock().namespaces {
            inside
                .capture
                .take_if(|capture| capture.node == self.node && capture.pod == pod && !taken.contains(cookie));
        }
    }

    fn has_captured(&self, cookie: u64) -> bool {
        self.captured(cookie, |capture| capture.is_some())
    }

    fn holder(&self, cookie: u64) -> Option<Holder> {
        self.captured(cookie, |capture| {
            let capture = capture.as_ref().filter(|capture| capture.recorded().is_some())?;
            Some(Holder { pod: capture.pod.clone(), addresses: capture.addresses.clone() })
        })
    }

    fn recorded(&self, pod: &NamespacedName) -> Vec<u64> {
        let pod = pod.to_string();
        let of_pod = |inside: &Inside| {
            inside.capture.as_ref().is_some_and(|capture| capture.node == self.node && capture.pod == pod)
        };
        self.network.lock().namespaces.iter().filter(|(_, inside)| of_pod(inside)).map(|(cookie, _)| *cookie).collect()
    }

    fn per_pod_limit(&self) -> usize {
        16
    }

    fn verdicts(&self, _cookie: u64) -> Vec<(Verdict, u64)> {
        Vec::new()
    }

    fn mend(&mut self) -> Result<(), LoadError> {
        if self.network.lock().unhooked { Err(LoadError::NotBuiltIn) } else { Ok(()) }
    }

    fn restored(&self) -> u64 {
        0
    }

    fn regain(&mut self) -> Result<(), StartError> {
        Ok(())
    }

    fn retire(&mut self) {}

    fn map_usage(&self) -> Vec<MapUse> {
        Vec::new()
    }
}
