//! One stream of delta xDS.

use std::error::Error as _;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio::sync::mpsc;
use tonic::{Response, Status, Streaming};

use super::connection::{ConnectError, Connection, request};
use super::plane::ControlPlane;
use crate::istio::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::lifecycle::tasks::TaskCount;
use crate::model::cause::causes;

/// The number of requests that may wait for a control plane that does not read. Each answers one response.
const MOST_WAITING: usize = 1024;

/// Why a stream has ended.
#[derive(Debug, Error)]
pub(super) enum StreamError {
    /// The connection failed.
    #[error("there is no connection")]
    Connect(#[source] Box<ConnectError>),
    /// The control plane has ended the stream with an error, or the connection broke.
    #[error("the control plane ended the stream: {}: {}{}", .0.code(), .0.message(), because(.0))]
    Ended(Box<Status>),
    /// The control plane has ended the stream without an error.
    #[error("the control plane closed the stream")]
    Closed,
    /// The control plane sends but does not read.
    #[error("the control plane does not read: {MOST_WAITING} answers wait to be sent")]
    NotRead,
    /// The control plane does not answer.
    #[error("the control plane did not answer for {what} within {seconds} s")]
    Silent {
        /// The type of resources.
        what: &'static str,
        /// The waiting time in seconds.
        seconds: u64,
    },
}

/// The cause, if a stream has ended because its connection broke.
fn because(status: &Status) -> String {
    status.source().map(|source| format!(": {}", causes(source))).unwrap_or_default()
}

/// A stream that is open or being opened: a control plane without changes may be silent from the beginning.
pub(super) struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Responses,
    /// The stream ends with the connection.
    _connection: Connection,
}

enum Responses {
    Opening(BoxFuture<'static, Result<Response<Streaming<DeltaDiscoveryResponse>>, Status>>),
    Open(Box<Streaming<DeltaDiscoveryResponse>>),
}

impl From<ConnectError> for StreamError {
    fn from(error: ConnectError) -> Self {
        Self::Connect(Box::new(error))
    }
}

impl Stream {
    /// Connects, and starts a stream with these requests.
    ///
    /// # Errors
    /// The connection failed.
    pub(super) async fn open(
        plane: Arc<ControlPlane>,
        first: Vec<DeltaDiscoveryRequest>,
        tasks: TaskCount,
    ) -> Result<Self, StreamError> {
        let connection = Connection::open(&plane, tasks).await?;
        let (requests, mut receiver) = mpsc::channel(MOST_WAITING);
        for message in first {
            requests.try_send(message).map_err(|_full| StreamError::NotRead)?;
        }
        let messages = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let request = request(&plane, messages).await?;
        let mut client = connection.client.clone();
        let opening = Box::pin(async move { client.delta_aggregated_resources(request).await });
        Ok(Self { requests, responses: Responses::Opening(opening), _connection: connection })
    }

    /// Sends a request.
    ///
    /// # Errors
    /// The control plane does not read.
    pub(super) fn send(&self, message: DeltaDiscoveryRequest) -> Result<(), StreamError> {
        match self.requests.try_send(message) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(StreamError::NotRead),
            // The stream has ended; the next response has the reason.
            Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }

    /// The next response. Dropping the future loses no response.
    ///
    /// # Errors
    /// The stream has ended.
    pub(super) async fn next(&mut self) -> Result<DeltaDiscoveryResponse, StreamError> {
        let ended = |status| StreamError::Ended(Box::new(status));
        loop {
            match &mut self.responses {
                Responses::Opening(opening) => {
                    let response = opening.await.map_err(ended)?;
                    self.responses = Responses::Open(Box::new(response.into_inner()));
                }
                Responses::Open(stream) => return stream.message().await.map_err(ended)?.ok_or(StreamError::Closed),
            }
        }
    }
}
