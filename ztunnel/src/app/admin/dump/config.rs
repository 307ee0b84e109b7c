//! The settings in `/config_dump`, by the names that Istio's ztunnel gives them. Keys that this daemon has no setting for are left out.

use std::net::SocketAddr;

use ebpf_common::HBONE_PORT;
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{
    config::{RunArgs, remote::PlaneMode},
    model::identity::TrustDomain,
};

/// The settings that tools show.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigInfo {
    /// The name of the cluster.
    pub cluster_id: String,
    /// The trust domain.
    #[serde(skip)]
    pub trust_domain: TrustDomain,
    local_node: String,
    proxy_mode: &'static str,
    proxy: bool,
    dns_proxy: bool,
    network: &'static str,
    num_worker_threads: u16,
    admin_addr: ListenAddress,
    stats_addr: ListenAddress,
    readiness_addr: ListenAddress,
    inbound_addr: String,
    xds_address: Option<String>,
    ca_address: Option<String>,
    xds_on_demand: bool,
    secret_ttl: Time,
    self_termination_deadline: Time,
}

/// An address as Istio's ztunnel writes it.
#[derive(Clone, Copy, Debug)]
struct ListenAddress(SocketAddr);

impl Serialize for ListenAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(address) = self;
        let mut map = serializer.serialize_map(Some(1))?;
        if address.ip().is_loopback() {
            // With IPv6 or without, and the port.
            map.serialize_entry("Localhost", &(address.is_ipv6(), address.port()))?;
        } else {
            map.serialize_entry("SocketAddr", &address.to_string())?;
        }
        map.end()
    }
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Time {
    secs: u64,
    nanos: u32,
}

impl ConfigInfo {
    /// This node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.local_node
    }

    /// The settings of a daemon.
    #[must_use]
    pub fn of(args: &RunArgs) -> Self {
        let url = args.plane.url.as_ref().map(ToString::to_string);
        Self {
            cluster_id: args.cluster_id.clone(),
            trust_domain: args.trust_domain.clone(),
            local_node: args.node.clone(),
            proxy_mode: "Shared",
            proxy: true,
            dns_proxy: false,
            network: "",
            num_worker_threads: args.worker_count(),
            admin_addr: ListenAddress(args.admin),
            stats_addr: ListenAddress(args.metrics),
            readiness_addr: ListenAddress(args.readiness),
            // In the network namespace of each pod.
            inbound_addr: format!("[::]:{HBONE_PORT}"),
            ca_address: url.clone().filter(|_| args.ca_dir.is_none() && args.cert_dir.is_none()),
            xds_address: url,
            xds_on_demand: args.plane.mode == PlaneMode::OnDemand,
            secret_ttl: Time { secs: args.cert_ttl.0, nanos: 0 },
            self_termination_deadline: Time { secs: args.drain_timeout.0, nanos: 0 },
        }
    }
}
