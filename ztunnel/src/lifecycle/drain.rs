//! The signal to stop: one trigger, any number of watchers.

use tokio::sync::watch;

/// Starts the drain; dropping it starts it too.
#[derive(Debug)]
pub struct DrainTrigger(watch::Sender<Stop>);

/// Learns of the drain.
#[derive(Clone, Debug)]
pub struct DrainWatch(watch::Receiver<Stop>);

/// How far the stop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It has not begun.
    NotYet,
    /// Another process takes over afterwards.
    Begun,
    /// Nobody takes over afterwards.
    ForGood,
}

/// A trigger and its first watcher.
#[must_use]
pub fn channel() -> (DrainTrigger, DrainWatch) {
    let (tx, rx) = watch::channel(Stop::NotYet);
    (DrainTrigger(tx), DrainWatch(rx))
}

impl DrainTrigger {
    /// Tells every watcher.
    pub fn start(&self) {
        self.0.send_replace(Stop::Begun);
    }

    /// The same, where nobody takes over afterwards.
    pub fn start_for_good(&self) {
        self.0.send_replace(Stop::ForGood);
    }
}

impl DrainWatch {
    /// Whether it has started.
    #[must_use]
    pub fn is_started(&self) -> bool {
        *self.0.borrow() != Stop::NotYet || self.0.has_changed().is_err()
    }

    /// Whether nobody takes over afterwards.
    #[must_use]
    pub fn is_for_good(&self) -> bool {
        *self.0.borrow() == Stop::ForGood
    }

    /// Waits for the start of the drain.
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
    }
}
