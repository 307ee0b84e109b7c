//! The ports at which a pod's kubelet asks how the pod is.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The TCP ports of all probes, ascending. Init containers have probes only when they go on running beside the others.
pub(super) fn ports(spec: &PodSpec) -> Vec<u16> {
    let stays = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let init = spec.init_containers.iter().flatten().filter(stays);
    let ports: BTreeSet<u16> = spec.containers.iter().chain(init).flat_map(of_container).collect();
    ports.into_iter().collect()
}

fn of_container(container: &Container) -> impl Iterator<Item = u16> + '_ {
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    probes.into_iter().flatten().flat_map(|probe| of_probe(probe, container))
}

/// A probe that names a host asks there, and not at the pod.
fn of_probe<'a>(probe: &'a Probe, container: &'a Container) -> impl Iterator<Item = u16> + 'a {
    let of_pod = |host: &Option<String>| host.as_ref().is_none_or(String::is_empty);
    let http = probe.http_get.as_ref().filter(|action| of_pod(&action.host)).map(|action| &action.port);
    let tcp = probe.tcp_socket.as_ref().filter(|action| of_pod(&action.host)).map(|action| &action.port);
    let grpc = probe.grpc.as_ref().and_then(|action| number(action.port));
    http.into_iter().chain(tcp).filter_map(|port| resolved(port, container)).chain(grpc)
}

/// As the kubelet does it: the container's port of that name, or else the number that the text is.
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
