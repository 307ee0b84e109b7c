//! The state of a live connection: the facts that `/config_dump` shows, and the number of carried bytes.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use crate::{
    metrics::{
        facts::Facts,
        traffic::{Counted, Meter},
    },
    model::{
        close::CloseReason,
        flow::{Direction, Flow},
        identity::SpiffeId,
    },
    net::copy::Transferred,
    policy::Basis,
};

/// One live connection, shared by the task that serves it and the table that lists it.
#[derive(Debug)]
pub struct Live {
    flow: Flow,
    accepted: Instant,
    bytes: Transferred,
    facts: RefCell<Option<Rc<Facts>>>,
    /// The facts contain the decided destination, not only the request.
    decided: Cell<bool>,
    /// Why the connection is allowed.
    basis: Cell<Basis>,
    counted: RefCell<Option<Counted>>,
    /// The reason why the connection has to end.
    cut: Cell<Option<CloseReason>>,
    /// The connection's task, which waits for the cut.
    waiting: RefCell<Option<Waker>>,
}

impl Live {
    pub(super) fn new(flow: Flow) -> Self {
        Self {
            flow,
            accepted: Instant::now(),
            bytes: Transferred::default(),
            facts: RefCell::default(),
            decided: Cell::default(),
            basis: Cell::default(),
            counted: RefCell::default(),
            cut: Cell::default(),
            waiting: RefCell::default(),
        }
    }

    /// The direction, the client and the original destination.
    #[must_use]
    pub fn flow(&self) -> Flow {
        self.flow
    }

    /// The known facts. `None`: nothing is known besides the addresses of the sockets.
    #[must_use]
    pub fn facts(&self) -> Option<Rc<Facts>> {
        self.facts.borrow().clone()
    }

    /// The number of bytes carried so far.
    #[must_use]
    pub fn bytes(&self) -> &Transferred {
        &self.bytes
    }

    /// The number of bytes carried so far, in the order of Istio's log: sent and received by the reporting side.
    #[must_use]
    pub fn sent_and_received(&self) -> (u64, u64) {
        let (up, down) = (self.bytes.to_server(), self.bytes.to_client());
        match self.flow.direction {
            Direction::Outbound => (up, down),
            Direction::Inbound => (down, up),
        }
    }

    /// The time since the connection was accepted.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.accepted.elapsed()
    }

    /// Adds the bytes carried since the last call to the metrics. It is called for every scrape, so that the metrics include
    /// connections that live for days.
    pub fn flush(&self) {
        if let Some(counted) = &*self.counted.borrow() {
            counted.flush(self.bytes.to_server(), self.bytes.to_client());
        }
    }

    /// Sets the facts of the request. The destination is not decided yet.
    pub(super) fn hear(&self, facts: Facts) {
        self.facts.replace(Some(Rc::new(facts)));
    }

    /// Sets the facts with the decided destination.
    pub(super) fn learn(&self, facts: Facts) {
        self.hear(facts);
        self.decided.set(true);
    }

    /// Sets the identity that the server has proved. It may differ from the expected one if several are allowed.
    pub(super) fn prove(&self, server: SpiffeId) {
        let facts = self.facts().filter(|facts| facts.destination_identity.as_ref() != Some(&server));
        if let Some(facts) = facts {
            self.hear(Facts { destination_identity: Some(server), ..Facts::clone(&facts) });
        }
    }

    /// Sets why the connection is allowed. Istio's series do not count a probe of the kubelet.
    pub(super) fn permit(&self, basis: Basis) {
        self.basis.set(basis);
    }

    /// Why policy did not decide about the connection. `None`: it did, or the connection is outbound.
    #[must_use]
    pub fn without_policy(&self) -> Option<&'static str> {
        self.basis.get().without_policy()
    }

    /// Whether the destination is decided.
    pub(super) fn is_decided(&self) -> bool {
        self.decided.get()
    }

    /// Counts the connection as opened, once, if its destination is decided. As in Istio, a connection that was refused before
    /// is not counted.
    pub(super) fn count(&self, meter: &Meter) {
        let mut counted = self.counted.borrow_mut();
        if let (None, true, Some(facts)) =
            (counted.as_ref(), self.is_decided() && self.basis.get() != Basis::Probe, self.facts())
        {
            *counted = Some(meter.open(&facts));
        }
    }

    /// Ends the connection for an external reason.
    pub fn cut(&self, reason: CloseReason) {
        self.cut.set(Some(reason));
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }

    /// Ready when the connection has to end. Only one task at a time may poll this.
    pub(super) fn poll_cut(&self, cx: &Context<'_>) -> Poll<CloseReason> {
        if let Some(reason) = self.cut.get() {
            return Poll::Ready(reason);
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waiting = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Waits until the connection has to end.
    pub(super) fn until_cut(&self) -> impl Future<Output = CloseReason> + '_ {
        poll_fn(|cx| self.poll_cut(cx))
    }

    pub(super) fn close(&self, reason: CloseReason) {
        self.flush();
        if let Some(counted) = self.counted.take() {
            counted.close(reason);
        }
    }
}
