//! Orders to a manager whose pods another daemon of the same node takes over.

use std::collections::HashMap;

use tokio::sync::{mpsc, oneshot};

/// Has a manager hand its pods over, step by step.
#[derive(Clone, Debug)]
pub struct Orders(pub(super) mpsc::Sender<Order>);

/// One step.
#[derive(Debug)]
pub(super) enum Order {
    /// Stop all changes of kernel and records; serve as before.
    Freeze(oneshot::Sender<Frozen>),
    /// Continue. The other daemon does not take over, but it may have begun to.
    Resume(oneshot::Sender<()>),
    /// The other daemon has taken over.
    Retire(oneshot::Sender<()>),
}

/// The pods of a manager that has stopped all changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frozen {
    /// Number of enrolled pods.
    pub pods: usize,
    /// The number of connections of a pod from before its enrolment, by cookie. Pods without such connections are left
    /// out.
    pub connections_before: HashMap<u64, usize>,
}

/// The result of a take-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenOver {
    /// Pods that are enrolled.
    pub enrolled: usize,
    /// Pods that are refused.
    pub refused: usize,
}

impl Orders {
    /// Has the manager stop all changes until [`Self::resume`] or [`Self::retire`]. `None`: the manager is stopping.
    pub async fn freeze(&self) -> Option<Frozen> {
        self.order(Order::Freeze).await
    }

    /// Has the manager continue, and restore the state that the other daemon may have changed.
    pub async fn resume(&self) {
        self.order(Order::Resume).await;
    }

    /// Has the manager serve only its open connections. Returns whether it does.
    pub async fn retire(&self) -> bool {
        self.order(Order::Retire).await.is_some()
    }

    /// Whether the manager has ended.
    #[cfg(test)]
    pub(super) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    async fn order<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.0.send(order(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// A manager that confirms all orders and does nothing.
#[cfg(test)]
pub struct Steps(pub(super) mpsc::Receiver<Order>);

#[cfg(test)]
impl Steps {
    /// Confirms the next order, as a manager with two pods, and returns its name; `None`: there can be no more orders.
    pub async fn next(&mut self) -> Option<&'static str> {
        Some(match self.0.recv().await? {
            Order::Freeze(reply) => {
                reply.send(Frozen { pods: 2, connections_before: [(7, 3)].into() }).unwrap();
                "freeze"
            }
            Order::Resume(reply) => {
                reply.send(()).unwrap();
                "resume"
            }
            Order::Retire(reply) => {
                reply.send(()).unwrap();
                "retire"
            }
        })
    }
}
