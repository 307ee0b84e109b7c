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
mod live;
pub mod outbound;
pub mod plaintext;
pub mod record;
mod refusal;
pub mod table;
pub mod tunnel;

use std::future::pending;

pub use context::PodContext;
use gate::Visit;
use leg::Leg;
use record::Recorded;
pub(crate) use refusal::Refusal;

use crate::{
    hbone::{
        relay,
        stream::{Lost, Reset, Tunnel},
    },
    model::close::CloseReason,
    net::copy::{self, CopyError, Side},
    policy::Denial,
};

/// Copies between two TCP connections until they end, or must. `held` goes when the server's side is closed.
async fn splice<T>(
    pod: &PodContext,
    record: Recorded,
    mut client: Leg,
    mut server: Leg,
    mut visit: Option<Visit>,
    held: T,
) {
    let ended = tokio::select! {
        // Not a byte more, once that is known.
        biased;
        denial = stopped(&mut visit) => {
            drop((client, server, held));
            return record.end(CloseReason::PolicyChanged, Some(judge::cut(&denial)));
        }
        ended = copy::both(client.stream(), server.stream(), &pod.buffers, record.bytes()) => ended,
    };
    match ended {
        Ok(()) => {
            client.finish();
            server.finish();
            drop(held);
            record.end(CloseReason::Complete, None);
        }
        Err(error) => {
            drop((client, server, held));
            record.end(reason_of(&error), Some(error.to_string()));
        }
    }
}

/// Copies between an application and a tunnel until they end, or must. `held` goes when the application's side is closed.
async fn carry<T>(
    pod: &PodContext,
    record: Recorded,
    mut application: Leg,
    mut tunnel: Tunnel,
    tunnel_side: Side,
    mut visit: Option<Visit>,
    held: T,
) {
    let ended = tokio::select! {
        // As above.
        biased;
        denial = stopped(&mut visit) => {
            tunnel.reset(Reset::Denied);
            drop((application, tunnel, held));
            return record.end(CloseReason::PolicyChanged, Some(judge::cut(&denial)));
        }
        ended = relay::both(application.stream(), &mut tunnel, tunnel_side, &pod.buffers, record.bytes()) => ended,
    };
    match ended {
        Ok(()) => {
            application.finish();
            drop((tunnel, held));
            record.end(CloseReason::Complete, None);
        }
        Err(error) => {
            drop((application, tunnel, held));
            record.end(reason_of(&error), Some(error.to_string()));
        }
    }
}

/// Waits until a connection may not be any more. Those that the pod itself makes are judged where they go.
async fn stopped(visit: &mut Option<Visit>) -> Denial {
    match visit {
        Some(visit) => visit.stopped().await,
        None => pending().await,
    }
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
