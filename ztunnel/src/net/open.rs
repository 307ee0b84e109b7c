//! Limits for the connections of one pod, for resources that the whole machine shares: connections, descriptors, and the memory
//! of sockets.

use std::{
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::Arc,
};

use tokio::sync::{AcquireError, Semaphore};

use super::socket;
use crate::model::flow::Direction;

/// Sockets of a connection, and buffers of a socket: one for sending and one for receiving.
const SOCKETS: usize = 2;
const BUFFERS: usize = 2;
/// The smallest buffer of a socket, and the size from which the kernel chooses the size itself: a fixed size reduces throughput
/// over long distances. The kernel accounts twice this size.
const BUFFER: (usize, usize) = (8 << 10, 1 << 20);

/// The share of one pod.
#[derive(Clone, Copy, Debug)]
pub struct Resources {
    /// The maximum number of open connections in each direction.
    pub connections: usize,
    /// The maximum number of descriptors for the sockets of its connections and HBONE connections, in each direction.
    pub sockets: usize,
    /// The same for both directions together.
    pub all_sockets: usize,
    /// The highest descriptor of a connection. A connection with a higher one is closed, because those descriptors are for the
    /// daemon itself.
    pub highest: RawFd,
    /// The kernel's memory for the buffers of its sockets, in bytes.
    pub socket_bytes: usize,
}

impl Resources {
    /// One of this many descriptors is for the daemon itself: listeners of pods, files, and HTTP requests to the daemon.
    const OWN_DESCRIPTORS: usize = 4;

    /// The share of a pod in a process with this number of descriptors, for this number of connections.
    ///
    /// One direction gets at most three quarters of the descriptors for all pods, and both directions five sixths. So clients
    /// of a pod can't block the pod's own connections, and one pod can't block the connections of the others.
    #[must_use]
    pub fn within(connections: usize, descriptors: usize, socket_bytes: usize) -> Self {
        let data = descriptors - descriptors / Self::OWN_DESCRIPTORS;
        let highest = RawFd::try_from(data).unwrap_or(RawFd::MAX);
        // A plaintext connection needs two sockets.
        let (sockets, all_sockets) = ((data / 4 * 3).max(2), (data / 6 * 5).max(2));
        Self { connections: connections.min(sockets), sockets, all_sockets, highest, socket_bytes }
    }
}

/// The open connections and sockets of a pod, and their limits. Each direction has its own limit, so that clients can't block
/// the pod's own connections. Shared by its workers.
#[derive(Clone, Debug)]
pub struct OpenLimit(Arc<OpenCounts>);

#[derive(Debug)]
struct OpenCounts {
    outbound: DirectionCounts,
    inbound: DirectionCounts,
    sockets: Semaphore,
    share: Resources,
}

/// The counts of one direction.
#[derive(Debug)]
struct DirectionCounts {
    connections: Semaphore,
    sockets: Semaphore,
}

/// The permit of a connection, of a socket, or of both. It is returned when it is dropped.
#[derive(Debug)]
pub struct OpenPermit {
    books: Arc<OpenCounts>,
    direction: Direction,
    is_connection: bool,
    has_socket: bool,
}

impl Drop for OpenPermit {
    fn drop(&mut self) {
        let way = self.books.way(self.direction);
        if self.is_connection {
            way.connections.add_permits(1);
        }
        if self.has_socket {
            way.sockets.add_permits(1);
            self.books.sockets.add_permits(1);
        }
    }
}

impl OpenCounts {
    const fn way(&self, direction: Direction) -> &DirectionCounts {
        match direction {
            Direction::Outbound => &self.outbound,
            Direction::Inbound => &self.inbound,
        }
    }

    fn place(self: &Arc<Self>, direction: Direction, is_connection: bool, has_socket: bool) -> OpenPermit {
        OpenPermit { books: Arc::clone(self), direction, is_connection, has_socket }
    }
}

impl OpenLimit {
    /// A limit with nothing open yet.
    #[must_use]
    pub fn new(share: Resources) -> Self {
        let share = Resources { connections: share.connections.min(Semaphore::MAX_PERMITS), ..share };
        let limit = |most: usize| Semaphore::new(most.min(Semaphore::MAX_PERMITS));
        let way = || DirectionCounts { connections: limit(share.connections), sockets: limit(share.sockets) };
        Self(Arc::new(OpenCounts { outbound: way(), inbound: way(), sockets: limit(share.all_sockets), share }))
    }

    /// Without a limit: for connections that are counted elsewhere.
    #[must_use]
    pub fn none() -> Self {
        Self::of_connections(usize::MAX)
    }

    /// Limits only the number of connections in each direction.
    #[must_use]
    pub fn of_connections(connections: usize) -> Self {
        let most = usize::MAX;
        Self::new(Resources { connections, sockets: most, all_sockets: most, highest: RawFd::MAX, socket_bytes: most })
    }

    /// A permit for an accepted connection and its socket. Waits until one is available.
    pub async fn accepted(&self, direction: Direction) -> OpenPermit {
        let way = self.0.way(direction);
        let take = async {
            let places =
                (way.connections.acquire().await?, way.sockets.acquire().await?, self.0.sockets.acquire().await?);
            places.0.forget();
            places.1.forget();
            places.2.forget();
            Ok::<_, AcquireError>(self.0.place(direction, true, true))
        };
        match take.await {
            Ok(place) => place,
            // The semaphores are never closed. If one were, no permit could be given any more.
            Err(_closed) => std::future::pending().await,
        }
    }

    /// A permit for a connection that comes in a stream, if one is available.
    #[must_use]
    pub fn stream(&self, direction: Direction) -> Option<OpenPermit> {
        self.0.way(direction).connections.try_acquire().ok()?.forget();
        Some(self.0.place(direction, true, false))
    }

    /// A permit for a further socket, if one is available: for the second socket of a connection, or for an HBONE connection.
    #[must_use]
    pub fn socket(&self, direction: Direction) -> Option<OpenPermit> {
        let way = self.0.way(direction).sockets.try_acquire().ok()?;
        self.0.sockets.try_acquire().ok()?.forget();
        way.forget();
        Some(self.0.place(direction, false, true))
    }

    /// Whether a connection may be kept. `false`: its descriptor is one of those for the daemon itself.
    #[must_use]
    pub fn has_room_for(&self, socket: &impl AsRawFd) -> bool {
        socket.as_raw_fd() <= self.0.share.highest
    }

    /// Limits the buffers of a socket so that all open sockets together stay within the pod's share.
    pub fn fit(&self, socket: &impl AsFd) {
        if let Some(bytes) = self.buffer() {
            socket::bound_buffers(socket, bytes);
        }
    }

    fn buffer(&self) -> Option<usize> {
        let used = |way: &DirectionCounts| self.0.share.connections.saturating_sub(way.connections.available_permits());
        let connections = used(&self.0.outbound).saturating_add(used(&self.0.inbound));
        // HBONE connections are sockets without a connection. A connection that is being established does not have all of its
        // sockets yet.
        let sockets =
            self.0.share.all_sockets.min(Semaphore::MAX_PERMITS).saturating_sub(self.0.sockets.available_permits());
        let open = connections.saturating_mul(SOCKETS).max(sockets);
        let (least, most) = BUFFER;
        // The kernel doubles the requested size.
        let bytes = self.0.share.socket_bytes / open.saturating_mul(BUFFERS).max(1) / 2;
        (bytes < most).then_some(bytes.max(least))
    }
}

#[cfg(test)]
mod tests {
    use super::{OpenLimit, Resources};
    use crate::{
        model::flow::Direction::{Inbound, Outbound},
        net::socket::{Family, tcp},
    };
    use socket2::SockRef;

    #[tokio::test]
    async fn no_pod_has_more_than_its_share_of_the_descriptors() {
        let few = Resources::within(30_000, 4096, 1 << 30);
        assert_eq!((few.connections, few.sockets, few.all_sockets, few.highest), (2304, 2304, 2560, 3072));
        assert_eq!(Resources::within(30_000, 1 << 20, 1 << 30).connections, 30_000);
        assert_eq!(Resources::within(30_000, 0, 0).connections, 2);
        let many = OpenLimit::new(Resources::within(30_000, 1 << 20, 1 << 30));
        let open = OpenLimit::new(Resources { highest: 0, ..few });
        assert!(!open.has_room_for(&tcp(Family::V4).unwrap()));
        assert!(many.has_room_for(&tcp(Family::V4).unwrap()));
    }

    #[tokio::test]
    async fn strangers_leave_a_pod_sockets_for_its_own_connections() {
        let open = OpenLimit::new(Resources::within(30_000, 4096, 1 << 30));
        let mut theirs = Vec::new();
        while let Some(socket) = open.socket(Inbound) {
            theirs.push(socket);
        }
        assert_eq!(theirs.len(), 2304);
        let mut waiting = Box::pin(open.accepted(Inbound));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        let mut own = Vec::new();
        for _ in 0..128 {
            own.push((open.accepted(Outbound).await, open.socket(Outbound).expect("a second socket")));
        }
        assert!(open.socket(Outbound).is_none(), "in both directions together there are no more");
        theirs.pop();
        let _place = waiting.await;
        assert!(open.stream(Inbound).is_some(), "a stream has no socket yet");
    }

    #[test]
    fn three_thousand_connections_that_nobody_reads_have_small_buffers() {
        const SHARE: usize = 256 << 20;
        let open = OpenLimit::new(Resources::within(10_000, 100_000, SHARE));
        let socket = tcp(Family::V4).unwrap();
        let sizes = || {
            let socket = SockRef::from(&socket);
            (socket.recv_buffer_size().unwrap(), socket.send_buffer_size().unwrap())
        };
        let before = sizes();
        let few: Vec<_> = (0..31).map(|_| open.stream(Inbound).unwrap()).collect();
        open.fit(&socket);
        assert_eq!(sizes(), before, "few are left to the kernel");
        let _many: Vec<_> = (0..3000).map(|_| open.stream(Outbound).unwrap()).collect();
        open.fit(&socket);
        let (receive, send) = sizes();
        assert!((receive + send) * 2 * 3000 <= SHARE, "{receive} and {send}");
        assert!(receive >= 16 << 10 && send >= 16 << 10, "{receive} and {send}");
        drop(few);
    }

    #[test]
    fn three_thousand_tunnels_that_carry_nothing_have_small_buffers() {
        const SHARE: usize = 256 << 20;
        let open = OpenLimit::new(Resources::within(10_000, 100_000, SHARE));
        let tunnels: Vec<_> = (0..3000).map(|_| open.socket(Inbound).unwrap()).collect();
        let socket = tcp(Family::V4).unwrap();
        open.fit(&socket);
        let sizes = SockRef::from(&socket);
        let (receive, send) = (sizes.recv_buffer_size().unwrap(), sizes.send_buffer_size().unwrap());
        assert!((receive + send) * 3000 <= SHARE, "{receive} and {send}");
        assert!(receive >= 16 << 10 && send >= 16 << 10, "{receive} and {send}");
        drop(tunnels);
        assert_eq!(OpenLimit::none().buffer(), None);
    }
}
