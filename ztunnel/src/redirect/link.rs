//! Netlink of a pod's network namespace: reads its state, and notifies of every change.
//!
//! There are two sockets. A pod can flood the socket of the notifications, so that the kernel drops messages on it, and
//! the answers for which the daemon waits must not be among them. The content of the notifications is never read. They
//! are taken at a pace that the pod cannot increase; the kernel drops the rest. The kernel filters the answers, and
//! their length is limited.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use netlink_packet_route::{
    address::{AddressAttribute, AddressHeaderFlags},
    link::{LinkAttribute, LinkFlags, LinkLayerType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::libc;
use rtnetlink::{Handle, MulticastGroup};
use thiserror::Error;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
    time::{sleep, timeout},
};
use tracing::Span;

use crate::{
    lifecycle::tasks::{TaskCount, TaskSet},
    net::{
        netns::{Netns, NetnsError},
        socket::Family,
    },
};

/// An interface that can carry packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index in the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// It is `lo`.
    pub loopback: bool,
    /// Its packets begin with an Ethernet header. The packets of all other interfaces begin with the IP header.
    pub ethernet: bool,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
}

/// The addresses and interfaces of a network namespace that the redirection needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetnsFacts {
    /// All addresses except those of the loopback interface. Link-local addresses are included.
    pub addresses: Vec<IpAddr>,
    /// Those of the addresses for which duplicate address detection is not complete.
    pub tentative: Vec<IpAddr>,
    /// Interfaces that are up.
    pub interfaces: Vec<Interface>,
}

impl NetnsFacts {
    /// Whether the namespace has an address of the family with which it can reach others.
    #[must_use]
    pub fn speaks(&self, family: Family) -> bool {
        self.addresses.iter().any(|ip| Family::of(*ip) == family && !crate::model::addr::is_link_local_v6(*ip))
    }

    /// The same facts without the interfaces that lead out of the pod. No socket that is bound to such an interface is
    /// allowed then.
    #[must_use]
    pub fn without_devices(&self) -> Self {
        let mut facts = self.clone();
        facts.interfaces.retain(|interface| interface.loopback);
        facts
    }

    /// Keeps at most `limit` addresses, with the pod's own first, and at most `limit` interfaces, with `lo` first: a
    /// pod may make any number of them. Addresses that are left out are treated as addresses outside of the pod, and
    /// are captured.
    #[must_use]
    pub fn limited(mut self, own: &[IpAddr], limit: usize) -> Self {
        self.addresses.sort_by_key(|ip| !own.contains(ip));
        self.addresses.truncate(limit);
        self.interfaces.sort_by_key(|interface| interface.index);
        self.interfaces.truncate(limit);
        self
    }
}

/// Why netlink failed.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The socket could not be made.
    #[error("cannot open a netlink socket in {netns}: {source}")]
    Open {
        /// The namespace.
        netns: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("cannot {what} in {netns}: {source}; the daemon needs CAP_NET_ADMIN")]
    Request {
        /// The request.
        what: String,
        /// The namespace.
        netns: PathBuf,
        /// The cause.
        source: Box<rtnetlink::Error>,
    },
    /// The answer is too long.
    #[error(
        "cannot {what} in {netns}: there are more than {MOST}; a process with CAP_NET_ADMIN in the pod \
         created them; remove them in the pod"
    )]
    TooMany {
        /// The request.
        what: String,
        /// The namespace.
        netns: PathBuf,
    },
    /// The kernel did not answer.
    #[error("cannot {what} in {netns}: the kernel did not answer within {ANSWER:?}; trying again")]
    NoAnswer {
        /// The request.
        what: String,
        /// The namespace.
        netns: PathBuf,
    },
}

/// The kernel answers at once; a dump of a large namespace takes a moment.
const ANSWER: Duration = Duration::from_secs(5);
/// Entries of one answer that are read. A pod has some interfaces, addresses and rules. A pod with CAP_NET_ADMIN can
/// make any number of them, and the daemon would have to read all of them again and again.
const MOST: usize = 4096;
/// Bytes of notifications that the kernel keeps until they are read. Only the presence of a notification matters.
const CHANGES_KEPT: libc::c_int = 32 << 10;
/// Notifications that are read at once.
const CHANGES_READ: usize = 64;
/// The pause before the next notifications are read.
const CHANGES_PAUSE: Duration = Duration::from_millis(50);

/// The netlink sockets. They are closed when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct NetnsLink {
    handle: Handle,
    netns: PathBuf,
    changed: Arc<Notify>,
    _tasks: Arc<TaskSet>,
}

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

impl NetnsLink {
    /// Opens the sockets; needs a runtime.
    ///
    /// # Errors
    /// When the namespace can't be entered, or a socket can't be made.
    pub fn open(netns: &Netns, count: TaskCount) -> Result<Self, LinkError> {
        let opened = netns.enter(|| Ok((rtnetlink::new_connection_with_strict_check()?, listen()?)))?;
        let failed = |source| LinkError::Open { netns: netns.path().to_owned(), source };
        let ((requests, handle, _), changes) = opened.map_err(failed)?;
        // SAFETY: the socket has one descriptor, which it closes when it is dropped.
        let changes = unsafe { AsyncFd::register_with_interest(changes, Interest::READABLE) };
        let changes = changes.map_err(|error| failed(error.into_parts().1))?;
        let changed = Arc::new(Notify::new());
        let mut tasks = TaskSet::new(count);
        tasks.spawn(Span::none(), requests);
        tasks.spawn(Span::none(), tell_of_changes(changes, Arc::clone(&changed)));
        Ok(Self { handle, netns: netns.path().to_owned(), changed, _tasks: Arc::new(tasks) })
    }

    /// Notified of every change of links, addresses, routes or rules.
    #[must_use]
    pub fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }

    /// The current state of the namespace.
    ///
    /// # Errors
    /// When the kernel refuses a dump.
    pub async fn facts(&self) -> Result<NetnsFacts, LinkError> {
        let mut facts = NetnsFacts::default();
        for link in self.list("list the interfaces", self.handle.link().get().execute()).await? {
            if !link.header.flags.contains(LinkFlags::Up) {
                continue;
            }
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            let loopback = link.header.flags.contains(LinkFlags::Loopback);
            facts.interfaces.push(Interface {
                index: link.header.index,
                name: name.unwrap_or_default(),
                loopback,
                ethernet: link.header.link_layer_type == LinkLayerType::Ether,
                addresses: Vec::new(),
            });
        }
        for message in self.list("list the addresses", self.handle.address().get().execute()).await? {
            let Some(own) = own_address(&message.attributes) else { continue };
            facts.addresses.push(own);
            if message.header.flags.contains(AddressHeaderFlags::Tentative) {
                facts.tentative.push(own);
            }
            let interface = facts.interfaces.iter_mut().find(|interface| interface.index == message.header.index);
            if let Some(interface) = interface {
                interface.addresses.push(own);
            }
        }
        facts.addresses.sort_unstable();
        facts.addresses.dedup();
        Ok(facts)
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Reads a list of limited length. After a list that is too long, the socket cannot be used any more.
    pub(super) async fn list<T>(
        &self,
        what: &str,
        dump: impl Stream<Item = Result<T, rtnetlink::Error>>,
    ) -> Result<Vec<T>, LinkError> {
        let all = self.ask(what, dump.take(MOST + 1).try_collect::<Vec<_>>()).await?;
        if all.len() > MOST {
            return Err(LinkError::TooMany { what: what.to_owned(), netns: self.netns.clone() });
        }
        Ok(all)
    }

    /// Waits for the kernel's answer, up to [`ANSWER`].
    pub(super) async fn ask<T>(
        &self,
        what: &str,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, LinkError> {
        let (what, netns) = (what.to_owned(), self.netns.clone());
        match timeout(ANSWER, request).await {
            Ok(answer) => answer.map_err(|source| LinkError::Request { what, netns, source: Box::new(source) }),
            Err(_elapsed) => Err(LinkError::NoAnswer { what, netns }),
        }
    }
}

/// A socket that gets every change in the network namespace of this thread.
fn listen() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.set_non_blocking(true)?;
    socket.set_rx_buf_sz(CHANGES_KEPT)?;
    let groups = GROUPS.iter().fold(0, |groups, group| groups | 1 << (*group as u32 - 1));
    socket.bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

/// Notifies that the namespace has changed, without details. Any number of changes becomes one permit.
async fn tell_of_changes(socket: AsyncFd<Socket>, changed: Arc<Notify>) {
    let mut word = BytesMut::with_capacity(1);
    while let Ok(mut ready) = socket.readable().await {
        changed.notify_one();
        for _ in 0..CHANGES_READ {
            word.clear();
            // Only the first byte of a notification is kept; the kernel drops the rest. Notifications that were dropped
            // before are reported once, as an error.
            if socket.get_ref().recv(&mut word, 0).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                ready.clear_ready();
                break;
            }
        }
        drop(ready);
        sleep(CHANGES_PAUSE).await;
    }
    // There are no more notifications. The next reader opens another link if this one does not work.
    changed.notify_one();
}

impl LinkError {
    /// The kernel's error number, positive.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            LinkError::Request { source, .. } => match source.as_ref() {
                rtnetlink::Error::NetlinkError(message) => message.code.map(|code| code.get().abs()),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The address of the interface itself. On a point-to-point link that is `Local`, and `Address` is the address of the
/// other end.
fn own_address(attributes: &[AddressAttribute]) -> Option<IpAddr> {
    let local = attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let address = attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    local.or(address).filter(|ip| !ip.is_loopback() && *ip != IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}
