//! A view of an X.509 certificate. Only this file parses certificates. The view borrows the bytes and copies nothing, because
//! the TLS handshake reads certificates as well.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use x509_parser::{
    certificate::X509Certificate,
    error::X509Error,
    extensions::{GeneralName, ParsedExtension},
    nom,
    num_bigint::BigUint,
    oid_registry::{OID_EC_P256, OID_NIST_EC_P384},
    parse_x509_certificate,
    public_key::PublicKey,
    time::ASN1Time,
};

/// A parsed certificate. Nothing is verified.
#[derive(Debug)]
pub struct X509View<'a>(X509Certificate<'a>);

/// A kind of public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// ECDSA over P-256.
    P256,
    /// ECDSA over P-384.
    P384,
    /// RSA, with the number of its bits.
    Rsa(usize),
    /// Another kind, by the object identifier of its algorithm or curve.
    Other(String),
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::P256 => f.write_str("EC P-256"),
            Self::P384 => f.write_str("EC P-384"),
            Self::Rsa(bits) => write!(f, "RSA {bits}"),
            Self::Other(oid) => write!(f, "of kind {oid}"),
        }
    }
}

impl<'a> X509View<'a> {
    /// Parses the DER form of one certificate.
    ///
    /// # Errors
    /// The bytes are not a certificate, or further bytes follow it.
    pub fn parse(der: &'a [u8]) -> Result<Self, X509Error> {
        let (rest, certificate) = parse_x509_certificate(der).map_err(|error| match error {
            nom::Err::Error(error) | nom::Err::Failure(error) => error,
            nom::Err::Incomplete(_) => X509Error::InvalidCertificate,
        })?;
        if rest.is_empty() { Ok(Self(certificate)) } else { Err(X509Error::InvalidCertificate) }
    }

    /// The serial number, in decimal.
    pub(super) fn serial(&self) -> String {
        self.0.serial.to_string()
    }

    /// The subject as text; empty for workloads.
    pub(super) fn subject(&self) -> String {
        self.0.subject().to_string()
    }

    /// The issuer as text.
    pub(super) fn issuer(&self) -> String {
        self.0.issuer().to_string()
    }

    /// The encoded subject. A certificate's issuer must equal the issuing certificate's subject byte for byte.
    #[must_use]
    pub fn subject_der(&self) -> &[u8] {
        self.0.subject().as_raw()
    }

    /// The encoded issuer.
    #[must_use]
    pub fn issuer_der(&self) -> &[u8] {
        self.0.issuer().as_raw()
    }

    /// Start of the validity period.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        system_time(self.0.validity().not_before)
    }

    /// End of the validity period; valid up to and including this second (RFC 5280, 4.1.2.5).
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        system_time(self.0.validity().not_after)
    }

    /// The URIs among the subject's alternative names, in their order. An item is an error if the name has an invalid
    /// encoding; it may have been a URI.
    ///
    /// # Errors
    /// The certificate has the extension twice.
    pub fn uris(&self) -> Result<impl Iterator<Item = Result<&str, X509Error>>, X509Error> {
        let names = self.0.subject_alternative_name()?.into_iter().flat_map(|names| &names.value.general_names);
        Ok(names.filter_map(|name| match name {
            GeneralName::URI(uri) => Some(Ok(*uri)),
            GeneralName::Invalid(..) => Some(Err(X509Error::InvalidExtensions)),
            _ => None,
        }))
    }

    /// Whether it may sign certificates: basic constraint CA and, if it limits the use of its key, keyCertSign.
    ///
    /// # Errors
    /// The certificate has one of the two extensions twice.
    pub(super) fn is_ca(&self) -> Result<bool, X509Error> {
        let may_sign = self.0.key_usage()?.is_none_or(|usage| usage.value.key_cert_sign());
        Ok(may_sign && self.0.basic_constraints()?.is_some_and(|constraints| constraints.value.ca))
    }

    /// Whether its key may sign handshakes: digitalSignature, if the certificate limits the use of its key.
    ///
    /// # Errors
    /// The certificate has the extension twice.
    pub fn may_sign_handshakes(&self) -> Result<bool, X509Error> {
        Ok(self.0.key_usage()?.is_none_or(|usage| usage.value.digital_signature()))
    }

    /// Whether it is marked as a CA, but its key must not sign certificates.
    ///
    /// # Errors
    /// The certificate has one of the two extensions twice.
    pub fn is_ca_that_may_not_sign(&self) -> Result<bool, X509Error> {
        let is_ca = self.0.basic_constraints()?.is_some_and(|constraints| constraints.value.ca);
        Ok(is_ca && !self.is_ca()?)
    }

    /// The bytes of the public key.
    pub(super) fn public_key(&self) -> &[u8] {
        &self.0.public_key().subject_public_key.data
    }

    /// The subject key identifier.
    pub(super) fn key_id(&self) -> Option<&[u8]> {
        self.0.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
            _ => None,
        })
    }

    /// The kind of the public key.
    pub(super) fn key_type(&self) -> KeyType {
        let key = self.0.public_key();
        if let Ok(PublicKey::RSA(rsa)) = key.parsed() {
            return KeyType::Rsa(rsa.key_size());
        }
        let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        match curve {
            Some(curve) if curve == OID_EC_P256 => KeyType::P256,
            Some(curve) if curve == OID_NIST_EC_P384 => KeyType::P384,
            Some(curve) => KeyType::Other(curve.to_string()),
            None => KeyType::Other(key.algorithm.algorithm.to_string()),
        }
    }
}

/// A serial number in decimal, as in [`X509View::serial`].
pub(super) fn decimal(serial: &[u8]) -> String {
    BigUint::from_bytes_be(serial).to_string()
}

/// Times before 1970 become 1970.
fn system_time(time: ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}
