//! Answers the calls of nodes.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, Method, Request, header::AUTHORIZATION};
use prost::Message;
use tokio::{sync::Semaphore, time::Instant};
use tracing::{debug, warn};

use super::{addresses::Addresses, server::Server};
use crate::{
    istio::{
        certificate::IstioCertificateRequest,
        report::{PodReport, REPORT_PODS},
        server::{CREATE_CERTIFICATE, DELTA_AGGREGATED_RESOURCES},
    },
    plane::{
        caller::{Caller, Stranger},
        grpc::{Code, LargeMessages, Messages, Replies, Status, refuse},
        quota::Quota,
        subscriber::{Shared, Subscriber},
    },
};

/// A [`Server`] at work.
pub(super) struct Calls {
    pub(super) server: Server,
    requests: LargeMessages,
    stream_quota: Quota,
    large: Arc<Semaphore>,
    pub(super) addresses: Addresses,
}

impl Calls {
    pub(super) fn new(server: Server) -> Self {
        let limits = server.limits;
        let (from, places) = limits.large_requests;
        Self {
            requests: LargeMessages::new(places, from, limits.request, limits.request_within),
            stream_quota: Quota::new(limits.stream_quota.0, limits.stream_quota.1),
            large: Arc::new(Semaphore::new(limits.large_responses.1)),
            addresses: Addresses::new(limits.connections_per_address),
            server,
        }
    }

    /// Answers one call. Returns whether the caller has proved its identity.
    pub(super) async fn call(
        self: Arc<Self>,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        peer: SocketAddr,
        stopping: impl Future<Output = ()>,
    ) -> bool {
        let (head, body) = request.into_parts();
        let (is_known, refusal) = match (&head.method, self.caller(&head.headers, peer.ip()).await) {
            (&Method::POST, Ok(caller)) => match head.uri.path() {
                DELTA_AGGREGATED_RESOURCES => {
                    (true, self.stream(caller, body, &mut respond, peer, stopping).await.err())
                }
                CREATE_CERTIFICATE => (true, self.certificate(&caller, body, &mut respond).await.err()),
                REPORT_PODS => (true, self.report(&caller, body, &mut respond).await.err()),
                _ => (true, Some(Status::new(Code::Unimplemented, "the method is not known"))),
            },
            (_, Err(status)) => {
                debug!(%peer, reason = status.message, "a call was refused");
                self.server.metrics.cut("unauthenticated");
                (false, Some(status))
            }
            (_, Ok(_)) => (true, Some(Status::new(Code::Unimplemented, "gRPC calls use POST"))),
        };
        if let Some(status) = refusal {
            // The caller may have gone.
            let _refused = refuse(&mut respond, &status);
        }
        is_known
    }

    async fn caller(&self, headers: &HeaderMap, from: IpAddr) -> Result<Caller, Status> {
        let refused = |why: &str| Status::new(Code::Unauthenticated, why);
        let value = headers.get(AUTHORIZATION).ok_or_else(|| {
            refused("the call has no token: send `authorization: Bearer TOKEN` with the token of the node")
        })?;
        // A file with a token ends in a newline. Some callers send it as well.
        let token = value.as_bytes().strip_prefix(b"Bearer ").unwrap_or_default().trim_ascii();
        self.server.nodes.authenticate(token, from).await.map_err(Stranger::status)
    }

    async fn stream(
        &self,
        caller: Caller,
        body: RecvStream,
        respond: &mut SendResponse<Bytes>,
        peer: SocketAddr,
        stopping: impl Future<Output = ()>,
    ) -> Result<(), Status> {
        let limits = &self.server.limits;
        let node = Arc::clone(&caller.node);
        self.stream_quota.take(&node, Instant::now()).map_err(|wait| {
            self.server.metrics.cut("stream_quota");
            let seconds = wait.as_secs() + 1;
            Status::new(
                Code::ResourceExhausted,
                format!("node {node} has reached the rate limit of new streams: try again in {seconds} s"),
            )
        })?;
        let present = self.server.streams.enter(&node, peer, limits.streams_per_node).ok_or_else(|| {
            self.server.metrics.cut("stream_limit");
            warn!(
                %node, %peer, most = limits.streams_per_node,
                "a stream was refused: its node has reached the limit of open streams"
            );
            Status::new(
                Code::ResourceExhausted,
                format!("node {node} has {} open streams, which is the limit", limits.streams_per_node),
            )
        })?;
        let Ok(replies) = Replies::begin(respond, limits.read_within) else { return Ok(()) };
        debug!(%node, %peer, "a node has opened a stream");
        let shared = Shared {
            resources: self.server.resources.clone(),
            nodes: self.server.nodes.clone(),
            metrics: self.server.metrics.clone(),
            large: Arc::clone(&self.large),
            large_from: limits.large_responses.0,
            answer_within: limits.answer_within,
        };
        let messages = Messages::new(body, self.requests.clone());
        Subscriber::new(shared, caller, present, messages).serve(replies, stopping).await;
        Ok(())
    }

    async fn certificate(
        &self,
        caller: &Caller,
        body: RecvStream,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(), Status> {
        let request: IstioCertificateRequest = self.request(body, self.server.limits.certificate_request).await?;
        let answered = self.server.certificates.create(caller, &request).await;
        self.answer(respond, &answered.map_err(|refusal| refusal.status())?).await;
        Ok(())
    }

    async fn report(&self, caller: &Caller, body: RecvStream, respond: &mut SendResponse<Bytes>) -> Result<(), Status> {
        let events = self.server.pod_events.as_ref().ok_or_else(|| {
            Status::new(
                Code::Unimplemented,
                "this control plane does not use the Kubernetes API, so it \
                 writes no Events about pods",
            )
        })?;
        let report: PodReport = self.request(body, self.server.limits.pod_report).await?;
        self.answer(respond, &events.take(caller, &report).map_err(|refusal| refusal.status())?).await;
        Ok(())
    }

    /// The only request of a call, of at most `most` bytes.
    async fn request<T: Message + Default>(&self, body: RecvStream, most: usize) -> Result<T, Status> {
        let mut messages = Messages::new(body, self.requests.at_most(most));
        let invalid = |why: String| Status::new(Code::InvalidArgument, why);
        let message = tokio::time::timeout(self.server.limits.request_within, messages.next())
            .await
            .map_err(|_| Status::new(Code::DeadlineExceeded, "the request did not arrive in time"))??
            .ok_or_else(|| invalid("the call has no request".to_owned()))?;
        T::decode(message).map_err(|error| invalid(format!("the request cannot be parsed: {error}")))
    }

    async fn answer(&self, respond: &mut SendResponse<Bytes>, response: &impl Message) {
        let Ok(mut replies) = Replies::begin(respond, self.server.limits.read_within) else { return };
        match replies.send(&[Bytes::from(response.encode_to_vec())]).await {
            Ok(()) => replies.finish(&Status::ok()),
            Err(_) => replies.cut(),
        }
    }
}
