//! The end of trust: a peer that was authenticated in the handshake is verified again when the roots have changed.
//!
//! [`Endpoint::distrusted`] returns when a connection has to be reset, and [`Endpoint::outdated`] when it should get no new
//! streams. In an orderly replacement of an authority the second comes first. The new root is added beside the old one, then
//! the own certificate is issued by the new authority. This makes every connection with the old certificate outdated, at both
//! ends. So no short stream is left on it when the old root is removed.

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

/// The interval at which the wall clock is checked. It may be set, and it goes on while the machine sleeps; timers notice
/// neither.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

impl Endpoint {
    /// Whether a peer's certificate leads to one of the newest roots. Its path is verified as of the time of the handshake, so
    /// that an expiry since then does not matter.
    ///
    /// # Errors
    /// It does not lead to one of them.
    pub fn still_trusts(&self, peer: &Peer) -> Result<(), Distrust> {
        self.roots().map_or(Ok(()), |roots| peer.proof.check(&roots))
    }

    /// Waits until the peer is not trusted any more: its root was removed, or a certificate of one of the ends has expired and
    /// [`cut_expired`](super::Settings::cut_expired) is set. A change that removes no root costs nothing.
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

    /// Waits until the connection with the peer should get no new streams: a certificate of one of the ends has expired, or the
    /// root of the own certificate has changed.
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
            // Checked before the first wait as well: the roots may have changed since the handshake began.
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
