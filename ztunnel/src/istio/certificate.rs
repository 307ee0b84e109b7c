//! Certificate requests: `istio.v1.auth`.

use prost::Message;

use super::standard::Struct;

/// Key of [`metadata`](IstioCertificateRequest::metadata): the SPIFFE ID for which the certificate is requested, if it
/// is not the caller's own.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// A request for a certificate.
#[derive(Clone, PartialEq, Message)]
pub struct IstioCertificateRequest {
    /// The PKCS #10 certificate signing request, as PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// How long the certificate should be valid, in seconds.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// Further fields; see [`IMPERSONATED_IDENTITY`].
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// A certificate.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct IstioCertificateResponse {
    /// PEM texts: the certificate, its intermediates, and last the roots to trust, which may be several in one text.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}
