//! Connects of the pod's applications that wait until their destination is reached.
//!
//! The kernel takes the SYN of a captured connect from the network. The daemon decides and connects first, and answers the SYN
//! afterwards: `connect` of the application has the result that it would have without the daemon.
//!
//! | result | answer |
//! |---|---|
//! | connected; for a tunnel: the destination's node has answered 200 | the SYN is put back, and the listener accepts it |
//! | denied by policy | the same; the accepted connection is reset, as without held connects |
//! | unreachable | an ICMP error, twice, then a reset: `EHOSTUNREACH`, `ENETUNREACH` |
//! | silence | none: the client decides how long it waits. When it sends its SYN again, the destination is tried again |
//! | any other | a reset: `ECONNREFUSED` |
//!
//! A client gives up without a word. It is known by the SYNs that it does not send any more.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    rc::Rc,
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tracing::warn;

use super::{
    FlowRefusal, PodContext,
    record::Recorded,
    upstream::{self, Server},
};
use crate::{
    lifecycle::tasks::TaskSet,
    model::{
        addr::{OrigDst, PeerAddr},
        close::CloseReason,
        flow::Flow,
    },
    net::{dial::Injected, syn::Syn},
};

/// Connects of one pod that may wait on one worker. Each has a task, a record and a dial. Further ones are refused.
const MOST: usize = 2048;
/// How long a SYN that was put back may wait to be accepted. The kernel needs microseconds; after this time the client has given
/// up, or its ACK was overtaken by a reset.
const ACCEPTED_WITHIN: Duration = Duration::from_millis(2500);
/// The kernel sends a SYN again after one second at first. A client that sends none in this time has given up.
const FIRST_REPETITION: Duration = Duration::from_millis(3500);
/// From this age on an attempt may have repetitions of its SYN that are not read yet. They must not begin a second attempt, so the
/// first one is remembered for [`REMEMBERED`].
const MAY_BE_REPEATED: Duration = Duration::from_millis(800);
/// Longer than a SYN may wait to be read.
const REMEMBERED: Duration = Duration::from_secs(1);
/// An ICMP error that meets a socket in use is kept until the next SYN has no answer. So the error is sent again.
const SECOND_ERROR: Duration = Duration::from_millis(20);
/// ICMPv6 errors do not reach a socket that is bound to a device. A reset does.
const RESET_AFTER_ERRORS: Duration = Duration::from_millis(30);

/// The connects that wait, of one pod on one worker.
#[derive(Debug, Default)]
pub struct HeldConnects {
    waiting: RefCell<HashMap<Ends, Rc<Attempt>>>,
}

type Ends = (PeerAddr, OrigDst);

/// A connection whose SYN was put back, for the task that accepts it.
pub(super) struct Prepared {
    pub(super) record: Recorded,
    pub(super) result: Result<Server, FlowRefusal>,
}

/// One connect: all SYNs with the same ends and the same sequence number.
#[derive(Debug)]
struct Attempt {
    syn: Syn,
    begun: Instant,
    state: RefCell<State>,
    /// The time of its last SYN.
    seen: Cell<Instant>,
    /// The time between its last two SYNs.
    gap: Cell<Duration>,
    /// A SYN has come, or the attempt has to end.
    changed: Notify,
    /// Why the attempt has to end, and whether the client gets no answer.
    ended: Cell<Option<(CloseReason, bool)>>,
}

enum State {
    /// The destination is not reached yet.
    Open,
    /// The SYN was put back.
    Ready(Box<Prepared>),
    /// The connection was accepted, or the client has its answer.
    Done,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Ready(_) => "ready",
            Self::Done => "done",
        })
    }
}

impl HeldConnects {
    /// Takes the connection that was made for an accepted one. `None`: the SYN of this one was not held.
    pub(super) fn take(&self, peer: PeerAddr, dst: OrigDst) -> Option<Prepared> {
        let attempt = self.waiting.borrow().get(&(peer, dst)).cloned()?;
        let taken = attempt.take()?;
        attempt.changed.notify_one();
        Some(taken)
    }

    /// The number of connects that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// Whether no connect waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Refuses all connects that wait, because the daemon stops.
    pub fn refuse_all(&self) {
        self.end_all(false);
    }

    /// Ends all attempts without an answer, because another daemon serves the pod: it gets the SYNs that the clients send again.
    pub fn leave_all(&self) {
        self.end_all(true);
    }

    fn end_all(&self, is_silent: bool) {
        for attempt in self.waiting.borrow().values() {
            attempt.end(CloseReason::Drained, is_silent);
        }
    }
}

/// Handles a SYN that was taken. A new attempt becomes a task of `attempts`.
pub fn arrived(pod: &Rc<PodContext>, held: &Rc<HeldConnects>, syn: Syn, attempts: &mut TaskSet) {
    let Flow { peer, dst, .. } = syn.flow();
    let known = held.waiting.borrow().get(&(peer, dst)).cloned();
    if let Some(known) = known {
        if known.syn.sequence() == syn.sequence() {
            known.saw_again(Instant::now());
            let is_ready = matches!(&*known.state.borrow(), State::Ready(_));
            if is_ready {
                put_back(pod, &known.syn);
            }
            return;
        }
        // The client has given the former attempt up, and uses its port again.
        known.end(CloseReason::ClientReset, true);
    }
    // The tasks count, not the places: a SYN with another sequence number takes the place of an attempt that has yet to end.
    if attempts.len() >= MOST {
        let detail = format!("{MOST} connects of the pod wait for their destinations already");
        refuse(pod, &syn, CloseReason::TooMany, detail);
        return;
    }
    let attempt = Attempt::new(syn);
    held.waiting.borrow_mut().insert((peer, dst), Rc::clone(&attempt));
    attempts.spawn_local(serve(Rc::clone(pod), Place { held: Rc::clone(held), attempt }));
}

/// Refuses a connect for a lack of the daemon's own, and records that.
pub fn refuse(pod: &Rc<PodContext>, syn: &Syn, reason: CloseReason, detail: String) {
    let record = Recorded::open(Rc::clone(pod), syn.flow());
    answer(pod, &syn.reset(), syn, Injected::Answer);
    record.end(reason, Some(detail));
}

/// Removes an attempt from the table, unless another one has its place by now.
struct Place {
    held: Rc<HeldConnects>,
    attempt: Rc<Attempt>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Flow { peer, dst, .. } = self.attempt.syn.flow();
        let mut waiting = self.held.waiting.borrow_mut();
        if waiting.get(&(peer, dst)).is_some_and(|attempt| Rc::ptr_eq(attempt, &self.attempt)) {
            waiting.remove(&(peer, dst));
        }
    }
}

async fn serve(pod: Rc<PodContext>, place: Place) {
    let attempt = Rc::clone(&place.attempt);
    let is_answered = Box::pin(answered(&pod, &attempt)).await;
    if is_answered && attempt.begun.elapsed() >= MAY_BE_REPEATED {
        sleep(REMEMBERED).await;
    }
    drop(place);
}

/// Answers a connect, and returns whether the client has the answer.
async fn answered(pod: &Rc<PodContext>, attempt: &Attempt) -> bool {
    let mut record = Recorded::open(Rc::clone(pod), attempt.syn.flow());
    // In a box, which is freed before the rest.
    let result = Box::pin(reach(pod, attempt, &mut record)).await;
    match result {
        Err(end) if end.is_silent => {
            record.end(end.refusal.reason, end.refusal.detail);
            false
        }
        Err(End { refusal, .. }) if !is_judged(refusal.reason) => {
            tell(pod, attempt, &refusal).await;
            record.end(refusal.reason, refusal.detail);
            true
        }
        result => {
            let result = result.map_err(|end| end.refusal);
            attempt.state.replace(State::Ready(Box::new(Prepared { record, result })));
            put_back(pod, &attempt.syn);
            attempt.accepted().await;
            // The connection was accepted.
            let Some(Prepared { record, result }) = attempt.take() else { return true };
            drop(result);
            let Some(end) = attempt.end_of() else {
                let detail = "the client gave the connect up before it was accepted".to_owned();
                record.end(CloseReason::ClientReset, Some(detail));
                return false;
            };
            if !end.is_silent {
                answer(pod, &attempt.syn.reset(), &attempt.syn, Injected::Answer);
            }
            record.end(end.refusal.reason, None);
            !end.is_silent
        }
    }
}

/// Why an attempt has not reached the destination.
struct End {
    refusal: FlowRefusal,
    /// The client gets no answer.
    is_silent: bool,
}

/// Tries to reach the destination as long as the client waits for it.
async fn reach(pod: &PodContext, attempt: &Attempt, record: &mut Recorded) -> Result<Server, End> {
    let (flow, live) = (attempt.syn.flow(), Rc::clone(record.live()));
    loop {
        let opened = tokio::select! {
            opened = upstream::open(pod, &flow, record) => opened,
            end = attempt.abandoned() => return Err(end),
            reason = live.until_cut() => Err(reason.into()),
        };
        let refusal = match opened {
            Ok(server) => return Ok(server),
            Err(refusal) if is_silence(refusal.reason) => refusal,
            Err(refusal) => return Err(End { refusal, is_silent: false }),
        };
        let before = attempt.seen.get();
        loop {
            tokio::select! {
                () = attempt.changed.notified() => {}
                reason = live.until_cut() => return Err(End { refusal: reason.into(), is_silent: false }),
                // What the destination did is the reason, not what the client did.
                () = sleep_until(attempt.patience()) => return Err(End { refusal, is_silent: true }),
            }
            if let Some(end) = attempt.end_of() {
                return Err(end);
            }
            if attempt.seen.get() != before {
                break;
            }
        }
    }
}

/// Tells the client that the connect has failed.
async fn tell(pod: &PodContext, attempt: &Attempt, refusal: &FlowRefusal) {
    let syn = &attempt.syn;
    attempt.state.replace(State::Done);
    if refusal.reason == CloseReason::Unreachable {
        let error = syn.unreachable(refusal.unreachable);
        answer(pod, &error, syn, Injected::Answer);
        sleep(SECOND_ERROR).await;
        answer(pod, &error, syn, Injected::Answer);
        sleep(RESET_AFTER_ERRORS).await;
    }
    answer(pod, &syn.reset(), syn, Injected::Answer);
}

fn put_back(pod: &PodContext, syn: &Syn) {
    answer(pod, &syn.again(), syn, Injected::Syn);
}

/// A packet that is not sent leaves the client waiting until it sends its SYN again. That is in the log.
fn answer(pod: &PodContext, packet: &[u8], syn: &Syn, as_what: Injected) {
    let to = if as_what == Injected::Syn { syn.destination() } else { syn.source() };
    if let Err(error) = pod.dialer.sockets().inject(packet, to, as_what) {
        let Flow { peer, dst, .. } = syn.flow();
        warn!(pod = %pod.name, src.addr = %peer, dst.addr = %dst, %error, "cannot answer a held connect");
    }
}

/// Whether the destination has not answered, so that the client gets no answer either.
fn is_silence(reason: CloseReason) -> bool {
    matches!(reason, CloseReason::ConnectTimedOut | CloseReason::TunnelTimedOut)
}

/// Whether policy has refused the connection. The destination exists, so its connect succeeds, and the connection is reset: a
/// client that is not allowed must not take the destination for one that does not run.
fn is_judged(reason: CloseReason) -> bool {
    matches!(reason, CloseReason::Denied | CloseReason::PolicyChanged)
}

impl Attempt {
    fn new(syn: Syn) -> Rc<Self> {
        Rc::new(Self {
            syn,
            begun: Instant::now(),
            state: RefCell::new(State::Open),
            seen: Cell::new(Instant::now()),
            gap: Cell::default(),
            changed: Notify::new(),
            ended: Cell::default(),
        })
    }

    fn saw_again(&self, now: Instant) {
        self.gap.set(now.duration_since(self.seen.replace(now)));
        self.changed.notify_one();
    }

    fn end(&self, reason: CloseReason, is_silent: bool) {
        self.ended.set(Some((reason, is_silent)));
        self.changed.notify_one();
    }

    fn take(&self) -> Option<Prepared> {
        let mut state = self.state.borrow_mut();
        if !matches!(&*state, State::Ready(_)) {
            return None;
        }
        match std::mem::replace(&mut *state, State::Done) {
            State::Ready(prepared) => Some(*prepared),
            State::Open | State::Done => None,
        }
    }

    /// The time until which the next SYN has to come. The kernel doubles the time between two SYNs, or leaves it the same.
    fn patience(&self) -> Instant {
        self.seen.get() + (self.gap.get() * 5 / 2).max(FIRST_REPETITION)
    }

    /// Why the attempt has to end, if somebody has ended it.
    fn end_of(&self) -> Option<End> {
        let (reason, is_silent) = self.ended.get()?;
        Some(End { refusal: reason.into(), is_silent })
    }

    /// Waits until the client has given up, or somebody ends the attempt.
    async fn abandoned(&self) -> End {
        loop {
            if let Some(end) = self.end_of() {
                return end;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(self.patience()) => {
                    let detail = "the client gave the connect up before its destination was reached".to_owned();
                    return End { refusal: FlowRefusal::new(CloseReason::ClientReset, detail), is_silent: true };
                }
            }
        }
    }

    /// Waits until the connection is accepted, or will not be any more.
    async fn accepted(&self) {
        let ready = Instant::now();
        while self.ended.get().is_none() && matches!(&*self.state.borrow(), State::Ready(_)) {
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(self.seen.get().max(ready) + ACCEPTED_WITHIN) => return,
            }
        }
    }
}
