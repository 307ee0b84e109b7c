//! Signs certificates for the pods of a node: `CreateCertificate`.
//!
//! A node gets certificates for the identities of its own pods only. So an attacker on a node gets no identities but
//! those of the pods that run on it.

use std::{sync::Arc, time::Duration};

use rustls_pki_types::CertificateDer;
use thiserror::Error;
use tokio::{sync::Semaphore, time::Instant};
use tracing::{debug, info, warn};

use super::{
    caller::Caller,
    grpc::{Code, Status},
    metrics::PlaneMetrics,
    quota::Quota,
};
use crate::{
    identity::{
        certificate::{rfc3339, to_pem},
        local_ca::{
            CaError, LocalCa,
            authority::Certified,
            request::{RequestError, SigningRequest},
        },
        source::SourceError,
    },
    istio::certificate::{IMPERSONATED_IDENTITY, IstioCertificateRequest, IstioCertificateResponse},
    model::{
        cause::causes,
        identity::{IdentityError, SpiffeId, TrustDomain},
        workload::{Membership, RefuseReason, Workload},
    },
    store::publish::Reader,
};

/// Signs certificates.
#[derive(Debug)]
pub struct Certificates {
    ca: Arc<LocalCa>,
    mesh: Reader,
    trust_domain: TrustDomain,
    /// How long a certificate is valid when the request does not say.
    ttl: Duration,
    quota: Quota,
    signing: Semaphore,
    metrics: PlaneMetrics,
}

/// Limits of signing.
#[derive(Clone, Copy, Debug)]
pub struct SigningLimits {
    /// Certificates that a node may ask for at once.
    pub burst: u32,
    /// Time after which a node may ask for one more.
    pub every: Duration,
    /// Signatures that are in progress or wait, over all nodes.
    pub at_once: usize,
}

/// Why a request for a certificate is refused.
#[derive(Debug, Error)]
pub enum CsrRefusal {
    /// The mesh is not known yet.
    #[error("cannot tell which pods run on node {node}: the mesh has not been read yet; try again")]
    NoMesh {
        /// The node.
        node: Arc<str>,
    },
    /// The request is not valid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The request names no identity.
    #[error(
        "the certificate request names no identity: set {IMPERSONATED_IDENTITY} in its metadata to the SPIFFE ID of a pod"
    )]
    NoIdentity,
    /// The identity is not a SPIFFE ID of this mesh.
    #[error("{0}")]
    Identity(String),
    /// The identity belongs to another mesh.
    #[error("the identity {identity} has another trust domain; this CA signs only for the trust domain {own}")]
    TrustDomain {
        /// The identity that was asked for.
        identity: SpiffeId,
        /// The trust domain of this CA.
        own: TrustDomain,
    },
    /// No pod of the node has the identity.
    #[error(
        "node {node} has no pod of the mesh with the identity {identity}; a node gets certificates only for \
         the pods that are bound to it"
    )]
    NotOnNode {
        /// The identity that was asked for.
        identity: SpiffeId,
        /// The node that asked.
        node: Arc<str>,
    },
    /// The node asks too often.
    #[error("node {node} has reached the limit of certificate requests for a node: try again in {} s", wait.as_secs() + 1)]
    Quota {
        /// The node.
        node: Arc<str>,
        /// The time after which the node may ask again.
        wait: Duration,
    },
    /// All nodes together ask too often.
    #[error("the CA has reached the limit of concurrent requests: try again")]
    Busy,
    /// The CA cannot sign.
    #[error("the CA cannot sign")]
    Ca(#[source] SourceError),
}

impl CsrRefusal {
    /// The label of the metric.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NoMesh { .. } => "no_mesh",
            Self::Request(_) | Self::NoIdentity | Self::Identity(_) => "invalid",
            Self::TrustDomain { .. } => "trust_domain",
            Self::NotOnNode { .. } => "not_on_node",
            Self::Quota { .. } => "quota",
            Self::Busy => "busy",
            Self::Ca(_) => "ca",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoMesh { .. } | Self::Busy | Self::Ca(_) => Code::Unavailable,
            Self::Request(_) | Self::NoIdentity | Self::Identity(_) => Code::InvalidArgument,
            Self::TrustDomain { .. } | Self::NotOnNode { .. } => Code::PermissionDenied,
            Self::Quota { .. } => Code::ResourceExhausted,
        }
    }

    /// The gRPC status for the caller.
    #[must_use]
    pub fn status(&self) -> Status {
        let message = match self {
            // A fault of the CA concerns its operator, not the caller.
            Self::Ca(_) => "the CA cannot sign now; the log of the control plane has the reason".to_owned(),
            other => other.to_string(),
        };
        Status::new(self.code(), message)
    }
}

impl Certificates {
    /// Signs with this CA for the pods of this mesh.
    #[must_use]
    pub fn new(
        ca: Arc<LocalCa>,
        mesh: Reader,
        trust_domain: TrustDomain,
        ttl: Duration,
        limits: SigningLimits,
        metrics: PlaneMetrics,
    ) -> Self {
        let quota = Quota::new(limits.burst, limits.every);
        Self { ca, mesh, trust_domain, ttl, quota, signing: Semaphore::new(limits.at_once), metrics }
    }

    /// Answers a request of a node.
    ///
    /// # Errors
    /// The node may not have the certificate, the request is not valid, or the CA cannot sign.
    pub async fn create(
        &self,
        caller: &Caller,
        request: &IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, CsrRefusal> {
        match self.sign(caller, request).await {
            Ok((identity, certified)) => {
                let (serial, not_after) = (&certified.serial, rfc3339(certified.not_after));
                info!(node = %caller.node, %identity, serial, not_after, "certificate issued");
                self.metrics.issued.inc();
                Ok(response(&certified))
            }
            Err(refusal) => {
                // A node that keeps asking must not fill the log. The metric still counts its requests.
                match refusal {
                    CsrRefusal::Quota { .. } => debug!(node = %caller.node, reason = %refusal, "certificate refused"),
                    _ => warn!(node = %caller.node, reason = causes(&refusal), "certificate refused"),
                }
                self.metrics.refuse(refusal.label());
                Err(refusal)
            }
        }
    }

    async fn sign(
        &self,
        caller: &Caller,
        request: &IstioCertificateRequest,
    ) -> Result<(SpiffeId, Certified), CsrRefusal> {
        // The quota comes before everything that costs time.
        let node = &caller.node;
        self.quota.take(node, Instant::now()).map_err(|wait| CsrRefusal::Quota { node: Arc::clone(node), wait })?;
        let parsed = SigningRequest::parse(request.csr.as_bytes())?;
        let identity = identity(request, &parsed)?;
        self.may_have(node, &identity)?;
        let _place = self.signing.try_acquire().map_err(|_| CsrRefusal::Busy)?;
        let ttl = match u64::try_from(request.validity_duration) {
            Ok(seconds @ 1..) => Duration::from_secs(seconds),
            Ok(0) | Err(_) => self.ttl,
        };
        let certified = self.ca.certify(parsed, identity.clone(), ttl).await.map_err(|error| match error {
            SourceError::Ca(CaError::Request(error)) => CsrRefusal::Request(error),
            other => CsrRefusal::Ca(other),
        })?;
        Ok((identity, certified))
    }

    /// Whether a pod with this identity runs on the node.
    fn may_have(&self, node: &Arc<str>, identity: &SpiffeId) -> Result<(), CsrRefusal> {
        if identity.trust_domain != self.trust_domain {
            return Err(CsrRefusal::TrustDomain { identity: identity.clone(), own: self.trust_domain.clone() });
        }
        let mesh = self.mesh.load();
        if mesh.version() == 0 {
            return Err(CsrRefusal::NoMesh { node: Arc::clone(node) });
        }
        let is_on_node = mesh.pods_on(node).any(|pod| pod.identity == *identity && is_in_mesh(pod));
        let refused = || CsrRefusal::NotOnNode { identity: identity.clone(), node: Arc::clone(node) };
        if is_on_node { Ok(()) } else { Err(refused()) }
    }
}

/// A pod without an address counts as well: it gets its certificate before its first connection.
fn is_in_mesh(pod: &Workload) -> bool {
    !pod.finished && matches!(pod.membership, Membership::InMesh | Membership::Refused(RefuseReason::NoAddress))
}

/// The identity that is asked for. The metadata has it, or else it is the only name in the certificate request.
fn identity(request: &IstioCertificateRequest, parsed: &SigningRequest) -> Result<SpiffeId, CsrRefusal> {
    let impersonated = request.metadata.as_ref().and_then(|metadata| metadata.string(IMPERSONATED_IDENTITY));
    let text = match (impersonated, parsed.uris()) {
        (Some(text), _) => text,
        (None, [only]) => only,
        (None, _) => return Err(CsrRefusal::NoIdentity),
    };
    text.parse().map_err(|error: IdentityError| CsrRefusal::Identity(error.to_string()))
}

/// The certificate, its intermediates, and all roots together as the last entry.
fn response(certified: &Certified) -> IstioCertificateResponse {
    let pem = |der: &CertificateDer<'_>| to_pem(der);
    let mut cert_chain: Vec<String> = certified.chain.iter().map(pem).collect();
    cert_chain.push(certified.roots.iter().map(pem).collect());
    IstioCertificateResponse { cert_chain }
}
