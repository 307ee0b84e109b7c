//! Passes the SYNs of a pod to its workers. One worker reads them, and the client's port decides which worker serves each, as it
//! decides which one accepts the connection.

use std::rc::Rc;

use ebpf_common::worker_of;
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::error;

use crate::{
    flow::{
        PodContext,
        held::{self, HeldConnects},
    },
    lifecycle::{
        drain::DrainWatch,
        tasks::{TaskCount, TaskSet},
    },
    model::close::CloseReason,
    net::syn::{Syn, SynSource},
};

/// SYNs that may wait for a busy worker. The connects beyond are refused.
const WAITING: usize = 1024;

/// One worker's way to all of them.
#[derive(Clone, Debug)]
pub struct SynDispatch(Vec<mpsc::Sender<Box<Syn>>>);

/// The SYNs for one worker.
pub type SynInbox = mpsc::Receiver<Box<Syn>>;

/// The ends for a number of workers.
#[must_use]
pub fn among(workers: usize) -> Vec<(SynDispatch, SynInbox)> {
    let (senders, inboxes): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::channel(WAITING)).unzip();
    inboxes.into_iter().map(|inbox| (SynDispatch(senders.clone()), inbox)).collect()
}

impl SynDispatch {
    /// Passes a SYN to its worker.
    ///
    /// # Errors
    /// The worker has too many already, or does not serve the pod any more.
    fn pass(&self, syn: Box<Syn>) -> Result<(), TrySendError<Box<Syn>>> {
        let workers = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let worker = worker_of(syn.flow().peer.port(), workers);
        match self.0.get(worker as usize) {
            Some(worker) => worker.try_send(syn),
            None => Err(TrySendError::Closed(syn)),
        }
    }
}

/// Reads the SYNs of a pod until the task is dropped.
pub(super) async fn read(mut source: Box<dyn SynSource>, dispatch: SynDispatch, pod: Rc<PodContext>) {
    let error = source
        .read(&mut |syn| match dispatch.pass(Box::new(syn)) {
            Ok(()) => {}
            Err(TrySendError::Full(syn)) => {
                let detail = format!("more than {WAITING} connects wait for a busy worker of the daemon");
                held::refuse(&pod, &syn, CloseReason::TooMany, detail);
            }
            Err(TrySendError::Closed(syn)) => drained(&pod, &syn),
        })
        .await;
    error!(pod = %pod.name, %error, "the pod's connects can't be read, and get no answer until it is enrolled anew");
}

/// Serves the connects of a pod that belong to this worker. On drain those that wait are refused.
pub(super) async fn serve(
    mut inbox: SynInbox,
    pod: Rc<PodContext>,
    connects: Rc<HeldConnects>,
    mut drain: DrainWatch,
    alive: TaskCount,
) {
    let mut attempts = TaskSet::new(alive);
    loop {
        tokio::select! {
            Some(syn) = inbox.recv() => held::arrived(&pod, &connects, *syn, &mut attempts),
            () = attempts.reap_next(), if !attempts.is_empty() => {}
            () = drain.closing() => break,
        }
    }
    inbox.close();
    while let Ok(syn) = inbox.try_recv() {
        drained(&pod, &syn);
    }
    connects.refuse_all();
    attempts.join_all().await;
}

fn drained(pod: &Rc<PodContext>, syn: &Syn) {
    held::refuse(pod, syn, CloseReason::Drained, CloseReason::Drained.to_string());
}

#[cfg(test)]
mod tests {
    use super::{WAITING, among};
    use crate::net::syn::Syn;
    use ebpf_common::worker_of;

    fn syn(port: u16) -> Box<Syn> {
        let mut bytes = [0; 40];
        bytes[0] = 0x45;
        bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        bytes[20..22].copy_from_slice(&port.to_be_bytes());
        bytes[32..34].copy_from_slice(&[0x50, 0x02]);
        Box::new(Syn::parse(&bytes, 20).unwrap())
    }

    #[test]
    fn the_worker_that_will_accept_gets_the_syn() {
        let mut ends = among(3);
        for port in 40_000..40_100 {
            ends[1].0.pass(syn(port)).unwrap();
            let worker = worker_of(port, 3) as usize;
            assert_eq!(ends[worker].1.try_recv().unwrap().flow().peer.port(), port);
        }
        assert!(ends.iter_mut().all(|(_, inbox)| inbox.try_recv().is_err()));
    }

    #[test]
    fn a_busy_worker_gets_no_more_than_it_can_keep() {
        let ends = among(1);
        let passed = (0..WAITING + 5).filter(|_| ends[0].0.pass(syn(40_000)).is_ok()).count();
        assert_eq!(passed, WAITING);
    }
}
