//! Trust that ends: who was proved at the handshake is asked for again when the roots have changed.
//!
//! [`Endpoint::distrusted`] tells when a connection has to be cut, [`Endpoint::outdated`] when it should carry nothing new.
//! The second comes first where an authority is replaced in order: the new root stands beside the old one, then the own
//! certificate comes from the new authority, which makes every connection that was made with the old one outdated, at both
//! of its ends; so that nothing that is short is left on it when the old root is taken out.

use std::{
    future::pending,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::sleep;

use super::{
    endpoint::{Endpoint, Peer},
    proof::Distrust,
};

/// The wall clock may be set, and stands on while the machine sleeps, which timers don't see: it is looked at this often.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

impl Endpoint {
    /// Whether a peer's certificate leads to one of the newest roots. Its path is verified as of the time of the handshake,
    /// so that no expiry speaks against it.
    ///
    /// # Errors
    /// It does not.
    pub fn still_trusts(&self, peer: &Peer) -> Result<(), Distrust> {
        self.roots().map_or(Ok(()), |roots| peer.proof.check(&roots))
    }

    /// Waits until the peer is not trusted any more: its root has been taken away, or, where
    /// [connections end with their certificates](super::Settings::cut_expired), one of the two has expired. A change of
    /// the roots by which nothing is lost costs nothing.
    pub async fn distrusted(&self, peer: &Peer) -> Distrust {
        let expired = async {
            match self.settings().cut_expired {
                true => until(peer.expires).await,
                false => pending().await,
            }
        };
        tokio::select! {
            distrust = self.root_gone(peer) => distrust,
            () = expired => Distrust::Expired,
        }
    }

    /// Waits until nothing new should be put on a connection with the peer: a certificate of the two ends has expired, or
    /// the own one leads to another root since.
    pub async fn outdated(&self, peer: &Peer) {
        tokio::select! {
            () = until(peer.expires) => {}
            () = self.own_root_changed(peer) => {}
        }
    }

    async fn root_gone(&self, peer: &Peer) -> Distrust {
        let mut news = self.certificate().clone();
        let mut known = Arc::clone(&peer.proof.0.roots);
        loop {
            // The first time as well: they may have changed since the handshake began.
            if let Some(roots) = self.roots()
                && !Arc::ptr_eq(&roots, &known)
            {
                if !roots.includes(&known)
                    && let Err(distrust) = peer.proof.check(&roots)
                {
                    return distrust;
                }
                known = roots;
            }
            if !news.changed().await {
                return pending().await;
            }
        }
    }

    async fn own_root_changed(&self, peer: &Peer) {
        let Some(then) = &peer.proof.0.own_root else { return pending().await };
        let mut news = self.certificate().clone();
        loop {
            if self.own_root().is_some_and(|now| now != *then) {
                return;
            }
            if !news.changed().await {
                return pending().await;
            }
        }
    }
}

/// Waits for a time of the wall clock.
async fn until(end: SystemTime) {
    while let Ok(left) = end.duration_since(SystemTime::now())
        && !left.is_zero()
    {
        sleep(left.min(CLOCK_CHECK)).await;
    }
}

#[cfg(test)]
mod tests;
