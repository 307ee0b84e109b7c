//! A remote certificate request (PKCS #10, RFC 2986): it is parsed, and compared with the identity that is to be certified.
//! Only the key is taken from the request; the content of the certificate is decided here.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, EcdsaVerificationAlgorithm, UnparsedPublicKey,
};
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData, SignatureAlgorithm};
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
use thiserror::Error;
use x509_parser::{
    asn1_rs::FromDer as _,
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384,
    },
};

use crate::model::identity::SpiffeId;

/// The maximum size of a request as PEM: thirty times the size of a request with a P-256 key and a SPIFFE ID.
pub const LARGEST_REQUEST: usize = 16 << 10;

/// A request whose sender has proved to have the private key.
#[derive(Debug)]
pub struct SigningRequest {
    key: RequestedKey,
    /// The requested URI names.
    uris: Vec<String>,
}

/// The public key of a request.
#[derive(Debug)]
pub(in crate::identity) struct RequestedKey {
    point: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
}

impl PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

/// Why a request is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RequestError {
    /// The request is larger than any valid request.
    #[error("the certificate request is larger than {} KiB", LARGEST_REQUEST >> 10)]
    TooLarge,
    /// The text is not one PEM section.
    #[error("the certificate request is not one PEM section CERTIFICATE REQUEST")]
    Pem,
    /// The content is not PKCS #10.
    #[error("the certificate request cannot be parsed as PKCS #10")]
    Der,
    /// The kind of key or signature is not accepted.
    #[error(
        "the certificate request has a key or a signature of a kind that is not accepted: use EC P-256 with SHA-256, or EC P-384 with SHA-384"
    )]
    Algorithm,
    /// The sender did not prove to have the private key.
    #[error("the signature of the certificate request does not verify with the key in it")]
    Signature,
    /// The request is for a CA certificate.
    #[error(
        "the certificate request asks for a CA certificate (CA:TRUE or keyCertSign); only workload certificates are issued"
    )]
    Ca,
    /// The request has a name that is not the identity.
    #[error("the certificate request names {found}, but the certificate is for {expected} alone")]
    Name {
        /// The name in the request.
        found: String,
        /// The identity.
        expected: SpiffeId,
    },
    /// An extension can't be parsed, or is there twice.
    #[error("the certificate request has an extension that cannot be parsed")]
    Extension,
}

impl SigningRequest {
    /// Reads a request in PEM form, and verifies its signature.
    ///
    /// # Errors
    /// The text is not a request, its kind is not accepted, or it is for a CA.
    pub fn parse(pem: &[u8]) -> Result<Self, RequestError> {
        if pem.len() > LARGEST_REQUEST {
            return Err(RequestError::TooLarge);
        }
        let mut sections = CertificateSigningRequestDer::pem_slice_iter(pem);
        let (Some(Ok(der)), None) = (sections.next(), sections.next()) else {
            return Err(RequestError::Pem);
        };
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| RequestError::Der)?;
        if !rest.is_empty() {
            return Err(RequestError::Der);
        }
        let key = verified_key(&request)?;
        Ok(Self { key, uris: names(&request)? })
    }

    /// The requested URI names.
    #[must_use]
    pub fn uris(&self) -> &[String] {
        &self.uris
    }

    /// The key, if the request has no other name than this identity. A request without a name is accepted for any identity.
    pub(in crate::identity) fn key_for(&self, identity: &SpiffeId) -> Result<&RequestedKey, RequestError> {
        let text = identity.to_string();
        match self.uris.iter().find(|uri| **uri != text) {
            Some(found) => Err(RequestError::Name { found: excerpt(found), expected: identity.clone() }),
            None => Ok(&self.key),
        }
    }
}

fn verified_key(request: &X509CertificationRequest<'_>) -> Result<RequestedKey, RequestError> {
    let info = &request.certification_request_info;
    let key = &info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let signature = &request.signature_algorithm.algorithm;
    let (verify, algorithm): (&'static EcdsaVerificationAlgorithm, &'static SignatureAlgorithm) = match curve {
        _ if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY => return Err(RequestError::Algorithm),
        Some(curve) if curve == OID_EC_P256 && *signature == OID_SIG_ECDSA_WITH_SHA256 => {
            (&ECDSA_P256_SHA256_ASN1, &PKCS_ECDSA_P256_SHA256)
        }
        Some(curve) if curve == OID_NIST_EC_P384 && *signature == OID_SIG_ECDSA_WITH_SHA384 => {
            (&ECDSA_P384_SHA384_ASN1, &PKCS_ECDSA_P384_SHA384)
        }
        Some(_) | None => return Err(RequestError::Algorithm),
    };
    let point = &*key.subject_public_key.data;
    UnparsedPublicKey::new(verify, point)
        .verify(info.raw, &request.signature_value.data)
        .map_err(|_| RequestError::Signature)?;
    Ok(RequestedKey { point: point.to_vec(), algorithm })
}

/// The requested URI names. Names of other kinds are refused, because no content of the certificate may come from the sender.
fn names(request: &X509CertificationRequest<'_>) -> Result<Vec<String>, RequestError> {
    let mut uris = Vec::new();
    for attribute in request.certification_request_info.iter_attributes() {
        let requested = match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(requested) => requested,
            ParsedCriAttribute::ChallengePassword(_) | ParsedCriAttribute::UnsupportedAttribute => continue,
        };
        for extension in &requested.extensions {
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(constraints) if constraints.ca => return Err(RequestError::Ca),
                ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
                    return Err(RequestError::Ca);
                }
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        match name {
                            GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                            _ => return Err(RequestError::Extension),
                        }
                    }
                }
                ParsedExtension::ParseError { .. } => return Err(RequestError::Extension),
                _ => {}
            }
        }
    }
    Ok(uris)
}

/// The part of a remote sender's name that is shown.
fn excerpt(text: &str) -> String {
    text.chars().take(128).collect::<String>().escape_debug().to_string()
}
