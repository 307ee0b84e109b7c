//! One stream of resources to one node.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use thiserror::Error;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use super::{
    caller::Caller,
    callers::Callers,
    catalogue::Kind,
    describe::{Present, excerpt},
    grpc::{Code, Messages, Replies, Stalled, Status},
    metrics::{PlaneMetrics, TypeLabel},
    publish::Resources,
    session::{Answer, Request, Response, Session, SessionError},
};
use crate::istio::discovery::{
    ADDRESS, AUTHORIZATION, DeltaDiscoveryRequest, DeltaDiscoveryResponse, OBJECT, SETTINGS,
};

/// The parts that all streams share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) resources: Resources,
    pub(super) nodes: Callers,
    pub(super) metrics: PlaneMetrics,
    /// Limits the large responses that are sent at once: each of them holds references to all resources.
    pub(super) large: Arc<Semaphore>,
    /// A response of this number of bytes or more is large.
    pub(super) large_from: usize,
    /// How long a node may take to answer a response.
    pub(super) answer_within: Duration,
}

/// One stream.
pub(super) struct Subscriber {
    shared: Shared,
    caller: Caller,
    present: Present,
    session: Session,
    messages: Messages,
    /// The log has reported that the node asks for a type that is not served.
    is_unknown_told: bool,
}

/// How a stream ends.
#[derive(Debug, Error)]
pub(super) enum End {
    /// The node has ended the stream.
    #[error("the node has ended the stream")]
    Done,
    /// The control plane stops.
    #[error("the control plane stops")]
    Stopping,
    /// The node's token is not accepted any more.
    #[error("the token of the node was removed or replaced")]
    Revoked,
    /// The node breaks the rules of HTTP/2 or gRPC, or sends a message that cannot be read.
    #[error("the node sent an invalid request: {}", .0.message)]
    Invalid(Status),
    /// The stream asks for too much, or has lacked removals for too long.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The node does not say whether it could use a response.
    #[error("the node has not answered a response of type {kind} within {} s", within.as_secs())]
    NoAnswer {
        /// The response's type.
        kind: Kind,
        /// The time that the node had.
        within: Duration,
    },
    /// The node does not read.
    #[error(transparent)]
    Stalled(#[from] Stalled),
}

impl End {
    /// The label of the metric; `None`: the control plane did not cut the stream.
    pub(super) const fn label(&self) -> Option<&'static str> {
        match self {
            Self::Done | Self::Stopping | Self::Stalled(Stalled::Gone(_)) => None,
            Self::Revoked => Some("revoked"),
            Self::Invalid(_) => Some("invalid"),
            Self::Session(SessionError::Behind(_)) => Some("behind"),
            Self::Session(_) => Some("too_much"),
            Self::NoAnswer { .. } => Some("no_answer"),
            Self::Stalled(Stalled::Slow { .. }) => Some("slow_reader"),
        }
    }

    fn status(&self) -> Status {
        let code = match self {
            Self::Done => return Status::ok(),
            // Istio's client connects again at once when it reads this.
            Self::Stopping => return Status::new(Code::Unavailable, "transport is closing"),
            Self::Invalid(status) => return status.clone(),
            Self::Revoked => Code::Unauthenticated,
            Self::Session(SessionError::Behind(_)) => Code::Aborted,
            Self::Session(_) => Code::ResourceExhausted,
            Self::NoAnswer { .. } | Self::Stalled(_) => Code::DeadlineExceeded,
        };
        Status::new(code, self.to_string())
    }
}

impl Subscriber {
    pub(super) fn new(shared: Shared, caller: Caller, present: Present, messages: Messages) -> Self {
        Self { shared, caller, present, session: Session::default(), messages, is_unknown_told: false }
    }

    /// Serves the stream to its end. `stopping` completes when the stream has to end.
    pub(super) async fn serve(mut self, mut replies: Replies, stopping: impl Future<Output = ()>) {
        let end = tokio::select! {
            end = self.run(&mut replies) => end,
            () = stopping => End::Stopping,
        };
        let node = &self.caller.node;
        match end.label() {
            Some(reason) => {
                self.shared.metrics.cut(reason);
                warn!(%node, reason, error = %end, "the stream of a node was cut");
            }
            None => info!(%node, reason = %end, "the stream of a node has ended"),
        }
        match &end {
            // Trailers would wait behind the bytes that the node does not read.
            End::Stalled(_) => replies.cut(),
            end => replies.finish(&end.status()),
        }
    }

    async fn run(&mut self, replies: &mut Replies) -> End {
        let mut catalogue = self.shared.resources.subscribe();
        let mut tokens = self.shared.nodes.changes();
        loop {
            if let Err(end) = self.send(replies).await {
                return end;
            }
            let within = self.shared.answer_within;
            let unanswered = self.session.unanswered();
            let deadline = unanswered.map(|(sent, _)| sent + within);
            tokio::select! {
                message = self.messages.next() => {
                    if let Err(end) = self.hear(message) {
                        return end;
                    }
                    // Requests that arrived together are all read before the first of them is answered: the choice of
                    // the first response depends on all of them.
                    while let Some(message) = futures_util::FutureExt::now_or_never(self.messages.next()) {
                        if let Err(end) = self.hear(message) {
                            return end;
                        }
                    }
                }
                changed = changed(&mut catalogue) => if !changed { return End::Stopping },
                changed = changed(&mut tokens) => {
                    if !changed || !self.shared.nodes.knows(&self.caller) {
                        return End::Revoked;
                    }
                }
                () = until(deadline) => {
                    let kind = unanswered.map_or(Kind::Address, |(_, kind)| kind);
                    return End::NoAnswer { kind, within };
                }
                () = replies.abandoned() => return End::Done,
            }
        }
    }

    /// Sends all responses that are due.
    async fn send(&mut self, replies: &mut Replies) -> Result<(), End> {
        loop {
            let _place = self.place().await;
            let response = self.session.next(&self.shared.resources.catalogue(), Instant::now())?;
            let Some(response) = response else { return Ok(()) };
            let (kind, version) = (response.kind, response.version);
            let parts = parts(response);
            let length: usize = parts.iter().map(Bytes::len).sum();
            replies.send(&parts).await?;
            let label = TypeLabel { r#type: kind.name() };
            self.shared.metrics.responses.get_or_create(&label).inc();
            self.shared.metrics.bytes.get_or_create(&label).inc_by(length as u64);
            self.present.sent(kind, version);
            debug!(node = %self.caller.node, r#type = kind.name(), version, bytes = length, "response sent");
        }
    }

    /// Waits for a permit if the next response may be large.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        let is_large = self.session.expects_everything() && {
            let catalogue = self.shared.resources.catalogue();
            Kind::ALL.iter().map(|kind| catalogue.shelf(*kind).bytes()).sum::<usize>() >= self.shared.large_from
        };
        // The semaphore is never closed.
        if is_large { Arc::clone(&self.shared.large).acquire_owned().await.ok() } else { None }
    }

    fn hear(&mut self, message: Result<Option<Bytes>, Status>) -> Result<(), End> {
        let message = message.map_err(End::Invalid)?.ok_or(End::Done)?;
        let unread = |error: prost::DecodeError| {
            End::Invalid(Status::new(Code::InvalidArgument, format!("a request cannot be parsed: {error}")))
        };
        let request = DeltaDiscoveryRequest::decode(message).map_err(unread)?;
        self.check_node(&request)?;
        let kind = match request.type_url.as_str() {
            ADDRESS => Kind::Address,
            AUTHORIZATION => Kind::Authorization,
            SETTINGS => Kind::Settings,
            OBJECT => Kind::Object,
            other => {
                // A client that asks for further types still gets the types that are served.
                if !std::mem::replace(&mut self.is_unknown_told, true) {
                    let r#type = excerpt(other, 128);
                    info!(node = %self.caller.node, r#type, "a node asks for a type of resources that is not served");
                }
                return Ok(());
            }
        };
        let request = Request {
            subscribe: request.resource_names_subscribe,
            unsubscribe: request.resource_names_unsubscribe,
            known: request.initial_resource_versions,
            nonce: request.response_nonce,
            error: request.error_detail.map(|status| status.message),
        };
        let answer = self.session.request(kind, request)?;
        if let Some(wants) = self.session.wants(kind) {
            self.present.wants(kind, wants);
        }
        if let Some(answer) = answer {
            self.note(&answer);
        }
        Ok(())
    }

    /// Makes sure that a node does not use the token of another node: its certificates would be for pods that it does
    /// not have.
    fn check_node(&self, request: &DeltaDiscoveryRequest) -> Result<(), End> {
        let Some(node) = &request.node else { return Ok(()) };
        self.present.client(&node.id);
        let named = node.metadata.as_ref().and_then(|metadata| metadata.string("NODE_NAME"));
        match named.filter(|named| !named.is_empty() && **named != *self.caller.node) {
            None => Ok(()),
            Some(named) => {
                let own = &self.caller.node;
                let named = excerpt(named, 256);
                Err(End::Invalid(Status::new(
                    Code::PermissionDenied,
                    format!(
                        "the caller says that it is node {named}, but its token is of node {own}: give each node its own token"
                    ),
                )))
            }
        }
    }

    fn note(&self, answer: &Answer) {
        self.present.answered(answer);
        let label = TypeLabel { r#type: answer.kind.name() };
        let seconds = answer.sent.elapsed().as_secs_f64();
        self.shared.metrics.answer_seconds.observe(seconds);
        let (node, version) = (&self.caller.node, answer.version);
        match &answer.error {
            None => {
                self.shared.metrics.accepted.get_or_create(&label).inc();
                debug!(%node, r#type = label.r#type, version, seconds, "response accepted");
            }
            Some(error) => {
                self.shared.metrics.rejected.get_or_create(&label).inc();
                let error = excerpt(error, 512);
                warn!(%node, r#type = label.r#type, version, error, "a node could not use a response, or a part of it");
            }
        }
    }
}

/// The parts of a response's message: first its own fields, then the encoded resources that all nodes share.
fn parts(response: Response) -> Vec<Bytes> {
    let own = DeltaDiscoveryResponse {
        system_version_info: response.version.to_string(),
        resources: Vec::new(),
        type_url: match response.kind {
            Kind::Address => ADDRESS,
            Kind::Authorization => AUTHORIZATION,
            Kind::Settings => SETTINGS,
            Kind::Object => OBJECT,
        }
        .to_owned(),
        nonce: response.nonce,
        removed_resources: response.removed.iter().map(ToString::to_string).collect(),
        control_plane: None,
    };
    let mut bytes = BytesMut::with_capacity(own.encoded_len());
    // The buffer has room for the message.
    let _encoded = own.encode(&mut bytes);
    let mut parts = response.resources;
    parts.insert(0, bytes.freeze());
    parts
}

/// Waits for a change; `false`: there will be no more changes.
async fn changed(news: &mut watch::Receiver<u64>) -> bool {
    news.changed().await.is_ok()
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
