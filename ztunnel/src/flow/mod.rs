//! One connection from accept to close: decide, connect, copy, record.
//!
//! All of it happens on the worker that accepted the connection.

pub mod admission;
pub mod context;
mod deliver;
pub mod failures;
pub mod inbound;
mod leg;
mod live;
pub mod outbound;
pub mod plaintext;
pub mod record;
mod refusal;
pub mod table;
pub mod tunnel;

use std::io;

pub use context::PodContext;
use leg::Leg;
use record::Recorded;
pub(crate) use refusal::Refusal;

use crate::{
    hbone::{relay, stream::Tunnel},
    model::close::CloseReason,
    net::copy::{self, CopyError, Side},
};

/// Copies between two TCP connections until they end. `held` goes when the server's side is closed.
async fn splice<T>(pod: &PodContext, record: Recorded, mut client: Leg, mut server: Leg, held: T) {
    match copy::both(client.stream(), server.stream(), &pod.buffers, record.bytes()).await {
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

/// Copies between an application and a tunnel until they end. `held` goes when the application's side is closed.
async fn carry<T>(
    pod: &PodContext,
    record: Recorded,
    mut application: Leg,
    mut tunnel: Tunnel,
    tunnel_side: Side,
    held: T,
) {
    match relay::both(application.stream(), &mut tunnel, tunnel_side, &pod.buffers, record.bytes()).await {
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

fn reason_of(error: &CopyError) -> CloseReason {
    match (error.is_reset(), error.side) {
        // Only a tunnel says so: its connection is gone.
        _ if error.source.kind() == io::ErrorKind::ConnectionAborted => CloseReason::TunnelLost,
        (true, Side::Client) => CloseReason::ClientReset,
        (true, Side::Server) => CloseReason::ServerReset,
        (false, _) => CloseReason::PeerLost,
    }
}

#[cfg(test)]
mod tests;
