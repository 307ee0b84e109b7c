//! One connection from accept to close: decide, connect, copy, record.
//!
//! All of it happens on the worker that accepted the connection.

pub mod admission;
pub mod context;
mod deliver;
pub mod failures;
pub mod gate;
pub mod inbound;
mod judge;
mod leg;
mod limits;
mod live;
pub mod outbound;
pub mod plaintext;
pub mod record;
mod refusal;
pub mod table;
pub mod tunnel;

use std::{
    future::{Future, poll_fn},
    task::Poll,
};

pub use context::PodContext;
use futures_util::future::LocalBoxFuture;
use gate::Visit;
use leg::Leg;
use record::{Live, Recorded};
pub(crate) use refusal::Refusal;

use crate::{
    hbone::{
        relay,
        stream::{Lost, Reset, Tunnel},
    },
    model::close::CloseReason,
    net::{
        copy::{self, CopyError, Side},
        open::Place,
    },
    policy::Denial,
};

/// A connection's task: its beginning, then the rest that comes of it, if any does.
///
/// The beginning takes several times the memory of the rest, and is short. In a box of its own it is gone by the time the
/// connection may be idle for days.
fn in_two_parts(
    beginning: impl Future<Output = Option<LocalBoxFuture<'static, ()>>> + 'static,
) -> impl Future<Output = ()> {
    let beginning = Box::pin(beginning);
    async move {
        if let Some(rest) = beginning.await {
            rest.await;
        }
    }
}

/// Two TCP connections between which bytes are to be copied. Ended from outside, it goes in the order of the fields: what
/// counts on a socket being closed leaves after it.
struct Spliced<T> {
    client: Leg,
    server: Leg,
    /// Goes when the server's side is closed.
    held: T,
    visit: Option<Visit>,
    record: Recorded,
    place: Place,
}

impl<T> Spliced<T> {
    /// Copies until both end, or must.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` holds its arguments twice")]
    fn copy(mut self) -> impl Future<Output = ()> {
        async move {
            let this = &mut self;
            let (pod, bytes) = (this.record.pod(), this.record.bytes());
            let ended = tokio::select! {
                // Not a byte more, once that is known.
                biased;
                stop = stopped(this.visit.as_mut(), this.record.live()) => Err(stop),
                ended = copy::both(this.client.stream(), this.server.stream(), &pod.buffers, bytes) => Ok(ended),
            };
            let Self { client, server, held, visit: _visit, record, place: _place } = self;
            match ended {
                Err(stop) => {
                    drop((client, server, held));
                    stop.end(record);
                }
                Ok(Ok(())) => {
                    client.finish();
                    server.finish();
                    drop(held);
                    record.end(CloseReason::Complete, None);
                }
                Ok(Err(error)) => {
                    drop((client, server, held));
                    record.end(reason_of(&error), Some(error.to_string()));
                }
            }
        }
    }
}

/// An application and a tunnel, the same way.
struct Carried<T> {
    application: Leg,
    tunnel: Tunnel,
    tunnel_side: Side,
    /// Goes when the application's side is closed.
    held: T,
    visit: Option<Visit>,
    record: Recorded,
    place: Place,
}

impl<T> Carried<T> {
    /// As [`Spliced::copy`].
    #[expect(clippy::manual_async_fn, reason = "an `async fn` holds its arguments twice")]
    fn relay(mut self) -> impl Future<Output = ()> {
        async move {
            let this = &mut self;
            let (pod, bytes) = (this.record.pod(), this.record.bytes());
            let (application, tunnel) = (this.application.stream(), &mut this.tunnel);
            let ended = tokio::select! {
                // As above.
                biased;
                stop = stopped(this.visit.as_mut(), this.record.live()) => Err(stop),
                ended = relay::both(application, tunnel, this.tunnel_side, &pod.buffers, bytes) => Ok(ended),
            };
            let Self { application, mut tunnel, tunnel_side: _, held, visit: _visit, record, place: _place } = self;
            match ended {
                Err(stop) => {
                    if let Stop::Denied(_) = stop {
                        tunnel.reset(Reset::Denied);
                    }
                    drop((application, tunnel, held));
                    stop.end(record);
                }
                Ok(Ok(())) => {
                    application.finish();
                    drop((tunnel, held));
                    record.end(CloseReason::Complete, None);
                }
                Ok(Err(error)) => {
                    drop((application, tunnel, held));
                    record.end(reason_of(&error), Some(error.to_string()));
                }
            }
        }
    }
}

/// Why a connection has to end before its two sides want it.
enum Stop {
    /// Policy denies it.
    Denied(Denial),
    /// Something else outside of it.
    Cut(CloseReason),
}

impl Stop {
    fn end(self, record: Recorded) {
        match self {
            Self::Denied(denial) => record.end(CloseReason::PolicyChanged, Some(refusal::policy_changed(&denial))),
            Self::Cut(reason) => record.end(reason, None),
        }
    }
}

/// Waits until a connection has to end. Those that the pod itself makes are judged where they go.
fn stopped<'a>(mut visit: Option<&'a mut Visit>, live: &'a Live) -> impl Future<Output = Stop> + 'a {
    poll_fn(move |cx| {
        if let Poll::Ready(reason) = live.poll_cut(cx) {
            return Poll::Ready(Stop::Cut(reason));
        }
        visit.as_mut().map_or(Poll::Pending, |visit| visit.poll_stopped(cx).map(Stop::Denied))
    })
}

fn reason_of(error: &CopyError) -> CloseReason {
    if let Some(lost) = Lost::of(&error.source) {
        return lost.reason;
    }
    match (error.is_reset(), error.side) {
        (true, Side::Client) => CloseReason::ClientReset,
        (true, Side::Server) => CloseReason::ServerReset,
        (false, _) => CloseReason::PeerLost,
    }
}

#[cfg(test)]
mod tests;
