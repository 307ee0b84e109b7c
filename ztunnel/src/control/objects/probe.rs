//! The ports to which a pod's kubelet connects, for probes and lifecycle hooks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, PodSpec, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The containers that run as long as the pod. An init container is one of them only if its restart policy is `Always`
/// (a native sidecar).
pub(super) fn running(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let stays = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(stays))
}

/// The TCP ports of all probes and lifecycle hooks, ascending. Ports of init containers count only if the container is
/// a native sidecar.
pub(super) fn ports(spec: &PodSpec, addresses: &[IpAddr]) -> Vec<u16> {
    let ports: BTreeSet<u16> = running(spec).flat_map(|container| of_container(container, addresses)).collect();
    ports.into_iter().collect()
}

fn of_container<'a>(container: &'a Container, addresses: &'a [IpAddr]) -> impl Iterator<Item = u16> + 'a {
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    let probes = probes.into_iter().flatten().map(Called::by_probe);
    let hooks = container.lifecycle.iter().flat_map(|lifecycle| [&lifecycle.post_start, &lifecycle.pre_stop]);
    let hooks = hooks.flatten().map(Called::by_hook);
    probes.chain(hooks).flat_map(|called| called.ports(container, addresses))
}

/// The destination of a probe or a hook.
struct Called<'a> {
    http: Option<&'a HTTPGetAction>,
    tcp: Option<&'a TCPSocketAction>,
    grpc: Option<i32>,
}

impl<'a> Called<'a> {
    fn by_probe(probe: &'a Probe) -> Self {
        let grpc = probe.grpc.as_ref().map(|action| action.port);
        Self { http: probe.http_get.as_ref(), tcp: probe.tcp_socket.as_ref(), grpc }
    }

    fn by_hook(hook: &'a LifecycleHandler) -> Self {
        Self { http: hook.http_get.as_ref(), tcp: hook.tcp_socket.as_ref(), grpc: None }
    }

    /// The ports at which the pod itself is called. A probe that names another host calls that host.
    fn ports(self, container: &Container, addresses: &[IpAddr]) -> impl Iterator<Item = u16> + use<> {
        let of_pod = |host: &Option<String>| {
            let host = host.as_deref().unwrap_or_default();
            host.is_empty() || host.parse().is_ok_and(|host: IpAddr| addresses.contains(&host.to_canonical()))
        };
        let http = self.http.filter(|action| of_pod(&action.host)).map(|action| &action.port);
        let tcp = self.tcp.filter(|action| of_pod(&action.host)).map(|action| &action.port);
        let resolved = |port: Option<&IntOrString>| port.and_then(|port| resolved(port, container));
        [resolved(http), resolved(tcp), self.grpc.and_then(number)].into_iter().flatten()
    }
}

/// The number of a port, as the kubelet determines it: the container's port of that name, or else the text as a number.
fn resolved(port: &IntOrString, container: &Container) -> Option<u16> {
    let name = match port {
        IntOrString::Int(value) => return number(*value),
        IntOrString::String(name) => name,
    };
    let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
    match named {
        Some(port) => number(port.container_port),
        None => number(name.parse().ok()?),
    }
}

fn number(value: i32) -> Option<u16> {
    u16::try_from(value).ok().filter(|port| *port != 0)
}
