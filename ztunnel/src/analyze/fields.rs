//! Fields of Services, Namespaces and pods that do not affect routing here, and annotations that suppress findings.

use super::code::Code;
use super::declared::{ClusterAddress, HostPorts, Ingress, ServiceFields};
use super::finding::{Object, Report};
use super::index::{Mesh, list};
use super::pod::Pod;

/// Labels of a Namespace that make Istio inject sidecars into its pods.
const INJECTION: [&str; 2] = ["istio-injection", "istio.io/rev"];
/// The label of the mesh.
const MODE_LABEL: &str = "istio.io/dataplane-mode";

pub(super) fn check(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    namespaces(mesh, report);
    for service in &mesh.declared.services {
        let subject = Object { title: format!("Service {}", service.name), origin: &service.origin };
        addresses(mesh, service, &subject, report);
        others(mesh, service, &subject, report);
    }
    for pod in &mesh.declared.host_ports {
        host_ports(mesh, pod, report);
    }
    unknown_codes(mesh, report);
}

fn namespaces(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    for (name, namespace) in &mesh.declared.namespaces {
        let label = |key: &str| namespace.labels.get(key).map(|value| &**value);
        let is_injected = |key: &&str| match *key {
            "istio-injection" => label(key) == Some("enabled"),
            // With `istio-injection: disabled` a revision has no effect.
            _ => {
                label(key).is_some_and(|revision| !revision.is_empty()) && label("istio-injection") != Some("disabled")
            }
        };
        let Some(injected) = INJECTION.iter().find(|key| is_injected(key)) else { continue };
        // A revision alone selects the control plane that serves an ambient namespace.
        if label(MODE_LABEL) != Some("ambient") || *injected != "istio-injection" {
            continue;
        }
        let message = format!(
            "has the labels {injected}: enabled and {MODE_LABEL}: ambient: pods that get a sidecar are not enrolled, and pods without \
             one are"
        );
        let remedy = format!("remove the label {injected}, and restart the pods that have a sidecar");
        let subject = Object { title: format!("Namespace {name}"), origin: &namespace.origin };
        report.add(Code::InjectionAndAmbient, &subject, message, remedy);
    }
}

fn addresses(mesh: &Mesh<'_>, service: &ServiceFields, subject: &Object<'_>, report: &mut Report<'_>) {
    match &service.address {
        ClusterAddress::Alias(target) => {
            let message = format!(
                "is an alias in DNS for {target}: clients connect to the addresses of that name, and no policy or ServiceEntry that \
                 names this Service applies"
            );
            report.add(Code::ExternalName, subject, message, format!("write policies and ServiceEntries for {target}"));
        }
        // Manifests written by hand leave the choice to the cluster. Only a manifest that a daemon reads needs the
        // address.
        ClusterAddress::Absent if mesh.behind(&service.name).any(|pod| !pod.is_planned()) => {
            let message = "has no clusterIP in its manifest, so a daemon that reads this manifest does not know its address: \
                           connections to that address are passed on in plaintext, without a tunnel";
            let remedy = "export the Service from the cluster (kubectl get service -o yaml), so that spec.clusterIPs is filled in";
            report.add(Code::ServiceAddressUnknown, subject, message, remedy);
        }
        ClusterAddress::Absent | ClusterAddress::Given | ClusterAddress::Headless => {}
    }
}

fn others(mesh: &Mesh<'_>, service: &ServiceFields, subject: &Object<'_>, report: &mut Report<'_>) {
    let is_inside = || mesh.behind(&service.name).any(|pod| pod.is_inside());
    let mut others: Vec<String> = Vec::new();
    others.extend(service.external_ips.iter().map(|address| format!("spec.externalIPs {address}")));
    for Ingress { address, is_proxy } in &service.load_balancer {
        match (*is_proxy, service.has_source_ranges) {
            (true, _) => others.push(format!("status.loadBalancer.ingress {address} with ipMode Proxy")),
            (false, true) => others.push(format!(
                "status.loadBalancer.ingress {address} with spec.loadBalancerSourceRanges, which the nodes check"
            )),
            (false, false) => {}
        }
    }
    match service.node_ports.as_slice() {
        [] if &*service.type_ == "NodePort" => others.push("its node ports".to_owned()),
        [] if &*service.type_ == "LoadBalancer" && service.load_balancer.is_empty() => {
            others.push("its load balancer".to_owned());
        }
        ports => others.extend(ports.iter().map(|port| format!("nodePort {port}"))),
    }
    if !others.is_empty() && is_inside() {
        let message = format!(
            "its pods are in the mesh, and it has other addresses than its clusterIP ({}): connections to these reach the pods in \
             plaintext, also from pods of the mesh (externalIPs: from pods of other namespaces)",
            list(others.iter())
        );
        let remedy = "have pods of the mesh use the name of the Service, or set mTLS mode STRICT for its pods, which refuses plaintext";
        report.add(Code::ServiceOtherAddress, subject, message, remedy);
    }
    if service.session_affinity && is_inside() {
        let message = "sessionAffinity: ClientIP keeps a client at one pod as long as the ready endpoints stay the same: \
                       timeoutSeconds has no effect";
        report.add(Code::SessionAffinity, subject, message, "keep no state of clients in the pods for longer");
    }
}

fn host_ports(mesh: &Mesh<'_>, found: &HostPorts, report: &mut Report<'_>) {
    let is_it = |pod: &&Pod<'_>| pod.kind() == &*found.kind && pod.name == found.name;
    let pod = mesh.in_namespace(&found.name.namespace).iter().find(is_it);
    if pod.is_some_and(Pod::is_inside) {
        let ports: Vec<String> = found.ports.iter().map(ToString::to_string).collect();
        let message = format!(
            "has hostPort {}: connections to that port of the node reach the pod in plaintext, also from pods of the mesh",
            ports.join(", ")
        );
        let remedy = "remove the hostPort, or set mTLS mode STRICT for the pod, which refuses plaintext";
        let subject = Object { title: format!("{} {}", found.kind, found.name), origin: &found.origin };
        report.add(Code::HostPort, &subject, message, remedy);
    }
}

fn unknown_codes(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    for ignored in &mesh.declared.ignored {
        for code in ignored.codes.iter().filter(|code| *code != "*" && Code::find(code).is_none()) {
            let meant = mesh.nearest.find(code, Code::ALL.iter().map(|code| code.code()));
            let remedy = match meant {
                Some(meant) => format!("is {meant} meant?"),
                None => Code::UnknownCode.remedy().to_owned(),
            };
            let message = format!("its annotation suppresses the code {code:?}, which does not exist");
            let subject = Object { title: ignored.object.clone(), origin: &ignored.origin };
            report.add(Code::UnknownCode, &subject, message, remedy);
        }
    }
}
