//! A client's first message, read before anything is spent on the client.
//!
//! What a stranger costs until the deadline, in bytes of heap, the task included: 3,100 while it is silent, 7,000 after the
//! first byte, at most 20,000 with as long a message as is taken, 15,000 once it has been answered.

use std::{future::poll_fn, io, sync::Arc};

use rustls::{
    InvalidMessage, ServerConnection,
    server::{Accepted, AcceptedAlert, Acceptor},
};
use tokio::io::AsyncRead;

use super::{config::Configs, error::AcceptError, inbound::Inbound, provider::HYBRID_GROUP};

/// More than any client sends: 2 KiB with a post-quantum key share. The 64 KiB that rustls takes are too much to spend on
/// each of ten thousand strangers.
const LONGEST: usize = 16 << 10;

/// `decode_error`: what came makes no sense.
const DECODE_ERROR: u8 = 50;
/// `internal_error`: it is not the peer's fault.
pub(super) const INTERNAL_ERROR: u8 = 80;
/// `no_application_protocol`.
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// A fatal alert as it goes over the wire before there are keys.
pub(super) const fn plain(alert: u8) -> [u8; 7] {
    [0x15, 3, 3, 0, 2, 2, alert]
}

/// No connection, and the bytes to say it with; perhaps none.
pub(super) struct HelloRefusal {
    pub(super) error: AcceptError,
    pub(super) farewell: Vec<u8>,
}

impl HelloRefusal {
    fn silent(error: io::Error) -> Self {
        Self { error: AcceptError::Io(error), farewell: Vec::new() }
    }

    fn told(error: AcceptError, alert: u8) -> Self {
        Self { error, farewell: plain(alert).to_vec() }
    }

    fn by_tls(error: AcceptError, mut alert: AcceptedAlert) -> Self {
        let mut farewell = Vec::new();
        // Writing to a Vec does not fail.
        let _written = alert.write_all(&mut farewell);
        // rustls is silent about some.
        if farewell.is_empty() {
            farewell.extend(plain(DECODE_ERROR));
        }
        Self { error, farewell }
    }
}

/// Reads the first message. What came behind it stays in `inbound`.
pub(super) async fn read<S: AsyncRead + Unpin>(io: &mut S, inbound: &mut Inbound) -> Result<Accepted, HelloRefusal> {
    let mut acceptor = Acceptor::default();
    let mut taken = 0_usize;
    loop {
        if inbound.is_empty() && poll_fn(|cx| inbound.poll_fill(io, cx)).await.map_err(HelloRefusal::silent)? == 0 {
            return Err(HelloRefusal::silent(io::ErrorKind::UnexpectedEof.into()));
        }
        let mut bytes = inbound.bytes();
        let count = acceptor.read_tls(&mut bytes).map_err(HelloRefusal::silent)?;
        inbound.consume(count);
        taken = taken.saturating_add(count);
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) if count > 0 && taken <= LONGEST => {}
            Ok(None) => {
                let too_long = rustls::Error::from(InvalidMessage::HandshakePayloadTooLarge);
                return Err(HelloRefusal::told(too_long.into(), DECODE_ERROR));
            }
            Err((error, alert)) if no_record(&error) => return Err(HelloRefusal::by_tls(AcceptError::NotTls, alert)),
            Err((error, alert)) => return Err(HelloRefusal::by_tls(error.into(), alert)),
        }
    }
}

/// Whether not even the head of a TLS record was there.
pub(super) const fn no_record(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidMessage(
            InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge
                | InvalidMessage::InvalidEmptyPayload
        )
    )
}

/// Answers it.
pub(super) fn answer(accepted: Accepted, configs: &Configs) -> Result<ServerConnection, HelloRefusal> {
    let hello = accepted.client_hello();
    let offers = hello.alpn().is_some();
    let is_hybrid = hello.named_groups().is_some_and(|groups| groups.contains(&HYBRID_GROUP.name()));
    let config = if is_hybrid { &configs.hybrid_server } else { &configs.server };
    let connection = accepted
        .into_connection(Arc::clone(config))
        .map_err(|(error, alert)| HelloRefusal::by_tls(error.into(), alert))?;
    // rustls refuses an offer without ours, but takes no offer for consent, as Istio does.
    if offers { Ok(connection) } else { Err(HelloRefusal::told(AcceptError::NoAlpn, NO_APPLICATION_PROTOCOL)) }
}
