//! The kernel of a node of the [`Network`]: the pods that it captures, and the sockets in their namespaces.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ebpf_common::{Listener, Purpose, Verdict};
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    sync::{Notify, mpsc},
};

use super::{
    held_client::Syns,
    network::{Capture, Inside, Network},
};
use crate::{
    model::{
        addr::{OrigDst, PeerAddr},
        local::Exclusions,
        netns::NetnsFile,
        workload::NamespacedName,
    },
    net::{
        dial::{Begun, DialError, Injected, Sockets},
        netns::{NetnsError, NetnsId},
        socket::{self, Family, Keepalive, ListenOptions},
        syn::SynSource,
    },
    pods::kernel::{Kernel, Link, Namespace},
    redirect::{
        EnrolError, Enrolment, ForeignError, NetnsFacts, controller::StartError, link::LinkError, load::LoadError,
        maps::MapUse, record::Holder, survey::SurveyError,
    },
};

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

    fn inject(&self, packet: &[u8], to: IpAddr, as_what: Injected) -> io::Result<()> {
        // Answers have the ends of the SYN in reverse. An ICMP error has the SYN in it.
        let octets = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).unwrap();
        let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let ends = |at: usize| {
            let (source, destination) = (octets(at + 12), octets(at + 16));
            (SocketAddr::from((source, port(at + 20))), SocketAddr::from((destination, port(at + 22))))
        };
        let client = match (as_what, packet[9]) {
            (Injected::Syn, _) => ends(0),
            (Injected::Answer, 1) => ends(28),
            (Injected::Answer, _) => {
                let (from, to) = ends(0);
                (to, from)
            }
        };
        assert_eq!(to, if as_what == Injected::Syn { client.1.ip() } else { client.0.ip() });
        if let Some(client) = self.network.lock().clients.get(&client) {
            // The client may be gone.
            let _gone = client.send((as_what, packet.to_vec()));
        }
        Ok(())
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
                syns: None,
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

    fn hold(&mut self, netns: &Opened, wanted: bool) -> Result<Option<Box<dyn SynSource>>, LoadError> {
        Ok(self.captured(netns.cookie, |capture| {
            let capture = capture.as_mut().unwrap();
            capture.syns = None;
            wanted.then(|| {
                let (sender, source) = mpsc::unbounded_channel();
                capture.syns = Some(sender);
                Box::new(Syns(source)) as Box<dyn SynSource>
            })
        }))
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
