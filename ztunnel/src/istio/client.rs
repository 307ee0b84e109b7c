//! The client of the two services.

use std::error::Error;

use bytes::Bytes;
use http::Uri;
use http::uri::PathAndQuery;
use http_body::Body as HttpBody;
use tonic::client::{Grpc, GrpcService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::certificate::{IstioCertificateRequest, IstioCertificateResponse};
use super::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use super::report::{PodReport, PodReportResponse, REPORT_PODS};
use super::server::{CREATE_CERTIFICATE, DELTA_AGGREGATED_RESOURCES};
use super::{LONGEST_ANSWER, LONGEST_MESSAGE};

/// Calls the services of a control plane over one HTTP/2 connection.
#[derive(Clone, Debug)]
pub struct Client<C> {
    streams: Grpc<C>,
    /// For calls whose answers are short.
    calls: Grpc<C>,
}

impl<C> Client<C>
where
    C: GrpcService<tonic::body::Body> + Clone,
    C::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <C::ResponseBody as HttpBody>::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// A client that uses a connection. `origin` has scheme and authority of the control plane.
    pub fn new(connection: C, origin: Uri) -> Self {
        let grpc = Grpc::with_origin(connection, origin).max_encoding_message_size(LONGEST_MESSAGE);
        let calls = grpc.clone().max_decoding_message_size(LONGEST_ANSWER);
        Self { streams: grpc.max_decoding_message_size(LONGEST_MESSAGE), calls }
    }

    /// Opens a stream of delta xDS.
    ///
    /// # Errors
    /// The connection is gone, or the control plane refuses.
    pub async fn delta_aggregated_resources(
        &mut self,
        requests: Request<impl futures_util::Stream<Item = DeltaDiscoveryRequest> + Send + 'static>,
    ) -> Result<Response<Streaming<DeltaDiscoveryResponse>>, Status> {
        ready(&mut self.streams).await?;
        let path = PathAndQuery::from_static(DELTA_AGGREGATED_RESOURCES);
        self.streams.streaming(requests, path, ProstCodec::default()).await
    }

    /// Requests a certificate.
    ///
    /// # Errors
    /// The connection is gone, or the control plane refuses.
    pub async fn create_certificate(
        &mut self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        ready(&mut self.calls).await?;
        let path = PathAndQuery::from_static(CREATE_CERTIFICATE);
        self.calls.unary(request, path, ProstCodec::default()).await
    }

    /// Reports pods of this node.
    ///
    /// # Errors
    /// The connection is gone, or the control plane refuses.
    pub async fn report_pods(&mut self, report: Request<PodReport>) -> Result<Response<PodReportResponse>, Status> {
        ready(&mut self.calls).await?;
        let path = PathAndQuery::from_static(REPORT_PODS);
        self.calls.unary(report, path, ProstCodec::default()).await
    }
}

async fn ready<C>(grpc: &mut Grpc<C>) -> Result<(), Status>
where
    C: GrpcService<tonic::body::Body>,
{
    grpc.ready().await.map_err(|error| {
        let error: Box<dyn Error + Send + Sync> = error.into();
        Status::unavailable(format!("the connection is not usable: {error}"))
    })
}
