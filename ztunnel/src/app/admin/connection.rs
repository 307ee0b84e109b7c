//! The connection of a request: its client, and its end.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{lifecycle::drain::DrainWatch, model::addr::PeerAddr};

/// The deadline for the end of a connection, also if its reader stalls.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// The connection of a request.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// The client.
    pub(super) peer: SocketAddr,
    /// Whether the endpoints are being closed.
    pub(super) drain: DrainWatch,
    /// The time at which the connection is closed.
    until: Arc<watch::Sender<Instant>>,
}

impl Connection {
    pub(super) fn new(peer: PeerAddr, drain: DrainWatch) -> Self {
        let until = Arc::new(watch::Sender::new(Instant::now() + CONNECTION_TIMEOUT));
        Self { peer: peer.socket(), drain, until }
    }

    /// Puts off the end of the connection, because its client takes what it gets.
    pub(super) fn prolong(&self) {
        self.until.send_replace(Instant::now() + CONNECTION_TIMEOUT);
    }

    /// Waits for the end.
    pub(super) async fn is_over(&self) {
        loop {
            let until = *self.until.borrow();
            sleep_until(until).await;
            if *self.until.borrow() <= until {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, sleep, timeout};

    use super::{CONNECTION_TIMEOUT, Connection};
    use crate::{lifecycle::drain, model::addr::PeerAddr};

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_its_client_takes_nothing_for_too_long() {
        let (_trigger, watch) = drain::channel();
        let connection = Connection::new(PeerAddr::new("127.0.0.1:4000".parse().unwrap()), watch);
        let begun = Instant::now();
        for _ in 0..4 {
            let half = CONNECTION_TIMEOUT / 2;
            assert!(timeout(half, connection.is_over()).await.is_err());
            connection.prolong();
        }
        connection.is_over().await;
        assert_eq!(begun.elapsed(), 3 * CONNECTION_TIMEOUT);
        sleep(Duration::from_secs(1)).await;
        timeout(Duration::from_secs(1), connection.is_over()).await.unwrap();
    }
}
