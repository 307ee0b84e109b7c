//! The connection to an API server, with credentials.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use thiserror::Error;

/// How long a connect may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A connection on which nothing arrives for this long is closed. API servers end a watch earlier: see `watch`.
const SILENT: Duration = Duration::from_secs(150);

/// The source of the API server's address and of the credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// The service account that is mounted into this pod of the cluster. Its token is read again every minute.
    InCluster,
    /// The current context of a `kubectl` file. A `tokenFile` in it is read again every minute.
    Kubeconfig(PathBuf),
}

/// Why no client of the API server can be made.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The process does not run in a pod, or the pod has no service account.
    #[error(
        "cannot use the service account of this pod for the Kubernetes API; outside of a cluster give \
         --kubeconfig FILE; in a pod, automountServiceAccountToken must not be false"
    )]
    InCluster(#[source] InClusterError),
    /// The file can't be used.
    #[error("cannot use the kubeconfig {}: correct the file or --kubeconfig", file.display())]
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// The fault in the file.
        #[source]
        source: KubeconfigError,
    },
    /// The certificates, keys or tokens of the configuration can't be used.
    #[error("cannot make a client of the Kubernetes API at {server}: correct its certificates, key or token")]
    Client {
        /// The server.
        server: String,
        /// The fault.
        #[source]
        source: Box<kube::Error>,
    },
}

/// An API server. Clones share its connections.
#[derive(Clone)]
pub struct Cluster {
    pub(super) client: Client,
    pub(super) server: Arc<str>,
}

impl Cluster {
    /// Makes a client; needs a runtime. No request is sent yet. Blocks on the file system.
    ///
    /// # Errors
    /// The error names the file, or the missing part of the pod.
    pub async fn connect(access: &Access) -> Result<Self, ConnectError> {
        let mut config = match access {
            Access::InCluster => Config::incluster().map_err(ConnectError::InCluster)?,
            Access::Kubeconfig(file) => {
                let wrong = |source| ConnectError::Kubeconfig { file: file.clone(), source };
                let read = Kubeconfig::read_from(file).map_err(wrong)?;
                Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.map_err(wrong)?
            }
        };
        let server: Arc<str> = config.cluster_url.to_string().trim_end_matches('/').into();
        config.connect_timeout = Some(CONNECT_WITHIN);
        config.read_timeout = Some(SILENT);
        config.reset_reader_on_write = true;
        // The client does not retry: each caller has its own pauses, and reports its failures.
        config.default_retry = false;
        let client = Client::try_from(config);
        let client =
            client.map_err(|error| ConnectError::Client { server: server.to_string(), source: Box::new(error) })?;
        Ok(Self { client, server })
    }

    /// The API server's URL.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("server", &self.server).finish_non_exhaustive()
    }
}
