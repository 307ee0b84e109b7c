//! The signal to stop: one trigger, any number of watchers.

use tokio::sync::watch;

/// Starts the drain; dropping it starts it too.
#[derive(Debug)]
pub struct DrainTrigger(watch::Sender<bool>);

/// Learns of the drain.
#[derive(Clone, Debug)]
pub struct DrainWatch(watch::Receiver<bool>);

/// A trigger and its first watcher.
#[must_use]
pub fn channel() -> (DrainTrigger, DrainWatch) {
    let (tx, rx) = watch::channel(false);
    (DrainTrigger(tx), DrainWatch(rx))
}

impl DrainTrigger {
    /// Tells every watcher.
    pub fn start(&self) {
        self.0.send_replace(true);
    }
}

impl DrainWatch {
    /// Whether it has started.
    #[must_use]
    pub fn is_started(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Waits for the start of the drain.
    pub async fn started(&mut self) {
        // An error means that the trigger is gone, which is a start as well.
        let _gone = self.0.wait_for(|started| *started).await;
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
    }
}
