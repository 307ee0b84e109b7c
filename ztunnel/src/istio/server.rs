//! The server of the two services.

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::BoxFuture;
use http_body::Body as HttpBody;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::LONGEST_MESSAGE;
use super::certificate::{IstioCertificateRequest, IstioCertificateResponse};
use super::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

/// Path of [`Discovery::delta_aggregated_resources`].
pub const DELTA_AGGREGATED_RESOURCES: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Path of [`CertificateAuthority::create_certificate`].
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// `envoy.service.discovery.v3.AggregatedDiscoveryService`, as far as nodes use it.
pub trait Discovery: Send + Sync + 'static {
    /// The responses to a client.
    type Responses: Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send + 'static;

    /// Serves one stream of delta xDS.
    fn delta_aggregated_resources(
        &self,
        requests: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> impl Future<Output = Result<Response<Self::Responses>, Status>> + Send;
}

/// `istio.v1.auth.IstioCertificateService`.
pub trait CertificateAuthority: Send + Sync + 'static {
    /// Signs one request.
    fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> impl Future<Output = Result<Response<IstioCertificateResponse>, Status>> + Send;
}

/// Both services, as a function from an HTTP/2 request to its response. Cheap to clone.
#[derive(Debug)]
pub struct Services<D, C> {
    discovery: Arc<D>,
    authority: Arc<C>,
}

impl<D, C> Clone for Services<D, C> {
    fn clone(&self) -> Self {
        Self { discovery: Arc::clone(&self.discovery), authority: Arc::clone(&self.authority) }
    }
}

impl<D: Discovery, C: CertificateAuthority> Services<D, C> {
    /// Serves both services.
    #[must_use]
    pub fn new(discovery: Arc<D>, authority: Arc<C>) -> Self {
        Self { discovery, authority }
    }

    /// Answers a request by its path. Requests of other paths are answered with the status `UNIMPLEMENTED`.
    pub async fn answer<B>(&self, request: http::Request<B>) -> http::Response<tonic::body::Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>> + Send,
    {
        match request.uri().path() {
            DELTA_AGGREGATED_RESOURCES => {
                let mut grpc = Grpc::new(ProstCodec::default())
                    .max_decoding_message_size(LONGEST_MESSAGE)
                    .max_encoding_message_size(LONGEST_MESSAGE);
                grpc.streaming(Streams(Arc::clone(&self.discovery)), request).await
            }
            CREATE_CERTIFICATE => {
                let mut grpc = Grpc::new(ProstCodec::default());
                grpc.unary(Signing(Arc::clone(&self.authority)), request).await
            }
            path => Status::unimplemented(format!("this server does not have {path}")).into_http(),
        }
    }
}

struct Streams<D>(Arc<D>);

impl<D: Discovery> StreamingService<DeltaDiscoveryRequest> for Streams<D> {
    type Response = DeltaDiscoveryResponse;
    type ResponseStream = D::Responses;
    type Future = BoxFuture<'static, Result<Response<D::Responses>, Status>>;

    fn call(&mut self, requests: Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let discovery = Arc::clone(&self.0);
        Box::pin(async move { discovery.delta_aggregated_resources(requests).await })
    }
}

struct Signing<C>(Arc<C>);

impl<C: CertificateAuthority> UnaryService<IstioCertificateRequest> for Signing<C> {
    type Response = IstioCertificateResponse;
    type Future = BoxFuture<'static, Result<Response<IstioCertificateResponse>, Status>>;

    fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
        let authority = Arc::clone(&self.0);
        Box::pin(async move { authority.create_certificate(request).await })
    }
}
