//! A connection while it lives: what `/config_dump` shows of it, and what it has carried so far.

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
    /// The facts say where it goes, not only who asks.
    decided: Cell<bool>,
    /// Why it may be.
    basis: Cell<Basis>,
    counted: RefCell<Option<Counted>>,
    /// It has to end.
    cut: Cell<Option<CloseReason>>,
    /// Its task, which waits to hear of that.
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

    /// Who wanted to go where.
    #[must_use]
    pub fn flow(&self) -> Flow {
        self.flow
    }

    /// What is known of it; `None` before anything is, but what its sockets tell.
    #[must_use]
    pub fn facts(&self) -> Option<Rc<Facts>> {
        self.facts.borrow().clone()
    }

    /// Bytes so far.
    #[must_use]
    pub fn bytes(&self) -> &Transferred {
        &self.bytes
    }

    /// Bytes so far as Istio's log has them: sent and received by the side that reports.
    #[must_use]
    pub fn sent_and_received(&self) -> (u64, u64) {
        let (up, down) = (self.bytes.to_server(), self.bytes.to_client());
        match self.flow.direction {
            Direction::Outbound => (up, down),
            Direction::Inbound => (down, up),
        }
    }

    /// How long it lives already.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.accepted.elapsed()
    }

    /// Adds what was carried since the last call to the metrics: called for every scrape, so that connections that live
    /// for days are seen.
    pub fn flush(&self) {
        if let Some(counted) = &*self.counted.borrow() {
            counted.flush(self.bytes.to_server(), self.bytes.to_client());
        }
    }

    /// Who asks for what: it is not decided yet whether it goes there.
    pub(super) fn hear(&self, facts: Facts) {
        self.facts.replace(Some(Rc::new(facts)));
    }

    /// Where it goes.
    pub(super) fn learn(&self, facts: Facts) {
        self.hear(facts);
        self.decided.set(true);
    }

    /// Who the server has proved to be: the one that was expected, or another that may be there.
    pub(super) fn prove(&self, server: SpiffeId) {
        let facts = self.facts().filter(|facts| facts.destination_identity.as_ref() != Some(&server));
        if let Some(facts) = facts {
            self.hear(Facts { destination_identity: Some(server), ..Facts::clone(&facts) });
        }
    }

    /// Why it may be. Istio's series do not count a probe of the kubelet.
    pub(super) fn permit(&self, basis: Basis) {
        self.basis.set(basis);
    }

    /// Why policy did not decide about it; `None`: it did, or the connection is outbound.
    pub(super) fn without_policy(&self) -> Option<&'static str> {
        self.basis.get().without_policy()
    }

    /// Whether it is decided where it goes.
    pub(super) fn is_decided(&self) -> bool {
        self.decided.get()
    }

    /// Counts it as opened, once, if it is decided where it goes: as in Istio, what was refused before is no connection.
    pub(super) fn count(&self, meter: &Meter) {
        let mut counted = self.counted.borrow_mut();
        if let (None, true, Some(facts)) =
            (counted.as_ref(), self.is_decided() && self.basis.get() != Basis::Probe, self.facts())
        {
            *counted = Some(meter.open(&facts));
        }
    }

    /// Has the connection end for a reason that lies outside of it.
    pub fn cut(&self, reason: CloseReason) {
        self.cut.set(Some(reason));
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }

    /// Whether it has to end. For one task at a time.
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

    /// Waits until it has to end.
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
