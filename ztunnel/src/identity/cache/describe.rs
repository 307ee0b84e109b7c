//! The certificates in `/config_dump`, in the shape that `istioctl ztunnel-config certificates` reads.

use std::time::SystemTime;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::{
    identity::{
        certificate::{Certificate, rfc3339, to_pem},
        handle::CertState,
    },
    model::identity::SpiffeId,
};

/// One identity and its certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertInfo {
    /// The identity.
    pub identity: String,
    /// `Available`, `Initializing`, or `Unavailable: ` with the reason.
    pub state: String,
    /// The certificate, then its intermediates.
    pub cert_chain: Vec<ChainLink>,
    /// The trusted roots.
    pub root_certs: Vec<ChainLink>,
    /// Why the last renewal failed, if the certificate is still valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_failure: Option<String>,
}

/// One certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChainLink {
    /// Its PEM text, encoded in base64 once more.
    pub pem: String,
    /// The serial number, in decimal.
    pub serial_number: String,
    /// RFC 3339.
    pub valid_from: String,
    /// RFC 3339.
    pub expiration_time: String,
}

impl CertInfo {
    pub(super) fn new(identity: &SpiffeId, state: &CertState, now: SystemTime) -> Self {
        let credentials = state.credentials.as_deref();
        let is_valid = credentials.is_some_and(|credentials| credentials.is_valid(now));
        let text = match (is_valid, &state.failure, credentials) {
            (true, ..) => "Available".to_owned(),
            (false, Some(failure), _) => format!("Unavailable: {failure}"),
            (false, None, Some(_)) => "Unavailable: it has expired, or is not valid yet".to_owned(),
            (false, None, None) => "Initializing".to_owned(),
        };
        Self {
            identity: identity.to_string(),
            state: text,
            cert_chain: credentials.map_or_else(Vec::new, |credentials| links(&credentials.chain)),
            root_certs: credentials.map_or_else(Vec::new, |credentials| links(&credentials.roots)),
            renewal_failure: state.failure.as_deref().filter(|_| is_valid).map(str::to_owned),
        }
    }
}

fn links(chain: &[CertificateDer<'static>]) -> Vec<ChainLink> {
    chain.iter().filter_map(|der| Some(link(der, &Certificate::parse(der.clone()).ok()?))).collect()
}

fn link(der: &CertificateDer<'static>, certificate: &Certificate) -> ChainLink {
    ChainLink {
        pem: STANDARD.encode(to_pem(der)),
        serial_number: certificate.serial.clone(),
        valid_from: rfc3339(certificate.not_before),
        expiration_time: rfc3339(certificate.not_after),
    }
}
