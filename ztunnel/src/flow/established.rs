//! A connection whose two ends are connected: bytes are copied between them until both have finished, or the connection must
//! end.

use std::{
    future::{Future, poll_fn},
    task::Poll,
};

use super::{
    enforcement::Enforcement,
    record::{Live, Recorded},
    refusal,
    reset_on_drop::ResetOnDrop,
};
use crate::{
    hbone::{
        relay,
        stream::{HboneStream, Lost, Reset},
    },
    model::close::CloseReason,
    net::{
        buffer::BufferPool,
        copy::{self, CopyError, Side, Transferred},
        open::OpenPermit,
    },
    policy::Denial,
};

/// The two ends of a connection.
pub(super) trait Ends {
    /// Copies bytes both ways until both ends have finished, or one fails.
    fn copy(&mut self, buffers: &BufferPool, bytes: &Transferred) -> impl Future<Output = Result<(), CopyError>>;

    /// Tells a peer which can be told that policy has ended the connection.
    fn deny(&mut self);

    /// Closes both ends without a reset.
    fn finish(self);
}

/// Two TCP connections.
pub(super) struct TcpEnds {
    pub(super) client: ResetOnDrop,
    pub(super) server: ResetOnDrop,
}

impl Ends for TcpEnds {
    fn copy(&mut self, buffers: &BufferPool, bytes: &Transferred) -> impl Future<Output = Result<(), CopyError>> {
        copy::both(self.client.stream(), self.server.stream(), buffers, bytes)
    }

    fn deny(&mut self) {}

    fn finish(self) {
        self.client.finish();
        self.server.finish();
    }
}

/// The TCP connection of an application, and a stream of an HBONE connection.
pub(super) struct TunnelEnds {
    pub(super) application: ResetOnDrop,
    pub(super) tunnel: HboneStream,
    pub(super) tunnel_side: Side,
}

impl Ends for TunnelEnds {
    fn copy(&mut self, buffers: &BufferPool, bytes: &Transferred) -> impl Future<Output = Result<(), CopyError>> {
        relay::both(self.application.stream(), &mut self.tunnel, self.tunnel_side, buffers, bytes)
    }

    fn deny(&mut self) {
        self.tunnel.reset(Reset::Denied);
    }

    fn finish(self) {
        self.application.finish();
    }
}

/// A connection with two ends. If its task is dropped, the fields are dropped in their order: `held`, `record` and `place`
/// require that the sockets are closed before.
pub(super) struct Established<E, T> {
    pub(super) ends: E,
    /// Dropped after the ends are closed.
    pub(super) held: T,
    /// `None`: policy judges the connection at its destination, not here.
    pub(super) enforcement: Option<Enforcement>,
    pub(super) record: Recorded,
    pub(super) place: OpenPermit,
}

impl<E: Ends, T> Established<E, T> {
    /// Copies until both ends have finished, or the connection must end, and records how it ended.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` holds its arguments twice")]
    pub(super) fn copy(mut self) -> impl Future<Output = ()> {
        async move {
            let this = &mut self;
            let (pod, bytes) = (this.record.pod(), this.record.bytes());
            let ended = tokio::select! {
                // No byte is copied after the connection has been told to end.
                biased;
                stop = stopped(this.enforcement.as_mut(), this.record.live()) => Err(stop),
                ended = this.ends.copy(&pod.buffers, bytes) => Ok(ended),
            };
            let Self { mut ends, held, enforcement: _visit, record, place: _place } = self;
            match ended {
                Err(stop) => {
                    if let Stop::Denied(_) = stop {
                        ends.deny();
                    }
                    drop((ends, held));
                    stop.end(record);
                }
                Ok(Ok(())) => {
                    ends.finish();
                    drop(held);
                    record.end(CloseReason::Complete, None);
                }
                Ok(Err(error)) => {
                    drop((ends, held));
                    record.end(reason_of(&error), Some(error.to_string()));
                }
            }
        }
    }
}

/// Why a connection has to end before its ends have finished.
enum Stop {
    /// Policy denies it.
    Denied(Denial),
    /// Another cause, for example a drain.
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

/// Waits until a connection has to end.
fn stopped<'a>(mut enforcement: Option<&'a mut Enforcement>, live: &'a Live) -> impl Future<Output = Stop> + 'a {
    poll_fn(move |cx| {
        if let Poll::Ready(reason) = live.poll_cut(cx) {
            return Poll::Ready(Stop::Cut(reason));
        }
        enforcement.as_mut().map_or(Poll::Pending, |enforcement| enforcement.poll_stopped(cx).map(Stop::Denied))
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
