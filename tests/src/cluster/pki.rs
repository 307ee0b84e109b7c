//! The certificates, keys and tokens of a cluster.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

/// The names of the API server, besides its addresses.
const SERVER_NAMES: [&str; 5] =
    ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"];

/// The files of a cluster's authority; all are readable by root only.
#[derive(Debug)]
pub struct Pki {
    folder: PathBuf,
}

impl Pki {
    /// Makes an authority, a serving certificate of the API server for `addresses`, its client certificate for
    /// kubelets, and the key that signs the tokens of service accounts.
    ///
    /// # Errors
    /// When a file can't be made or written.
    pub fn create(folder: &Path, addresses: &[IpAddr]) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let pki = Self { folder: folder.to_owned() };
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&[(DnType::CommonName, "test-cluster")]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        pki.write("ca.crt", &authority.pem())?;
        let mut names = Vec::new();
        for dns in SERVER_NAMES {
            names.push(SanType::DnsName(dns.try_into()?));
        }
        names.extend(addresses.iter().copied().map(SanType::IpAddress));
        let subject = name(&[(DnType::CommonName, "kube-apiserver")]);
        pki.leaf(&authority, "api", subject, names, ExtendedKeyUsagePurpose::ServerAuth)?;
        let subject = name(&[(DnType::OrganizationName, "system:masters"), (DnType::CommonName, "kube-apiserver")]);
        pki.leaf(&authority, "kubelet-client", subject, Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)?;
        let key = KeyPair::generate()?;
        pki.write("sa.key", &key.serialize_pem())?;
        pki.write("sa.pub", &key.public_key_pem())?;
        Ok(pki)
    }

    /// A file of the authority, for example `ca.crt`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a kubeconfig for a token.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn kubeconfig(&self, name: &str, url: &str, token: &str) -> Result<PathBuf> {
        let roots = self.file("ca.crt");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: cluster\n\
             contexts: [{{name: cluster, context: {{cluster: cluster, user: user}}}}]\n\
             clusters: [{{name: cluster, cluster: {{server: \"{url}\", certificate-authority: {}}}}}]\n\
             users: [{{name: user, user: {{token: {token}}}}}]\n",
            roots.display()
        );
        self.write(name, &text)
    }

    /// Writes a file that only root can read.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        use std::io::Write as _;
        let path = self.file(name);
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn leaf(
        &self,
        authority: &CertifiedIssuer<'static, KeyPair>,
        file: &str,
        subject: DistinguishedName,
        names: Vec<SanType>,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject;
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, authority)?;
        self.write(&format!("{file}.crt"), &certificate.pem())?;
        self.write(&format!("{file}.key"), &key.serialize_pem())?;
        Ok(())
    }
}

fn name(parts: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, value) in parts {
        name.push(kind.clone(), *value);
    }
    name
}
