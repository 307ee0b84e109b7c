//! The destination of a stream: the proof that it is this pod, and the port of the application.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ebpf_common::HBONE_PORT;
use http::StatusCode;
use thiserror::Error;

use super::decide::{check_peer, is_carried, own_endpoints, service_behind};
use crate::{
    model::{
        addr::{PeerAddr, canonical},
        close::CloseReason,
        identity::SpiffeId,
        service::Service,
        workload::{NamespacedName, Workload},
    },
    store::snapshot::Snapshot,
    wire::connect::Authority,
};

/// Ports to which no stream may go, as in Istio: they belong to the data plane.
const RESERVED_PORTS: [u16; 3] = [15001, 15006, HBONE_PORT];

/// Where a stream into a pod goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The application's address.
    pub to: SocketAddr,
    /// The workload at the peer's address, if it has the identity that the peer has proved.
    pub source: Option<Arc<Workload>>,
    /// The pod.
    pub destination: Option<Arc<Workload>>,
    /// The service that the client named, or else a service that leads to this port of the pod.
    pub service: Option<Arc<Service>>,
}

/// Why a stream is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// The requested address is not the address at which the HBONE connection arrived.
    #[error("{asked} is not an address of this pod: the HBONE connection was made to {local}")]
    NotThisPod {
        /// The requested address.
        asked: SocketAddr,
        /// The address at which the HBONE connection arrived.
        local: IpAddr,
    },
    /// Port 0 does not exist.
    #[error("port 0 does not exist")]
    NoPort,
    /// The port belongs to the mesh itself.
    #[error("port {0} is reserved for HBONE")]
    Reserved(u16),
    /// A connection to the application can't come from the peer's address.
    #[error("{peer} cannot be the address of a client")]
    Peer {
        /// The address.
        peer: IpAddr,
        /// The close reason.
        reason: CloseReason,
    },
    /// The pod has left the mesh's sources.
    #[error("the mesh has no Pod {0} (any more)")]
    UnknownPod(NamespacedName),
    /// No service has this name, or the pod's namespace does not know it.
    #[error("the namespace of the pod sees no service {0:?}")]
    UnknownHost(String),
    /// The pod is not behind the service, or does not serve the port.
    #[error("Pod {pod} is not an endpoint of {host:?}, port {port}")]
    NotAnEndpoint {
        /// The pod.
        pod: NamespacedName,
        /// The service.
        host: String,
        /// The service's port.
        port: u16,
    },
}

impl TargetError {
    /// The status of the answer to the peer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotThisPod { .. } | Self::NoPort => StatusCode::BAD_REQUEST,
            Self::Reserved(_)
            | Self::Peer { .. }
            | Self::UnknownPod(_)
            | Self::UnknownHost(_)
            | Self::NotAnEndpoint { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The reason in logs and metrics.
    #[must_use]
    pub fn reason(&self) -> CloseReason {
        match self {
            Self::NotThisPod { .. } => CloseReason::NotThisPod,
            Self::NoPort => CloseReason::BadRequest,
            Self::Reserved(_) => CloseReason::Recursive,
            Self::Peer { reason, .. } => *reason,
            Self::UnknownPod(_) => CloseReason::LocalFault,
            Self::UnknownHost(_) | Self::NotAnEndpoint { .. } => CloseReason::NoHealthyUpstream,
        }
    }
}

/// Decides where a stream into `pod` goes.
///
/// `local` is the address at which the HBONE connection arrived. `peer` and `identity` belong to its client. `authority` is the
/// requested destination, and `forwarded_host` the service that the client's application had requested.
///
/// # Errors
/// Why the stream is refused.
pub fn target(
    snapshot: &Snapshot,
    local: SocketAddr,
    peer: PeerAddr,
    identity: &SpiffeId,
    authority: &Authority,
    forwarded_host: Option<&str>,
    pod: &NamespacedName,
) -> Result<Target, TargetError> {
    let local = canonical(local).ip();
    let destination = snapshot.workload(pod).ok_or_else(|| TargetError::UnknownPod(pod.clone()))?;
    let (port, service) = match authority {
        Authority::Address(asked) => {
            let asked = canonical(*asked);
            if asked.ip() != local || !is_carried(local) {
                return Err(TargetError::NotThisPod { asked, local });
            }
            (asked.port(), service_behind(snapshot, pod, asked.port(), forwarded_host))
        }
        Authority::Host { host, port } => {
            let (service, port) = by_hostname(snapshot, destination, local, host, *port)?;
            (port, Some(service))
        }
    };
    if port == 0 {
        return Err(TargetError::NoPort);
    }
    if RESERVED_PORTS.contains(&port) {
        return Err(TargetError::Reserved(port));
    }
    check_peer(peer.ip()).map_err(|reason| TargetError::Peer { peer: peer.ip(), reason })?;
    // An address alone proves nothing: another pod may have it now, or it may be forged.
    let source = snapshot.workload_at(peer.ip()).filter(|workload| workload.identity == *identity);
    Ok(Target {
        to: SocketAddr::new(local, port),
        source: source.cloned(),
        destination: Some(Arc::clone(destination)),
        service: service.cloned(),
    })
}

/// The service with this host name, and the port of this pod behind it. A service of the pod's own namespace takes precedence.
fn by_hostname<'a>(
    snapshot: &'a Snapshot,
    pod: &Workload,
    local: IpAddr,
    host: &str,
    port: u16,
) -> Result<(&'a Arc<Service>, u16), TargetError> {
    let namespace = &pod.name.namespace;
    let named = snapshot.services_named(host).iter().filter(|service| service.is_visible_to(namespace));
    let Some(service) = named.min_by_key(|service| service.name.namespace != *namespace) else {
        return Err(TargetError::UnknownHost(excerpt(host)));
    };
    let serving =
        own_endpoints(service, pod).filter_map(|endpoint| Some((endpoint.address, endpoint.ports.get(port)?)));
    let found = serving.min_by_key(|(address, _)| *address != local);
    let (_, target) =
        found.ok_or_else(|| TargetError::NotAnEndpoint { pod: pod.name.clone(), host: excerpt(host), port })?;
    Ok((service, target))
}

/// The part of a host name that is shown in an error.
fn excerpt(host: &str) -> String {
    host.chars().take(253).collect()
}
