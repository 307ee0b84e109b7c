//! What the manager asks of the kernel of its node: network namespaces, and the redirection of what is in them.
//!
//! A trait, so that the manager and the workers run in tests without root, on a scripted network. [`Linux`] is the one
//! implementation of the daemon; none of this is asked for a connection, let alone for a byte.

use std::{
    collections::HashSet,
    future::Future,
    io,
    net::{IpAddr, TcpListener},
    path::Path,
    sync::Arc,
};

use ebpf_common::{Purpose, Verdict};
use tokio::sync::Notify;

use crate::{
    lifecycle::tasks::TaskCount,
    model::{local::Exclusions, netns::NetnsFile, workload::NamespacedName},
    net::{
        dial::{PodSockets, Sockets},
        netns::{Netns, NetnsError, NetnsId},
        socket::{self, Family, Keepalive, ListenOptions},
    },
    redirect::{
        Controller, EnrolError, Enrolment, NetnsFacts, NetnsLink,
        link::LinkError,
        load::LoadError,
        maps::MapUse,
        record::Holder,
        routes,
        survey::{self, SurveyError},
    },
};

/// A network namespace that is kept open. Clones are the same.
pub trait Namespace: Clone {
    /// The file it was opened from.
    fn path(&self) -> &Path;

    /// Which one it is, whatever the path to it.
    fn id(&self) -> NetnsId;

    /// Its number, never used twice while the machine runs.
    fn cookie(&self) -> u64;

    /// Whether the file still leads to this namespace.
    fn is_current(&self) -> bool;
}

/// What can be heard of a network namespace.
pub trait Link: Clone + Send + Sync + 'static {
    /// What is in it now.
    ///
    /// # Errors
    /// When the kernel does not tell.
    fn facts(&self) -> impl Future<Output = Result<NetnsFacts, LinkError>> + Send;

    /// Told of every change in it.
    fn changed(&self) -> Arc<Notify>;

    /// Brings rules and routes to what capture needs by these facts, for a pod with these addresses. For a pod that is captured
    /// already; an enrolment does it by itself.
    ///
    /// # Errors
    /// The first of the kernel's refusals; the rest has been done.
    fn redirect(&self, facts: &NetnsFacts, addresses: &[IpAddr]) -> impl Future<Output = Result<(), LinkError>> + Send;
}

/// The kernel of a node, as the manager uses it. The rules of [`Controller`] hold for the redirection.
pub trait Kernel {
    /// A network namespace.
    type Namespace: Namespace;
    /// News from within a namespace.
    type Link: Link;
    /// A connection that a pod had before its enrolment.
    type Connection;

    /// Opens the network namespace behind a file.
    ///
    /// # Errors
    /// When it can't be used.
    fn open(&self, file: &NetnsFile) -> Result<Self::Namespace, NetnsError>;

    /// Which network namespace is behind a file now, if there is a file.
    fn identify(&self, file: &NetnsFile) -> Option<NetnsId>;

    /// Begins to listen to news from within a namespace.
    ///
    /// # Errors
    /// When that is refused.
    fn link(&self, netns: &Self::Namespace) -> Result<Self::Link, LinkError>;

    /// Makes a listener for a purpose in a namespace, at which so many connections may wait to be accepted. Every option that
    /// accepted connections need is set on it: they may come before anyone serves it.
    ///
    /// # Errors
    /// When the namespace can't be entered, or the socket not be made.
    fn listen(
        &self,
        netns: &Self::Namespace,
        family: Family,
        purpose: Purpose,
        backlog: i32,
    ) -> Result<io::Result<TcpListener>, NetnsError>;

    /// The sockets of the pod in a namespace.
    fn sockets(&self, netns: &Self::Namespace) -> Arc<dyn Sockets>;

    /// What is connected in a namespace now.
    ///
    /// # Errors
    /// When the kernel does not tell.
    fn connections(&self, netns: &Self::Namespace) -> Result<Vec<Self::Connection>, SurveyError>;

    /// Resets connections of a namespace. How many there were.
    ///
    /// # Errors
    /// When the kernel can't.
    fn cut(&self, netns: &Self::Namespace, connections: &[Self::Connection]) -> Result<usize, SurveyError>;

    /// As [`Controller::enrol`].
    ///
    /// # Errors
    /// As there.
    fn enrol(
        &mut self,
        pod: &Enrolment<'_, Self::Namespace, Self::Link>,
    ) -> impl Future<Output = Result<Exclusions, EnrolError>>;

    /// As [`Controller::follow`].
    ///
    /// # Errors
    /// As there.
    fn follow(
        &mut self,
        pod: &Enrolment<'_, Self::Namespace, Self::Link>,
        routes: Result<(), LinkError>,
    ) -> Result<(), EnrolError>;

    /// As [`Controller::set_exclusions`].
    ///
    /// # Errors
    /// As there.
    fn set_exclusions(&mut self, cookie: u64, exclusions: &Exclusions) -> Result<(), EnrolError>;

    /// As [`Controller::refresh_closed`].
    fn refresh_closed(&mut self, netns: &Self::Namespace, facts: &NetnsFacts);

    /// As [`Controller::detach`].
    fn detach(&mut self, cookie: u64);

    /// As [`Controller::release`].
    fn release(&mut self, netns: &Self::Namespace, link: Option<&Self::Link>) -> impl Future<Output = ()>;

    /// As [`Controller::release_others`].
    fn release_others(&mut self, keep: impl Fn(Option<&str>, u64) -> bool) -> impl Future<Output = ()>;

    /// As [`Controller::release_recorded`].
    fn release_recorded(&mut self, pod: &NamespacedName, taken: &HashSet<u64>) -> impl Future<Output = ()>;

    /// As [`Controller::has_captured`].
    fn has_captured(&self, cookie: u64) -> bool;

    /// As [`Controller::holder`].
    fn holder(&self, cookie: u64) -> Option<Holder>;

    /// As [`Controller::recorded`].
    fn recorded(&self, pod: &NamespacedName) -> Vec<u64>;

    /// As [`Controller::per_pod_limit`].
    fn per_pod_limit(&self) -> usize;

    /// As [`Controller::verdicts`].
    fn verdicts(&self, cookie: u64) -> Vec<(Verdict, u64)>;

    /// As [`Controller::map_usage`].
    fn map_usage(&self) -> Vec<MapUse>;

    /// As [`Controller::mend`].
    ///
    /// # Errors
    /// As there.
    fn mend(&mut self) -> Result<(), LoadError>;

    /// As [`Controller::restored`].
    fn restored(&self) -> u64;
}

/// The kernel that this daemon runs on.
pub struct Linux {
    /// The redirection.
    pub controller: Controller,
    /// For connections that the daemon makes.
    pub keepalive: Keepalive,
    /// Tasks of the whole daemon.
    pub tasks: TaskCount,
}

impl Namespace for Netns {
    fn path(&self) -> &Path {
        self.path()
    }

    fn id(&self) -> NetnsId {
        self.id()
    }

    fn cookie(&self) -> u64 {
        self.cookie()
    }

    fn is_current(&self) -> bool {
        self.is_current()
    }
}

impl Link for NetnsLink {
    fn facts(&self) -> impl Future<Output = Result<NetnsFacts, LinkError>> + Send {
        self.facts()
    }

    fn changed(&self) -> Arc<Notify> {
        self.changed()
    }

    fn redirect(&self, facts: &NetnsFacts, addresses: &[IpAddr]) -> impl Future<Output = Result<(), LinkError>> + Send {
        routes::ensure(self, facts, addresses)
    }
}

impl Kernel for Linux {
    type Namespace = Netns;
    type Link = NetnsLink;
    type Connection = survey::SocketId;

    fn open(&self, file: &NetnsFile) -> Result<Netns, NetnsError> {
        Netns::of(file)
    }

    fn identify(&self, file: &NetnsFile) -> Option<NetnsId> {
        NetnsId::of(file)
    }

    fn link(&self, netns: &Netns) -> Result<NetnsLink, LinkError> {
        NetnsLink::open(netns, self.tasks.clone())
    }

    fn listen(
        &self,
        netns: &Netns,
        family: Family,
        purpose: Purpose,
        backlog: i32,
    ) -> Result<io::Result<TcpListener>, NetnsError> {
        let is_local = purpose == Purpose::Outbound;
        let options = ListenOptions { keepalive: self.keepalive, is_local, backlog };
        netns.enter(|| socket::steered_listener(family, options))
    }

    fn sockets(&self, netns: &Netns) -> Arc<dyn Sockets> {
        Arc::new(PodSockets::new(netns.clone(), self.controller.own_sockets(), self.keepalive))
    }

    fn connections(&self, netns: &Netns) -> Result<Vec<survey::SocketId>, SurveyError> {
        survey::connections(netns)
    }

    fn cut(&self, netns: &Netns, connections: &[survey::SocketId]) -> Result<usize, SurveyError> {
        survey::cut(netns, connections)
    }

    fn enrol(&mut self, pod: &Enrolment<'_, Netns, NetnsLink>) -> impl Future<Output = Result<Exclusions, EnrolError>> {
        self.controller.enrol(pod)
    }

    fn follow(
        &mut self,
        pod: &Enrolment<'_, Netns, NetnsLink>,
        routes: Result<(), LinkError>,
    ) -> Result<(), EnrolError> {
        self.controller.follow(pod, routes)
    }

    fn set_exclusions(&mut self, cookie: u64, exclusions: &Exclusions) -> Result<(), EnrolError> {
        self.controller.set_exclusions(cookie, exclusions)
    }

    fn refresh_closed(&mut self, netns: &Netns, facts: &NetnsFacts) {
        self.controller.refresh_closed(netns, facts);
    }

    fn detach(&mut self, cookie: u64) {
        self.controller.detach(cookie);
    }

    fn release(&mut self, netns: &Netns, link: Option<&NetnsLink>) -> impl Future<Output = ()> {
        self.controller.release(netns, link)
    }

    fn release_others(&mut self, keep: impl Fn(Option<&str>, u64) -> bool) -> impl Future<Output = ()> {
        self.controller.release_others(keep, &self.tasks)
    }

    fn release_recorded(&mut self, pod: &NamespacedName, taken: &HashSet<u64>) -> impl Future<Output = ()> {
        self.controller.release_recorded(pod, |cookie| taken.contains(&cookie), &self.tasks)
    }

    fn has_captured(&self, cookie: u64) -> bool {
        self.controller.has_captured(cookie)
    }

    fn holder(&self, cookie: u64) -> Option<Holder> {
        self.controller.holder(cookie)
    }

    fn recorded(&self, pod: &NamespacedName) -> Vec<u64> {
        self.controller.recorded(pod)
    }

    fn per_pod_limit(&self) -> usize {
        self.controller.per_pod_limit()
    }

    fn verdicts(&self, cookie: u64) -> Vec<(Verdict, u64)> {
        self.controller.verdicts(cookie)
    }

    fn map_usage(&self) -> Vec<MapUse> {
        self.controller.map_usage()
    }

    fn mend(&mut self) -> Result<(), LoadError> {
        self.controller.mend()
    }

    fn restored(&self) -> u64 {
        self.controller.restored()
    }
}
