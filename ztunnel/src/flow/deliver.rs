//! Connects to the pod's application with the address of the client.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::net::TcpStream;

use super::{FlowRefusal, PodContext, table::DeliveryEntry};
use crate::{
    model::{addr::OrigDst, close::CloseReason},
    net::{dial::DialError, open::OpenPermit},
    policy::Permit,
};

/// The number of source ports that are tried for a delivery.
const TRIES: u32 = 16;

/// The application's side of a connection.
pub(super) struct Delivered {
    pub application: TcpStream,
    /// Has to be kept until the connection is closed.
    pub held: (DeliveryEntry, OpenPermit),
}

/// Connects to `to` from the client's address and a free port. The permit proves that policy allows the connection.
///
/// # Errors
/// Why the connect failed; in most cases the application does not listen.
pub(super) async fn to_application(
    pod: &PodContext,
    _judged: &Permit,
    client: IpAddr,
    to: SocketAddr,
) -> Result<Delivered, FlowRefusal> {
    let mut last = None;
    let mut refused_before = false;
    for _ in 0..TRIES {
        let Some((from, entry)) = pod.table.register_delivery(client, OrigDst::new(to)) else {
            break;
        };
        match pod.dialer.deliver(to, from).await {
            Ok((application, place)) => return Ok(Delivered { application, held: (entry, place) }),
            // The port is used by a socket that is not in the table: a socket in TIME-WAIT, or a socket of the pod.
            Err(error @ DialError::Source { .. }) => {
                pod.table.jump(fastrand::u16(..));
                last = Some(error);
            }
            // Another connection with this tuple answers a connect with a reset, so the first refusal may come from there. A
            // second refusal comes from the application: it does not listen.
            Err(error) if is_refusal(&error) && !refused_before => {
                refused_before = true;
                last = Some(error);
            }
            Err(error) => return Err(FlowRefusal::of_dial(&error)),
        }
    }
    match last {
        Some(error) => Err(FlowRefusal::of_dial(&error)),
        None => {
            let detail =
                format!("cannot connect from {client} to the application: all source ports of this address are in use");
            Err(FlowRefusal::new(CloseReason::LocalFault, detail))
        }
    }
}

fn is_refusal(error: &DialError) -> bool {
    matches!(error, DialError::Connect { source, .. }
        if matches!(source.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset))
}
