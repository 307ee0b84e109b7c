//! A certificate authority in the layout of Istio's `cacerts` secret, which the daemons of a test share, and
//! certificates that no honest CA would issue.
//!
//! A root signs an intermediate, which signs the leaves: `root-cert.pem`, `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::mesh::NAMESPACE;

/// The trust domain of all tests.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// How many roots stay trusted through rotations, the current one included.
const ROOTS_KEPT: usize = 3;

/// The identity of a service account of the tests' namespace.
#[must_use]
pub fn identity(service_account: &str) -> String {
    identity_in(NAMESPACE, service_account)
}

/// The identity of a service account of any namespace.
#[must_use]
pub fn identity_in(namespace: &str, service_account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{service_account}")
}

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    current: Issuers,
    /// The next generation, while only its root is known.
    next: Option<Issuers>,
    /// The PEM of all trusted roots, newest first.
    roots: Vec<String>,
    generation: u32,
}

/// One generation of an authority.
#[derive(Debug)]
struct Issuers {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

/// A leaf with its chain and key.
#[derive(Debug)]
pub struct Certificate {
    /// Leaf, then intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    pem: String,
    key_pem: String,
}

/// The content of a leaf certificate.
#[derive(Debug, Clone)]
pub struct Leaf {
    uris: Vec<String>,
    usages: Vec<ExtendedKeyUsagePurpose>,
    begin: SystemTime,
    end: SystemTime,
}

impl Authority {
    /// Makes an authority and writes it to a folder.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let authority = Self::unwritten(folder)?;
        authority.write_roots()?;
        authority.write_issuers()?;
        Ok(authority)
    }

    /// An authority that nobody trusts.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn foreign() -> Result<Self> {
        Self::unwritten(Path::new(""))
    }

    fn unwritten(folder: &Path) -> Result<Self> {
        let current = Issuers::new(1)?;
        let roots = vec![current.root.pem()];
        Ok(Self { folder: folder.to_owned(), current, next: None, roots, generation: 1 })
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// First step of a rotation: the bundle of roots gets the new root in addition to the old one. Nothing is signed
    /// under the new root before everyone trusts it.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn announce_next(&mut self) -> Result<()> {
        self.generation += 1;
        let next = Issuers::new(self.generation)?;
        self.roots.insert(0, next.root.pem());
        self.roots.truncate(ROOTS_KEPT);
        self.next = Some(next);
        self.write_roots()
    }

    /// Second step: from now on the new generation signs leaves.
    ///
    /// # Errors
    /// When nothing was announced, or the folder can't be written.
    pub fn switch_to_next(&mut self) -> Result<()> {
        self.current = self.next.take().context("no next generation was announced")?;
        self.write_issuers()
    }

    /// Last step of a rotation: only the current root is trusted.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn forget_old(&mut self) -> Result<()> {
        self.roots = vec![self.current.root.pem()];
        self.write_roots()
    }

    /// Replaces the intermediate by one that will expire soon, and with it all leaves that it signs.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn end_in(&mut self, life: Duration) -> Result<()> {
        self.current.intermediate = intermediate(&self.current.root, self.generation, life)?;
        self.write_issuers()
    }

    /// Renames the folder, as if a volume were gone.
    ///
    /// # Errors
    /// When it can't be renamed.
    pub fn hide(&self) -> Result<()> {
        fs::rename(&self.folder, self.hidden()).context("cannot hide the CA's folder")
    }

    /// Renames it back.
    ///
    /// # Errors
    /// When it can't be renamed.
    pub fn show(&self) -> Result<()> {
        fs::rename(self.hidden(), &self.folder).context("cannot put the CA's folder back")
    }

    /// Issues a leaf, which may be invalid.
    ///
    /// # Errors
    /// When a URI is not ASCII.
    pub fn issue(&self, leaf: &Leaf) -> Result<Certificate> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names =
            leaf.uris.iter().map(|uri| Ok(SanType::URI(uri.clone().try_into()?))).collect::<Result<_>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages.clone_from(&leaf.usages);
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (leaf.begin.into(), leaf.end.into());
        let issued = params.signed_by(&key, &self.current.intermediate)?;
        Ok(Certificate {
            chain: vec![issued.der().clone(), self.current.intermediate.der().clone()],
            key: key.serialize_der(),
            pem: issued.pem() + &self.current.intermediate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Issues the certificate that a pod's node has.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn honest(&self, service_account: &str) -> Result<Certificate> {
        self.issue(&Leaf::of(service_account))
    }

    fn hidden(&self) -> PathBuf {
        self.folder.with_added_extension("hidden")
    }

    fn write_roots(&self) -> Result<()> {
        self.write("root-cert.pem", &self.roots.concat())
    }

    fn write_issuers(&self) -> Result<()> {
        let Issuers { root, intermediate } = &self.current;
        self.write("ca-key.pem", &intermediate.key().serialize_pem())?;
        self.write("ca-cert.pem", &intermediate.pem())?;
        self.write("cert-chain.pem", &(intermediate.pem() + &root.pem()))
    }

    /// Replaces a whole file, readable by its owner only.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let (path, beside) = (self.folder.join(name), self.folder.join(format!(".{name}.new")));
        let _ = fs::remove_file(&beside);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        fs::rename(&beside, &path).with_context(|| format!("cannot rename to {}", path.display()))
    }
}

impl Issuers {
    fn new(generation: u32) -> Result<Self> {
        let root = ca_params(&format!("test root {generation}"), 1, YEAR);
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;
        let intermediate = intermediate(&root, generation, YEAR)?;
        Ok(Self { root, intermediate })
    }
}

fn intermediate(
    root: &CertifiedIssuer<'static, KeyPair>,
    generation: u32,
    life: Duration,
) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let params = ca_params(&format!("test intermediate {generation}"), 0, life);
    Ok(CertifiedIssuer::signed_by(params, KeyPair::generate()?, root)?)
}

fn ca_params(name: &str, depth: u8, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, TRUST_DOMAIN);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - HOUR).into(), (now + life).into());
    params
}

const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

impl Leaf {
    /// The leaf of a pod in the tests' namespace.
    #[must_use]
    pub fn of(service_account: &str) -> Self {
        let now = SystemTime::now();
        Self {
            uris: vec![identity(service_account)],
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            begin: now - Duration::from_secs(60),
            end: now + HOUR,
        }
    }

    /// With other names.
    #[must_use]
    pub fn uris(mut self, uris: &[&str]) -> Self {
        self.uris = uris.iter().map(|uri| (*uri).to_owned()).collect();
        self
    }

    /// Valid for these purposes only.
    #[must_use]
    pub fn usages(mut self, usages: &[ExtendedKeyUsagePurpose]) -> Self {
        self.usages = usages.to_vec();
        self
    }

    /// Expired an hour ago.
    #[must_use]
    pub fn expired(mut self) -> Self {
        (self.begin, self.end) = (self.begin - HOUR * 2, self.begin - HOUR);
        self
    }

    /// Valid only after an hour.
    #[must_use]
    pub fn not_yet_valid(mut self) -> Self {
        (self.begin, self.end) = (self.begin + HOUR, self.end + HOUR);
        self
    }
}

impl Certificate {
    /// Its private key.
    #[must_use]
    pub fn key(&self) -> PrivatePkcs8KeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone())
    }

    /// Writes chain and key for a program; returns their paths.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn write(&self, folder: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
        let (chain, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}-key.pem")));
        fs::write(&chain, &self.pem).with_context(|| format!("cannot write {}", chain.display()))?;
        fs::write(&key, &self.key_pem).with_context(|| format!("cannot write {}", key.display()))?;
        Ok((chain, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_announces_before_it_switches() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut authority = Authority::create(&folder.path().join("ca"))?;
        let read = |name: &str| fs::read_to_string(folder.path().join("ca").join(name));
        let (roots, issuer) = (read("root-cert.pem")?, read("ca-cert.pem")?);
        authority.announce_next()?;
        assert!(read("root-cert.pem")?.ends_with(&roots) && authority.roots.len() == 2);
        assert_eq!(read("ca-cert.pem")?, issuer);
        authority.switch_to_next()?;
        assert_ne!(read("ca-cert.pem")?, issuer);
        assert!(authority.switch_to_next().is_err());
        authority.forget_old()?;
        assert!(!read("root-cert.pem")?.contains(&roots) && authority.roots.len() == 1);
        assert_eq!(authority.issue(&Leaf::of("a").expired())?.chain.len(), 2);
        Ok(())
    }
}
