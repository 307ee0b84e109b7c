//! Connecting to the pod's application in the name of a client.

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

/// How often another source port is tried for a delivery before it is given up.
const TRIES: u32 = 16;

/// The application's side of a connection.
pub(super) struct Delivered {
    pub application: TcpStream,
    /// To be kept until it is closed.
    pub held: (DeliveryEntry, OpenPermit),
}

/// Connects to `to` from the client's address and a port that is free. Only what was judged gets here.
///
/// # Errors
/// Why it can't be; the application does not listen, most of the time.
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
            // The port is taken by something that is not in the table: a time-wait, or a socket of the pod's own.
            Err(error @ DialError::Source { .. }) => last = Some(error),
            // A stranger's connection with this tuple answers a connect with a reset. Once may be that, twice is the
            // application: nobody listens.
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
            let detail = format!("every delivery port of {client} is in use");
            Err(FlowRefusal { reason: CloseReason::LocalFault, detail: Some(detail) })
        }
    }
}

fn is_refusal(error: &DialError) -> bool {
    matches!(error, DialError::Connect { source, .. }
        if matches!(source.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset))
}
