//! The authority in a Secret. All replicas share it.
//!
//! `cacerts` is an authority that an operator has provided, in Istio's layout. If there is none, the first replica
//! creates the Secret `ztunnel-ca`. The API server accepts only one Secret of a name, so there are never two
//! authorities. The Secret is watched for changes, as a directory is.

use std::{path::PathBuf, sync::Arc, time::Duration};

use thiserror::Error;
use tracing::{info, warn};

use crate::{
    control::kubernetes::{Cluster, Failure, Object, Report, SECRETS, SecretData, Selection, Watch},
    identity::local_ca::{
        CaError, CaSettings, LocalCa,
        create::{self, NewCa},
        layout::{self, Content},
    },
    model::{cause::causes, identity::TrustDomain, workload::NamespacedName},
};

/// The Secret with an authority that an operator has provided. Istio uses the same name.
pub const PLUGGED_IN: &str = "cacerts";
/// The Secret with an authority that this program has made.
pub const MADE: &str = "ztunnel-ca";

/// Why there is no authority.
#[derive(Debug, Error)]
pub enum SecretCaError {
    /// The API server does not return the Secret, or does not accept it.
    #[error("cannot read or create the Secret of the certificate authority")]
    Api(#[source] Box<Failure>),
    /// Some keys of the Secret are missing.
    #[error(
        "Secret {secret} lacks these keys of a certificate authority: {}; add them, or delete the Secret", missing.join(", ")
    )]
    Incomplete {
        /// The Secret.
        secret: NamespacedName,
        /// The missing keys.
        missing: Vec<&'static str>,
    },
    /// The authority in the Secret cannot be used.
    #[error("the certificate authority in Secret {secret} cannot be used")]
    Unfit {
        /// The Secret.
        secret: NamespacedName,
        /// Why.
        #[source]
        source: Box<CaError>,
    },
    /// The Secret is gone, and no new authority may be made in its place.
    #[error(
        "there is no certificate authority: the Secrets {namespace}/{PLUGGED_IN} and {namespace}/{MADE} do \
         not exist, and ConfigMap {roots} has the roots of an earlier authority, which nodes trust; restore \
         the Secret, or delete the ConfigMap to have a new authority created"
    )]
    Gone {
        /// The namespace where the Secret should be.
        namespace: Arc<str>,
        /// The ConfigMap that shows that there was an authority.
        roots: NamespacedName,
    },
}

impl From<Failure> for SecretCaError {
    fn from(failure: Failure) -> Self {
        Self::Api(Box::new(failure))
    }
}

/// The place of the authority, and the identities that it signs.
#[derive(Debug, Clone)]
pub struct SecretCaSettings {
    /// The namespace of the Secret.
    pub namespace: Arc<str>,
    /// The ConfigMap with the roots. When it exists, there was an authority.
    pub roots: Arc<str>,
    /// The trust domain of the workloads for which it signs.
    pub trust_domain: TrustDomain,
    /// The longest validity of a certificate.
    pub ttl: Duration,
}

/// An authority in a Secret.
#[derive(Debug)]
pub struct SecretCa {
    cluster: Cluster,
    secret: NamespacedName,
    /// The authority.
    pub ca: Arc<LocalCa>,
}

impl SecretCa {
    /// Opens the authority that exists, or makes one.
    ///
    /// # Errors
    /// The existing authority cannot be used, or a new one cannot be made.
    pub async fn open(cluster: Cluster, settings: &SecretCaSettings) -> Result<Self, SecretCaError> {
        let name = |name: &str| NamespacedName::new(Arc::clone(&settings.namespace), name);
        let (secret, data, made) = match cluster.secret(&name(PLUGGED_IN)).await? {
            Some(data) => (name(PLUGGED_IN), data, false),
            None => {
                let (data, made) = first(&cluster, &name(MADE), settings).await?;
                (name(MADE), data, made)
            }
        };
        let content = content(&secret, data)?;
        let unfit = |source| SecretCaError::Unfit { secret: secret.clone(), source: Box::new(source) };
        let dir = PathBuf::from(format!("Secret {secret}"));
        let settings = CaSettings { dir, trust_domain: settings.trust_domain.clone(), ttl: settings.ttl };
        let ca = Arc::new(LocalCa::of_content(settings, &content, made).map_err(unfit)?);
        Ok(Self { cluster, secret, ca })
    }

    /// The Secret.
    #[must_use]
    pub fn secret(&self) -> &NamespacedName {
        &self.secret
    }

    /// Watches the Secret, for ever. While its content cannot be used, the last good authority stays in force.
    pub async fn follow(self) {
        let selection = Selection {
            namespace: Some(self.secret.namespace.to_string()),
            fields: Some(format!("metadata.name={}", self.secret.name)),
            labels: None,
        };
        let mut watch = Watch::new(self.cluster.clone(), SECRETS, selection);
        loop {
            match watch.next().await {
                Report::Applied(object) => self.take(&object),
                Report::Gone(_) => {
                    warn!(
                        secret = %self.secret,
                        "the Secret of the certificate authority was deleted; the last good authority stays in \
                         force until this process ends"
                    );
                }
                Report::Failed(failure) => warn!("{failure}; the last good authority stays in force"),
                Report::Synced | Report::Absent => {}
            }
        }
    }

    fn take(&self, object: &Object) {
        let taken = object.as_secret().ok_or_else(|| "its data cannot be read".to_owned()).and_then(|data| {
            let content = content(&self.secret, data).map_err(|error| error.to_string())?;
            self.ca.replace(&content).map_err(|error| causes(&error))
        });
        if let Err(error) = taken {
            warn!(
                secret = %self.secret, error,
                "the Secret does not hold a valid certificate authority; the last good authority stays in force"
            );
        }
    }
}

fn content(secret: &NamespacedName, mut data: SecretData) -> Result<Content, SecretCaError> {
    Content::of(|key| data.remove(key)).map_err(|missing| SecretCaError::Incomplete { secret: secret.clone(), missing })
}

/// Makes an authority, if this replica is the first. Returns the content of the Secret, and whether this replica has
/// made it.
async fn first(
    cluster: &Cluster,
    secret: &NamespacedName,
    settings: &SecretCaSettings,
) -> Result<(SecretData, bool), SecretCaError> {
    if let Some(data) = cluster.secret(secret).await? {
        return Ok((data, false));
    }
    let roots = NamespacedName::new(Arc::clone(&settings.namespace), Arc::clone(&settings.roots));
    let had_one = cluster.config_map(&roots).await?.is_some_and(|found| found.is_ours);
    let gone = || SecretCaError::Gone { namespace: Arc::clone(&settings.namespace), roots: roots.clone() };
    if had_one {
        // Another replica may have made the Secret and the ConfigMap meanwhile.
        return cluster.secret(secret).await?.map(|data| (data, false)).ok_or_else(gone);
    }
    let new = NewCa { trust_domain: settings.trust_domain.clone(), ttl: NewCa::TTL };
    let unfit = |source| SecretCaError::Unfit { secret: secret.clone(), source: Box::new(source) };
    let files = create::files(&new).map_err(unfit)?;
    let data: SecretData = files.into_iter().map(|(key, pem)| (key.to_owned(), pem.into_bytes())).collect();
    if cluster.create_secret(secret, &data).await? {
        info!(%secret, "created a certificate authority");
        return Ok((data, true));
    }
    // Another replica was first.
    let data = cluster.secret(secret).await?;
    data.map(|data| (data, false))
        .ok_or_else(|| SecretCaError::Incomplete { secret: secret.clone(), missing: layout::FILES.to_vec() })
}
