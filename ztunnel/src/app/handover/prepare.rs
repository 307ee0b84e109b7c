//! Everything that takes time before a daemon can take over.

use std::{collections::HashMap, time::Duration};

use futures_util::future::join_all;
use tracing::warn;

use super::ask::{Predecessor, TakeOverError};
use crate::{
    identity::{cache::Certificates, handle::CertHandle},
    pods::{
        local::{LocalSource, known},
        reconcile,
    },
    store::publish::Reader,
};

/// Time for the first certificates of the pods.
const CERTIFICATES: Duration = Duration::from_secs(20);

/// The pods of the daemon that runs, which has stopped all changes.
pub struct Before {
    /// Number of its enrolled pods.
    pub pods: usize,
    /// By cookie: number of connections of a pod from before its enrolment.
    pub connections: HashMap<u64, usize>,
    /// The certificates of the pods, kept fresh until the pods have them.
    _certificates: Vec<CertHandle>,
}

/// Reads the mesh and gets the certificates of the pods while the other daemon serves, and then has it stop all changes. `None`: the
/// other daemon has ended meanwhile.
///
/// # Errors
/// The other daemon has aborted the handover.
pub async fn prepare(
    node: &str,
    predecessor: &mut Predecessor,
    mesh: &Reader,
    local: &mut dyn LocalSource,
    certificates: &Certificates,
) -> Result<Option<Before>, TakeOverError> {
    let prepared = async {
        known(mesh, local).await;
        let facts = local.current().unwrap_or_default();
        let wanted = reconcile::wanted(&mesh.load(), node, &facts, |pod| local.missing_netns(pod));
        let identities = wanted.into_values().filter_map(Result::ok).map(|desired| desired.identity);
        let handles: Vec<_> = identities.map(|identity| certificates.handle(identity)).collect();
        let asked = handles.iter().map(|handle| handle.credentials(CERTIFICATES));
        let missing = join_all(asked).await.iter().filter(|asked| asked.is_err()).count();
        if missing > 0 {
            warn!(
                missing,
                of = handles.len(),
                "some certificates have not been issued yet; the pods are taken over without waiting for them"
            );
        }
        handles
    };
    let certificates = tokio::select! {
        handles = prepared => handles,
        given_up = predecessor.given_up() => {
            given_up?;
            return Ok(None);
        }
    };
    let frozen = predecessor.begin().await?;
    Ok(frozen.map(|(pods, connections)| Before { pods, connections, _certificates: certificates }))
}
