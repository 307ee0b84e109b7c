//! The errors of a pool.

use std::{error::Error, fmt, net::SocketAddr, rc::Rc, time::Duration};

use thiserror::Error;

use crate::{hbone::client, wire::connect::ConnectResponse};

/// The error of a dial, shared by all requests that waited for it.
#[derive(Debug)]
pub struct Shared<E>(Rc<E>);

impl<E> Shared<E> {
    pub(super) fn new(error: E) -> Self {
        Self(Rc::new(error))
    }
}

impl<E> Clone for Shared<E> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<E> std::ops::Deref for Shared<E> {
    type Target = E;

    fn deref(&self) -> &E {
        &self.0
    }
}

impl<E: fmt::Display> fmt::Display for Shared<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<E: Error> Error for Shared<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// Why there is no stream.
#[derive(Debug, Error)]
pub enum OpenError<E: Error + 'static> {
    /// There is no connection.
    #[error(transparent)]
    Connect(Shared<E>),
    /// The peer violated HTTP/2.
    #[error("HTTP/2 with the peer at {to} failed: {why}")]
    Handshake {
        /// The peer.
        to: SocketAddr,
        /// The violation.
        why: String,
    },
    /// There was no connection with a free stream in time.
    #[error("no HBONE connection to {to} was ready within {} s", after.as_secs())]
    NoConnection {
        /// The peer.
        to: SocketAddr,
        /// How long was waited.
        after: Duration,
    },
    /// The peer refused the stream.
    #[error("{to}: {}", client::OpenError::Refused(response.clone()))]
    Refused {
        /// The peer.
        to: SocketAddr,
        /// Its answer.
        response: ConnectResponse,
    },
    /// The peer did not answer in time.
    #[error("{to} did not answer the CONNECT within {} s", after.as_secs())]
    TimedOut {
        /// The peer.
        to: SocketAddr,
        /// How long was waited.
        after: Duration,
    },
    /// The connection to the peer was lost before the peer answered.
    #[error("{to}: {why}")]
    Lost {
        /// The peer.
        to: SocketAddr,
        /// The cause.
        why: String,
    },
}

/// Why a dial failed.
pub(super) enum DialFailure<E> {
    Connect(Shared<E>),
    Handshake(Rc<str>),
    TimedOut,
}

impl<E> Clone for DialFailure<E> {
    fn clone(&self) -> Self {
        match self {
            DialFailure::Connect(error) => DialFailure::Connect(error.clone()),
            DialFailure::Handshake(why) => DialFailure::Handshake(Rc::clone(why)),
            DialFailure::TimedOut => DialFailure::TimedOut,
        }
    }
}

impl<E: Error + 'static> DialFailure<E> {
    pub(super) fn into_error(self, to: SocketAddr, after: Duration) -> OpenError<E> {
        match self {
            DialFailure::Connect(error) => OpenError::Connect(error),
            DialFailure::Handshake(why) => OpenError::Handshake { to, why: why.to_string() },
            DialFailure::TimedOut => OpenError::NoConnection { to, after },
        }
    }
}
