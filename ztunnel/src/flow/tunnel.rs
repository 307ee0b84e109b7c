//! Makes the HBONE connections of a pod's pool: TCP from the pod's network namespace, then TLS with the pod's certificate.

use std::os::fd::AsFd as _;

use futures_util::future::LocalBoxFuture;
use thiserror::Error;
use tokio::{net::TcpStream, time::Instant};
use tracing::warn;

use super::{admission::NoMemory, table::Upstreams};
use crate::{
    hbone::{
        self, Cut, Windows,
        client::End,
        pool::{Connect, Connected, Key},
    },
    metrics::traffic::Traffic,
    model::{
        addr::canonical, cause::causes, close::CloseReason, flow::Direction, identity::SpiffeId, workload::Membership,
    },
    net::{
        buffer::BufferPool,
        dial::{DialError, Dialer, Dialled},
        memory::Account,
        socket,
    },
    store::snapshot::Snapshot,
    tls::{self, Peer, TlsStream},
};

/// Connects to the HBONE ports of other pods.
pub struct TunnelDialer {
    /// Connects from within the pod's network namespace.
    pub dialer: Dialer,
    /// The pod's side of TLS.
    pub tls: tls::Endpoint,
    /// The pod's upstream connections.
    pub upstreams: Upstreams,
    /// The worker's buffers.
    pub buffers: BufferPool,
    /// The pod's share of the daemon's memory.
    pub memory: Account,
    /// The HTTP/2 settings of HBONE connections.
    pub hbone: hbone::Settings,
    /// The counters.
    pub traffic: Traffic,
}

/// Why an HBONE connection to a pod could not be made.
#[derive(Debug, Error)]
pub enum TunnelDialError {
    /// The TCP connection failed.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// There is no memory for the windows.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// The TLS handshake failed, or the peer has an unexpected identity.
    #[error(transparent)]
    Tls(#[from] tls::ConnectError),
}

impl Connect for TunnelDialer {
    type Io = TlsStream<TcpStream>;
    type Error = TunnelDialError;

    async fn connect(&self, key: &Key) -> Result<Connected<Self::Io>, TunnelDialError> {
        // Checked first: without a certificate no handshake can succeed.
        self.tls.ready().await.map_err(tls::ConnectError::from)?;
        let windows = Windows::claim(&self.hbone, &self.memory.of_peer(key.to.ip())).ok_or(NoMemory)?;
        let begun = |local| (self.upstreams.register(canonical(local), key.to), canonical(local));
        let Dialled { stream, held: ((entry, local), place) } = self.dialer.upstream(key.to, key.from, begun).await?;
        // The last bytes have to arrive, so no reset on close. TLS distinguishes a regular end from a loss.
        socket::finish_on_close(&stream);
        let begun = Instant::now();
        let (io, peer) = self.tls.connect(stream, &key.expected, &self.buffers).await.inspect_err(|error| {
            self.traffic.handshake_failed(Direction::Outbound, error.label());
        })?;
        self.traffic.handshake(Direction::Outbound, begun.elapsed());
        let open = self.traffic.tunnel(Direction::Outbound);
        let (activity, local) = (io.activity(), Some(local));
        let guard = Box::new((entry, open, place));
        let (outdated, cut) = (outdated(&self.tls, &peer), cut(&self.tls, &peer, io.get_ref()));
        Ok(Connected {
            io,
            identity: peer.identity,
            expires: peer.expires,
            local,
            activity,
            windows,
            outdated,
            cut,
            guard,
        })
    }

    fn ended(&self, key: &Key, end: &End) {
        if let Some(abuse) = end.abuse() {
            self.traffic.abused(Direction::Outbound, abuse);
            warn!(to = %key.to, %end, "this node closed an HBONE connection to another pod");
        }
    }
}

/// Ready when an HBONE connection to this peer should take no new streams.
pub(super) fn outdated(tls: &tls::Endpoint, peer: &Peer) -> LocalBoxFuture<'static, ()> {
    let (tls, peer) = (tls.clone(), peer.clone());
    Box::pin(async move { tls.outdated(&peer).await })
}

/// Ready when an HBONE connection to this peer has to be broken. Bytes that wait to be sent are then discarded.
fn cut(tls: &tls::Endpoint, peer: &Peer, stream: &TcpStream) -> LocalBoxFuture<'static, Cut> {
    let (tls, peer) = (tls.clone(), peer.clone());
    // The HBONE connection owns the socket itself. If there is no second descriptor, the waiting bytes are still sent.
    let stream = stream.as_fd().try_clone_to_owned();
    Box::pin(async move {
        let cut = distrusted(&tls, &peer).await;
        if let Ok(stream) = &stream {
            socket::reset_on_close(stream);
        }
        cut
    })
}

/// Waits until the peer of an HBONE connection is not trusted any more.
pub(super) async fn distrusted(tls: &tls::Endpoint, peer: &Peer) -> Cut {
    let distrust = tls.distrusted(peer).await;
    Cut { reason: CloseReason::Distrusted, why: causes(&distrust) }
}

/// Whether an HBONE connection still leads to the same workload: the workload is in the mesh, and its identity is the one that
/// was expected. A peer with an identity that a ServiceEntry allows (`subjectAltNames`) also belongs to the workload, as long
/// as the workload's identity is the same.
#[must_use]
pub fn still_leads(mesh: &Snapshot, key: &Key, identity: &SpiffeId) -> bool {
    mesh.workload_at(key.to.ip()).is_some_and(|workload| {
        let is_who_it_was = key.expected.first() == Some(&workload.identity) && key.expected.contains(identity);
        workload.membership == Membership::InMesh && is_who_it_was
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Key, Snapshot, SpiffeId, still_leads};
    use crate::{
        control::manifests::{assemble, parse},
        model::identity::TrustDomain,
    };

    /// A mesh of one pod with this service account.
    fn mesh(account: &str) -> Snapshot {
        let file: Arc<str> = "pod.yaml".into();
        let text = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: web, labels: {{istio.io/dataplane-mode: ambient}}, annotations: \
             {{ambient.mesh/netns: /n}}}}, spec: {{serviceAccountName: {account}, containers: []}}, status: {{podIP: 10.0.0.1}}}}"
        );
        let assembled = assemble([(&file, &parse(&file, &text).unwrap())], &TrustDomain::default());
        Snapshot::build(1, assembled.workloads, assembled.services, assembled.problems)
    }

    #[test]
    fn a_tunnel_leads_to_whom_it_was_made_to_as_long_as_the_pod_is_the_same() {
        let identity = |account: &str| SpiffeId::new(TrustDomain::default(), "default", account);
        let expected = [identity("web"), identity("allowed")].into();
        let key = Key { to: "10.0.0.1:15008".parse().unwrap(), expected, from: None };
        assert!(still_leads(&mesh("web"), &key, &identity("web")));
        assert!(still_leads(&mesh("web"), &key, &identity("allowed")));
        assert!(!still_leads(&mesh("web"), &key, &identity("other")));
        assert!(!still_leads(&mesh("allowed"), &key, &identity("allowed")));
        let elsewhere = Key { to: "10.0.0.2:15008".parse().unwrap(), ..key };
        assert!(!still_leads(&mesh("web"), &elsewhere, &identity("web")));
    }
}
