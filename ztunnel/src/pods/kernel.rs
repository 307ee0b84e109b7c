//! The functions of the node's kernel that the manager needs: network namespaces, and the redirection in them.
//!
//! This is a trait, so that the manager and the workers run in tests without root, on a scripted network. [`Linux`] is
//! the only implementation in the daemon. None of the functions is called for a connection or a byte.

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
        syn::SynSource,
    },
    redirect::{
        Controller, EnrolError, Enrolment, NetnsFacts, NetnsLink,
        controller::StartError,
        link::LinkError,
        load::LoadError,
        maps::MapUse,
        record::Holder,
        routes,
        survey::{self, SurveyError},
    },
};

/// A network namespace that is kept open. Clones are handles of the same namespace.
pub trait Namespace: Clone {
    /// The file from which it was opened.
    fn path(&self) -> &Path;

    /// The identity of the namespace, independent of its path.
    fn id(&self) -> NetnsId;

    /// The cookie of the namespace. It is never used twice while the machine runs.
    fn cookie(&self) -> u64;

    /// Whether the file still leads to this namespace.
    fn is_current(&self) -> bool;
}

/// The state of a network namespace, and notifications of its changes.
pub trait Link: Clone + Send + Sync + 'static {
    /// The current addresses and interfaces.
    ///
    /// # Errors
    /// When the kernel does not answer.
    fn facts(&self) -> impl Future<Output = Result<NetnsFacts, LinkError>> + Send;

    /// Notified of every change in the namespace.
    fn changed(&self) -> Arc<Notify>;

    /// Makes the rules and routes that capture needs, by these facts, for a pod with these addresses. This is for a pod
    /// that is captured already; an enrolment does it itself.
    ///
    /// # Errors
    /// The first refusal of the kernel. The other steps have been done.
    fn redirect(&self, facts: &NetnsFacts, addresses: &[IpAddr]) -> impl Future<Output = Result<(), LinkError>> + Send;
}

/// The kernel of a node, as the manager uses it. The rules of [`Controller`] hold for the redirection.
pub trait Kernel {
    /// A network namespace.
    type Namespace: Namespace;
    /// The state and the changes of a namespace.
    type Link: Link;
    /// A connection that a pod had before its enrolment.
    type Connection;

    /// Opens the network namespace behind a file.
    ///
    /// # Errors
    /// When it can't be used.
    fn open(&self, file: &NetnsFile) -> Result<Self::Namespace, NetnsError>;

    /// The identity of the network namespace to which a file leads now, if the file exists.
    fn identify(&self, file: &NetnsFile) -> Option<NetnsId>;

    /// Opens netlink in a namespace.
    ///
    /// # Errors
    /// When that is refused.
    fn link(&self, netns: &Self::Namespace) -> Result<Self::Link, LinkError>;

    /// Makes a listener for a purpose in a namespace. `backlog` connections may wait to be accepted. The listener has
    /// every option that accepted connections need, because connections may arrive before a worker serves the listener.
    ///
    /// # Errors
    /// When the namespace can't be entered, or the socket can't be made.
    fn listen(
        &self,
        netns: &Self::Namespace,
        family: Family,
        purpose: Purpose,
        backlog: i32,
    ) -> Result<io::Result<TcpListener>, NetnsError>;

    /// The sockets of the pod in a namespace.
    fn sockets(&self, netns: &Self::Namespace) -> Arc<dyn Sockets>;

    /// The current connections of a namespace.
    ///
    /// # Errors
    /// When the kernel does not answer.
    fn connections(&self, netns: &Self::Namespace) -> Result<Vec<Self::Connection>, SurveyError>;

    /// Resets connections of a namespace. Returns their number.
    ///
    /// # Errors
    /// When the kernel can't reset them.
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

    /// As [`Controller::hold`].
    ///
    /// # Errors
    /// As there.
    fn hold(&mut self, netns: &Self::Namespace, wanted: bool) -> Result<Option<Box<dyn SynSource>>, LoadError>;

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

    /// As [`Controller::regain`].
    ///
    /// # Errors
    /// As there.
    fn regain(&mut self) -> Result<(), StartError>;

    /// As [`Controller::retire`].
    fn retire(&mut self);
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

    fn hold(&mut self, netns: &Netns, wanted: bool) -> Result<Option<Box<dyn SynSource>>, LoadError> {
        self.controller.hold(netns, wanted)
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

    fn regain(&mut self) -> Result<(), StartError> {
        self.controller.regain()
    }

    fn retire(&mut self) {
        self.controller.retire();
    }
}
