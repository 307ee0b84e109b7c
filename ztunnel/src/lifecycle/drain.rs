//! The signal to drain: one trigger, any number of watchers.

use tokio::sync::watch;

/// Starts the drain; dropping it starts the drain as well.
#[derive(Debug)]
pub struct DrainTrigger(watch::Sender<Stop>);

/// Receives the start of the drain.
#[derive(Clone, Debug)]
pub struct DrainWatch(watch::Receiver<Stop>);

/// The state of the drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It has not started.
    NotYet,
    /// Another process accepts all new connections. Connections that are being set up still arrive here.
    HandedOver,
    /// It has started; another process takes over afterwards.
    Begun,
    /// It has started; no process takes over afterwards.
    ForGood,
}

/// A trigger and its first watcher.
#[must_use]
pub fn channel() -> (DrainTrigger, DrainWatch) {
    let (tx, rx) = watch::channel(Stop::NotYet);
    (DrainTrigger(tx), DrainWatch(rx))
}

impl DrainTrigger {
    /// Tells every watcher that another process accepts all new connections; [`Self::start`] follows.
    pub fn hand_over(&self) {
        self.0.send_if_modified(|stop| {
            let is_first = *stop == Stop::NotYet;
            if is_first {
                *stop = Stop::HandedOver;
            }
            is_first
        });
    }

    /// Starts the drain for every watcher.
    pub fn start(&self) {
        self.0.send_replace(Stop::Begun);
    }

    /// The same, if no process takes over afterwards.
    pub fn start_for_good(&self) {
        self.0.send_replace(Stop::ForGood);
    }
}

impl DrainWatch {
    /// Whether the drain has started.
    #[must_use]
    pub fn is_started(&self) -> bool {
        *self.0.borrow() != Stop::NotYet || self.0.has_changed().is_err()
    }

    /// Whether no process takes over afterwards.
    #[must_use]
    pub fn is_for_good(&self) -> bool {
        *self.0.borrow() == Stop::ForGood
    }

    /// Waits until it is known that no process takes over afterwards: from the start of the drain, or later.
    pub async fn for_good(&mut self) {
        if self.0.wait_for(|stop| *stop == Stop::ForGood).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until no new connections may be accepted. After [`DrainTrigger::hand_over`] alone they may.
    pub async fn closing(&mut self) {
        let _gone = self.0.wait_for(|stop| matches!(stop, Stop::Begun | Stop::ForGood)).await;
    }

    /// Waits for the start of the drain, or until another process accepts all new connections.
    pub async fn started(&mut self) {
        // An error means that the trigger is gone, which is a start as well.
        let _gone = self.0.wait_for(|stop| *stop != Stop::NotYet).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn a_trigger_or_its_loss_starts_the_drain() {
        let (trigger, mut watch) = super::channel();
        assert!(watch.started().now_or_never().is_none());
        trigger.start();
        watch.started().await;
        let (trigger, mut watch) = super::channel();
        drop(trigger);
        watch.started().await;
        assert!(!watch.is_for_good());
        let (trigger, mut watch) = super::channel();
        trigger.start_for_good();
        watch.started().await;
        assert!(watch.is_started() && watch.is_for_good());
        let (trigger, mut watch) = super::channel();
        trigger.start();
        assert!(watch.for_good().now_or_never().is_none());
        trigger.start_for_good();
        watch.for_good().await;
    }

    #[tokio::test]
    async fn what_is_on_its_way_is_taken_after_a_handover() {
        let (trigger, mut watch) = super::channel();
        trigger.hand_over();
        watch.started().await;
        assert!(watch.closing().now_or_never().is_none() && !watch.is_for_good());
        trigger.start();
        watch.closing().await;
        trigger.hand_over();
        watch.closing().await;
    }
}
