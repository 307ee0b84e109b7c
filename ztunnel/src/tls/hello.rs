//! The first message of a client. It is read before the daemon spends much memory on the client.
//!
//! The memory for an unauthenticated client until the deadline, in bytes of heap, including the task: 3,100 while it is silent,
//! 7,000 after the first byte, at most 20,000 with the longest accepted message, 15,000 after the answer.

use std::{future::poll_fn, io, sync::Arc};

use rustls::{
    InvalidMessage, ServerConnection,
    server::{Accepted, AcceptedAlert, Acceptor},
};
use tokio::io::AsyncRead;

use super::{config::Configs, error::AcceptError, inbound::Inbound, provider::HYBRID_GROUP};

/// The maximum length. It is more than any client sends: 2 KiB with a post-quantum key share. The 64 KiB that rustls accepts
/// are too much for each of ten thousand unauthenticated clients.
const LONGEST: usize = 16 << 10;

/// `decode_error`: the message can't be parsed.
const DECODE_ERROR: u8 = 50;
/// `internal_error`: the fault is not the peer's.
pub(super) const INTERNAL_ERROR: u8 = 80;
/// `no_application_protocol`.
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// A fatal alert as it is sent before keys are negotiated.
pub(super) const fn plain(alert: u8) -> [u8; 7] {
    [0x15, 3, 3, 0, 2, 2, alert]
}

/// A refusal, and the bytes of the alert; they may be empty.
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
        // For some errors rustls writes no alert.
        if farewell.is_empty() {
            farewell.extend(plain(DECODE_ERROR));
        }
        Self { error, farewell }
    }
}

/// Reads the first message. The bytes after it stay in `inbound`.
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

/// Whether not even the header of a TLS record could be read.
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

/// Answers the first message.
pub(super) fn answer(accepted: Accepted, configs: &Configs) -> Result<ServerConnection, HelloRefusal> {
    let hello = accepted.client_hello();
    let offers = hello.alpn().is_some();
    let is_hybrid = hello.named_groups().is_some_and(|groups| groups.contains(&HYBRID_GROUP.name()));
    let config = if is_hybrid { &configs.hybrid_server } else { &configs.server };
    let connection = accepted
        .into_connection(Arc::clone(config))
        .map_err(|(error, alert)| HelloRefusal::by_tls(error.into(), alert))?;
    // rustls refuses an ALPN offer without `h2`, but accepts a client without an offer, and so does Istio's ztunnel. This
    // daemon refuses both.
    if offers { Ok(connection) } else { Err(HelloRefusal::told(AcceptError::NoAlpn, NO_APPLICATION_PROTOCOL)) }
}
