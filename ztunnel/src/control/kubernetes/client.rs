//! An API server, and the right to ask it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use thiserror::Error;

/// How long a connection may take to be there.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A connection on which nothing arrives for this long is given up. API servers end a watch earlier: see `watch`.
const SILENT: Duration = Duration::from_secs(150);

/// How the API server is found, and by what a caller proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// As a pod of the cluster: with the service account that is mounted into it. Its token is read again every minute.
    InCluster,
    /// As a file of `kubectl` says, whose current context counts. A `tokenFile` in it is read again every minute.
    Kubeconfig(PathBuf),
}

/// Why the API server can't be asked.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// This is no pod, or one without a service account.
    #[error(
        "cannot use the service account of this pod to reach the Kubernetes API: outside of a cluster give --kubeconfig FILE; in a \
         pod, automountServiceAccountToken must not be false"
    )]
    InCluster(#[source] InClusterError),
    /// The file can't be used.
    #[error("cannot use the kubeconfig {}: correct the file or --kubeconfig", file.display())]
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KubeconfigError,
    },
    /// Certificates, keys or tokens that it names can't be used.
    #[error("cannot make a client of the Kubernetes API at {server}: correct its certificates, key or token")]
    Client {
        /// The server.
        server: String,
        /// What is wrong.
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
    /// Makes a client; within a runtime. The API server is not asked for anything yet. Blocks on the file system.
    ///
    /// # Errors
    /// Names the file, or what is missing in the pod.
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
        // Each caller has its own pauses, and tells of its failures.
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
