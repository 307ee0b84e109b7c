//! Distributes the HBONE connections to a pod over its workers, in turn. An HBONE connection carries many connections,
//! and there are few of them. If the ports of the clients decided, two of two would reach the same worker half of the
//! time, and the other worker would idle. A hostile client could choose its ports so that all of them reach one worker.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{net::TcpStream, sync::mpsc};

use crate::net::listen::Accepted;

/// HBONE connections that may wait for a busy worker. When this queue is full, the worker that accepted a connection
/// serves it.
const WAITING: usize = 64;

/// One worker's end of the distribution.
#[derive(Debug)]
pub struct WorkerDispatch {
    index: usize,
    turn: Arc<AtomicUsize>,
    workers: Arc<[mpsc::Sender<Accepted<std::net::TcpStream>>]>,
}

/// The HBONE connections that a worker gets from other workers.
pub type Inbox = mpsc::Receiver<Accepted<std::net::TcpStream>>;

/// The ends for a number of workers.
#[must_use]
pub fn among(workers: usize) -> Vec<(WorkerDispatch, Inbox)> {
    let (senders, inboxes): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::channel(WAITING)).unzip();
    let (turn, workers): (Arc<AtomicUsize>, Arc<[_]>) = (Arc::default(), senders.into());
    let end =
        |(index, inbox)| (WorkerDispatch { index, turn: Arc::clone(&turn), workers: Arc::clone(&workers) }, inbox);
    inboxes.into_iter().enumerate().map(end).collect()
}

impl WorkerDispatch {
    /// Passes an HBONE connection to the worker whose turn it is. If it is returned, the caller has to serve it. A
    /// connection that can't be passed on is dropped, which resets it.
    #[must_use]
    pub fn pass(&self, accepted: Accepted) -> Option<Accepted> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.workers.len().max(1);
        let Some(place) = self.workers.get(turn).filter(|_| turn != self.index).map(mpsc::Sender::try_reserve) else {
            return Some(accepted);
        };
        // The queue is full, or the worker no longer has the pod.
        let Ok(place) = place else { return Some(accepted) };
        if let Some(accepted) = accepted.convert(TcpStream::into_std) {
            place.send(accepted);
        }
        None
    }
}

/// Takes an HBONE connection that another worker has accepted.
#[must_use]
pub fn receive(accepted: Accepted<std::net::TcpStream>) -> Option<Accepted> {
    accepted.convert(TcpStream::from_std)
}

#[cfg(test)]
mod tests {

    use tokio::net::{TcpListener, TcpStream};

    use super::{WAITING, among, receive};
    use crate::net::{
        listen::{Accepted, Acceptor},
        open::OpenLimit,
    };

    async fn accepted() -> (TcpStream, Accepted) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, Acceptor::new(listener, OpenLimit::none()).next().await)
    }

    #[tokio::test]
    async fn tunnels_are_dealt_out_in_turn_whoever_accepts_them() {
        let mut ends = among(2);
        let mut kept = 0;
        for _ in 0..4 {
            let (client, tunnel) = accepted().await;
            if ends[0].0.pass(tunnel).is_some() {
                kept += 1;
                continue;
            }
            let tunnel = receive(ends[1].1.try_recv().unwrap()).unwrap();
            assert_eq!(tunnel.peer.socket(), client.local_addr().unwrap());
            assert_eq!(tunnel.stream.peer_addr().unwrap(), client.local_addr().unwrap());
        }
        assert_eq!(kept, 2);
        assert!(ends[0].1.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_worker_that_takes_no_more_gets_no_more() {
        let mut ends = among(2);
        let mut clients = Vec::new();
        let mut served = 0;
        for _ in 0..2 * (WAITING + 3) {
            let (client, tunnel) = accepted().await;
            clients.push(client);
            served += usize::from(ends[0].0.pass(tunnel).is_some());
        }
        assert_eq!(served, WAITING + 3 + 3, "every other one, and those beyond what waits");
        ends.truncate(1);
        let (_client, tunnel) = accepted().await;
        let (_other, next) = accepted().await;
        assert!(
            ends[0].0.pass(tunnel).is_some() && ends[0].0.pass(next).is_some(),
            "the pod has left the other worker"
        );
    }
}
