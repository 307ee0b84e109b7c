//! One version of a CA: it was read and checked as a whole, and can sign.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::rand;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{
    CaError,
    der::{self, Unsigned},
    layout::{self, Content, Digest, Found},
    request::SigningRequest,
};
use crate::{
    identity::{
        Credentials,
        certificate::{self, Certificate, Flaw},
        x509::{self, KeyType},
    },
    model::identity::{SpiffeId, TrustDomain},
};

/// Certificates become valid this much before now, for peers whose clocks are behind. Istio's value.
const CLOCK_SKEW: Duration = Duration::from_secs(120);
/// The validity of the certificate that is only made to check whether peers would accept the CA.
const TRIAL: Duration = Duration::from_secs(60);

/// A CA that is consistent and was valid when it was read.
#[derive(Debug)]
pub struct Authority {
    /// The signing certificate.
    pub certificate: Certificate,
    /// The certificates that are sent with a leaf: the CA's certificate and intermediates, without the root.
    pub intermediates: Vec<Certificate>,
    /// The trusted roots.
    pub roots: Vec<Certificate>,
    /// The file of the certificate.
    path: PathBuf,
    key: KeyPair,
    anchors: Arc<[CertificateDer<'static>]>,
    pub(super) digest: Digest,
}

/// A certificate for a key that stays with its owner.
#[derive(Clone, Debug)]
pub struct Certified {
    /// The certificate, then its intermediates; without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots that its owner may trust.
    pub roots: Arc<[CertificateDer<'static>]>,
    /// The certificate's serial number, in decimal.
    pub serial: String,
    /// The start of its validity.
    pub not_before: SystemTime,
    /// The end of its validity.
    pub not_after: SystemTime,
}

/// The certificate of a server, with DNS names or addresses.
#[derive(Debug)]
pub struct ServerCertificate {
    /// The certificate.
    pub certified: Certified,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
}

/// The purpose of a certificate.
enum Purpose {
    /// Both ends of a connection between workloads.
    Workload,
    /// The server's end.
    Server,
}

impl Authority {
    /// Reads the CA of a directory.
    ///
    /// # Errors
    /// The error names the file that is missing or wrong, and the remedy.
    pub fn read(dir: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        match layout::look(dir)? {
            Found::Everything => {}
            Found::Nothing => return Err(CaError::Absent { dir: dir.to_owned() }),
            Found::Part { missing } => return Err(CaError::Incomplete { dir: dir.to_owned(), missing }),
        }
        let content = Content::read(dir).map_err(certificate::FileError::from)?;
        Self::from_content(dir, &content, trust_domain, now)
    }

    pub(super) fn from_content(
        dir: &Path,
        content: &Content,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let [roots_path, path, key_path, chain_path] = layout::FILES.map(|name| dir.join(name));
        let roots = some(&roots_path, &content.roots)?;
        let certificate = some(&path, &content.certificate)?.swap_remove(0);
        let key = certificate::parse_key(&key_path, &content.key)?;
        let key = check_key(&certificate, &path, &key).map_err(|flaw| CaError::Unfit { path: key_path, flaw })?;
        check_ca(&certificate, now).map_err(|flaw| CaError::Unfit { path: path.clone(), flaw })?;
        let mut intermediates = vec![certificate.clone()];
        // Istio's own Makefile puts the root at the end of this file. It is not sent, because peers have it.
        for more in certificate::parse_certificates(&chain_path, &content.chain)? {
            if !roots.contains(&more) && !intermediates.contains(&more) {
                check_ca(&more, now).map_err(|flaw| CaError::Unfit { path: chain_path.clone(), flaw })?;
                intermediates.push(more);
            }
        }
        intermediates.retain(|one| !roots.contains(one));
        let anchors = roots.iter().map(|root| root.der.clone()).collect();
        let authority = Self { certificate, intermediates, roots, path, key, anchors, digest: content.digest() };
        authority.try_out(trust_domain, now, roots_path)?;
        Ok(authority)
    }

    /// Signs a certificate, and checks whether a peer would accept it: a fault of the chain is found here, and not in the first
    /// handshake.
    fn try_out(&self, trust_domain: &TrustDomain, now: SystemTime, roots: PathBuf) -> Result<(), CaError> {
        let trial = self.issue(&SpiffeId::new(trust_domain.clone(), "ztunnel", "trial"), TRIAL, now)?;
        certificate::verify(&trial.chain, &trial.roots, now)
            .map_err(|source| CaError::Unfit { path: self.path.clone(), flaw: Flaw::Untrusted { roots, source } })
    }

    /// Signs a certificate for a new key. It expires with the CA at the latest.
    ///
    /// # Errors
    /// If the CA has expired.
    pub fn issue(&self, identity: &SpiffeId, ttl: Duration, now: SystemTime) -> Result<Credentials, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Make)?;
        let certified = self.certify_key(&key, identity, ttl, now)?;
        let Certified { chain, roots, serial, not_before, not_after } = certified;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Credentials { identity: identity.clone(), chain, key, roots, serial, not_before, not_after })
    }

    /// Signs a certificate for the key of a request. It expires with the CA at the latest.
    ///
    /// # Errors
    /// If the CA has expired, or the request contains another name.
    pub fn certify(
        &self,
        request: &SigningRequest,
        identity: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Certified, CaError> {
        self.certify_key(request.key_for(identity)?, identity, ttl, now)
    }

    fn certify_key(
        &self,
        key: &impl PublicKeyData,
        identity: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Certified, CaError> {
        let uri = identity.to_string().try_into().map_err(CaError::Make)?;
        self.sign(key, vec![SanType::URI(uri)], &Purpose::Workload, ttl, now)
    }

    /// Signs a certificate for a server with these DNS names or addresses, and a new key. It expires with the CA at the latest.
    ///
    /// # Errors
    /// If the CA has expired, or a name is not a valid DNS name.
    pub fn issue_server(&self, names: &[String], ttl: Duration, now: SystemTime) -> Result<ServerCertificate, CaError> {
        let names = names.iter().map(|name| {
            Ok(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            })
        });
        let names = names.collect::<Result<Vec<_>, rcgen::Error>>().map_err(CaError::Make)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Make)?;
        let certified = self.sign(&key, names, &Purpose::Server, ttl, now)?;
        Ok(ServerCertificate { certified, key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())) })
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        purpose: &Purpose,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Certified, CaError> {
        let end = self.not_after();
        if end <= now {
            return Err(CaError::Unfit { path: self.path.clone(), flaw: Flaw::Expired(end) });
        }
        let not_before = whole_seconds(now.checked_sub(CLOCK_SKEW).unwrap_or(now));
        let not_after = now.checked_add(ttl).map_or(end, |wanted| whole_seconds(wanted).min(end));
        let (serial, _) = serial_number().map_err(CaError::Make)?;
        let mut params = CertificateParams::default();
        // Empty, as in Istio's certificates; this also makes the name below critical.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = match purpose {
            Purpose::Workload => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Purpose::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        };
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        let decimal = x509::decimal(serial.as_ref());
        params.serial_number = Some(serial);
        let unsigned = params.signed_by(key, &self.issuer()).map_err(CaError::Make)?;
        let leaf = der::sign(unsigned.der(), &self.certificate.subject_der, &self.key).map_err(CaError::Make)?;
        let intermediates = self.intermediates.iter().map(|one| one.der.clone());
        Ok(Certified {
            chain: std::iter::once(leaf.into()).chain(intermediates).collect(),
            roots: Arc::clone(&self.anchors),
            serial: decimal,
            not_before,
            not_after,
        })
    }

    /// The earliest expiry of all certificates on which a leaf depends.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.intermediates.iter().map(|one| one.not_after).fold(self.certificate.not_after, SystemTime::min)
    }

    fn issuer(&self) -> Issuer<'_, Unsigned<'_>> {
        let mut params = CertificateParams::default();
        // The issuer's name is inserted when the certificate is signed.
        params.distinguished_name = DistinguishedName::new();
        if let Some(id) = &self.certificate.key_id {
            params.key_identifier_method = KeyIdMethod::PreSpecified(id.clone());
        }
        Issuer::new(params, Unsigned(&self.key))
    }
}

/// A serial number of 128 random bits, and its hexadecimal form.
pub(super) fn serial_number() -> Result<(SerialNumber, String), rcgen::Error> {
    let mut bytes = [0_u8; 16];
    rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    let text = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((SerialNumber::from_slice(&bytes), text))
}

fn some(path: &Path, bytes: &[u8]) -> Result<Vec<Certificate>, certificate::FileError> {
    let certificates = certificate::parse_certificates(path, bytes)?;
    if certificates.is_empty() {
        return Err(certificate::FileError::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}

fn check_key(certificate: &Certificate, path: &Path, key: &PrivateKeyDer<'static>) -> Result<KeyPair, Flaw> {
    let key = KeyPair::try_from(key).map_err(|_| Flaw::KeyType)?;
    if key.public_key_raw() != certificate.public_key {
        return Err(Flaw::OtherKey(path.to_owned()));
    }
    match certificate.key_type {
        KeyType::P256 | KeyType::P384 | KeyType::Rsa(2048..) => Ok(key),
        KeyType::Rsa(_) | KeyType::Other(_) => Err(Flaw::KeyType),
    }
}

fn check_ca(certificate: &Certificate, now: SystemTime) -> Result<(), Flaw> {
    if !certificate.is_ca {
        return Err(Flaw::NotCa);
    }
    certificate.check_time(now)
}

/// Rounds down, because certificates have no fractions of seconds.
fn whole_seconds(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}
