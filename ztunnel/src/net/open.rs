//! What the connections of one pod may use of what the kernel has for all: places, descriptors, and the memory of sockets.

use std::{
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::Arc,
};

use tokio::sync::Semaphore;

use super::socket;

/// Buffers of a connection: two sockets, each with one to send and one to receive.
const BUFFERS: usize = 4;
/// The least that a socket's buffer has, and the size from which the kernel sizes it as it likes: a fixed size costs throughput on
/// long ways. In the kernel's books it is twice as much.
const BUFFER: (usize, usize) = (8 << 10, 1 << 20);

/// The share of one pod.
#[derive(Clone, Copy, Debug)]
pub struct Resources {
    /// Connections that may be open, in each direction.
    pub connections: usize,
    /// A connection with a higher descriptor is closed: the rest is for the daemon itself.
    pub highest: RawFd,
    /// Memory of the kernel for the buffers of its sockets, in bytes.
    pub socket_bytes: usize,
}

impl Resources {
    /// Descriptors that the daemon needs for itself, a part of all: listeners of pods, files, and what it is asked.
    const OWN_DESCRIPTORS: usize = 4;
    /// Of the others a pod may have two thirds: two for a connection, in two directions.
    const FOR_A_CONNECTION: usize = 2 * 2 * 3 / 2;

    /// As many connections as wanted, or as many as a process with so many descriptors can give to a pod.
    #[must_use]
    pub fn within(connections: usize, descriptors: usize, socket_bytes: usize) -> Self {
        let data = descriptors - descriptors / Self::OWN_DESCRIPTORS;
        let highest = RawFd::try_from(data).unwrap_or(RawFd::MAX);
        let connections = connections.min((data / Self::FOR_A_CONNECTION).max(1));
        Self { connections, highest, socket_bytes }
    }
}

/// What is open of a pod, and may be: each direction by itself, so that strangers can't take the pod's own away. Shared by its
/// workers.
#[derive(Clone, Debug)]
pub struct OpenLimit {
    outbound: Arc<Semaphore>,
    inbound: Arc<Semaphore>,
    share: Resources,
}

impl OpenLimit {
    /// Nothing is open yet.
    #[must_use]
    pub fn new(share: Resources) -> Self {
        let share = Resources { connections: share.connections.min(Semaphore::MAX_PERMITS), ..share };
        let limit = || Arc::new(Semaphore::new(share.connections));
        Self { outbound: limit(), inbound: limit(), share }
    }

    /// Places for connections of the pod.
    #[must_use]
    pub fn outbound(&self) -> &Arc<Semaphore> {
        &self.outbound
    }

    /// Places for connections to the pod.
    #[must_use]
    pub fn inbound(&self) -> &Arc<Semaphore> {
        &self.inbound
    }

    /// Whether a connection may be kept, or has a descriptor that the daemon needs for itself.
    #[must_use]
    pub fn has_room_for(&self, socket: &impl AsRawFd) -> bool {
        socket.as_raw_fd() <= self.share.highest
    }

    /// Bounds the buffers of a socket so that as many as are open have no more than the pod's share.
    pub fn fit(&self, socket: &impl AsFd) {
        if let Some(bytes) = self.buffer() {
            socket::bound_buffers(socket, bytes);
        }
    }

    fn buffer(&self) -> Option<usize> {
        let used = |places: &Semaphore| self.share.connections.saturating_sub(places.available_permits());
        let open = used(&self.outbound).saturating_add(used(&self.inbound));
        let (least, most) = BUFFER;
        // The kernel doubles what it is told.
        let bytes = self.share.socket_bytes / open.saturating_mul(BUFFERS).max(1) / 2;
        (bytes < most).then_some(bytes.max(least))
    }
}

#[cfg(test)]
mod tests {
    use super::{OpenLimit, Resources};
    use crate::net::socket::{Family, tcp};
    use socket2::SockRef;
    use std::sync::Arc;

    #[test]
    fn no_pod_has_more_than_two_thirds_of_the_descriptors() {
        let few = Resources::within(30_000, 4096, 1 << 30);
        assert_eq!((few.connections, few.highest), (512, 3072));
        assert!(2 * 2 * few.connections <= 3072 / 3 * 2);
        let many = Resources::within(30_000, 1 << 20, 1 << 30);
        assert_eq!(many.connections, 30_000);
        assert_eq!(Resources::within(30_000, 0, 0).connections, 1);
        let open = OpenLimit::new(Resources { highest: 0, ..few });
        assert!(!open.has_room_for(&tcp(Family::V4).unwrap()));
        assert!(OpenLimit::new(many).has_room_for(&tcp(Family::V4).unwrap()));
    }

    #[test]
    fn three_thousand_connections_that_nobody_reads_have_small_buffers() {
        const SHARE: usize = 256 << 20;
        let open = OpenLimit::new(Resources { connections: 10_000, highest: 1000, socket_bytes: SHARE });
        let socket = tcp(Family::V4).unwrap();
        let sizes = || {
            let socket = SockRef::from(&socket);
            (socket.recv_buffer_size().unwrap(), socket.send_buffer_size().unwrap())
        };
        let before = sizes();
        let few = Arc::clone(open.inbound()).try_acquire_many_owned(31).unwrap();
        open.fit(&socket);
        assert_eq!(sizes(), before, "few are left to the kernel");
        let _many = Arc::clone(open.outbound()).try_acquire_many_owned(3000).unwrap();
        open.fit(&socket);
        let (receive, send) = sizes();
        assert!((receive + send) * 2 * 3000 <= SHARE, "{receive} and {send}");
        assert!(receive >= 16 << 10 && send >= 16 << 10, "{receive} and {send}");
        drop(few);
    }
}
