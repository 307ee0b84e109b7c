//! Workloads, services and policies as lines of text.

use std::fmt::{Display, Write};

use crate::model::local::{Exclusions, LocalPod};
use crate::model::locality::{Distribution, Locality};
use crate::model::policy::{AuthorizationPolicy, Match, MtlsMode, Part, PeerAuthentication, Rule, Scope};
use crate::model::service::{Addressing, Health, Resolution, Service, ServiceKind, TargetPort, Visibility};
use crate::model::workload::{Membership, Workload};

pub(super) fn show_workload(out: &mut String, workload: &Workload, local: &LocalPod) {
    let Workload { name, identity, addresses, .. } = workload;
    let LocalPod { netns, exclusions, probe_ports, .. } = local;
    let kind = if workload.is_entry { "workload" } else { "pod" };
    write!(out, "{kind} {name} sa={}", identity.service_account).unwrap();
    if let Some(node) = &workload.node {
        write!(out, " node={node}").unwrap();
    }
    for address in addresses {
        write!(out, " {address}").unwrap();
    }
    if let Some(netns) = netns {
        write!(out, " netns={}", netns.path().display()).unwrap();
    }
    for port in &workload.ports {
        write!(out, " {}={}", port.name, port.number).unwrap();
    }
    out.push_str(match workload.membership {
        Membership::InMesh => " in mesh",
        Membership::NotLabelled => " not labelled",
        Membership::OptedOut => " opted out",
        Membership::Refused(_) => " refused:",
    });
    if let Membership::Refused(reason) = workload.membership {
        write!(out, " {reason:?}").unwrap();
    }
    if !probe_ports.is_empty() {
        write!(out, " probes={probe_ports:?}").unwrap();
    }
    if !workload.node_addresses.is_empty() {
        write!(out, " host={:?}", workload.node_addresses).unwrap();
    }
    if !workload.ready {
        out.push_str(" unready");
    }
    if workload.leaving {
        out.push_str(" leaving");
    }
    if *exclusions != Exclusions::default() {
        let Exclusions { outbound_ports, outbound_cidrs, inbound_ports, all_inbound } = exclusions;
        write!(out, " exclude out={outbound_ports} {outbound_cidrs:?} in={inbound_ports}").unwrap();
        out.push_str(if *all_inbound { " all in" } else { "" });
    }
    out.push('\n');
}

pub(super) fn show_service(out: &mut String, service: &Service) {
    write!(out, "{} {}", if service.kind == ServiceKind::Entry { "entry" } else { "service" }, service.name).unwrap();
    if service.kind == ServiceKind::Entry {
        write!(out, " {}", service.hostname).unwrap();
    }
    for vip in &service.vips {
        write!(out, " {vip}").unwrap();
    }
    for external in &service.external {
        write!(out, " +{}{}", external.address, if external.leads_everyone { "" } else { " for its namespace" })
            .unwrap();
    }
    match &service.addressing {
        Addressing::Unknown => out.push_str(" somewhere"),
        Addressing::Alias(host) => write!(out, " alias of {host}").unwrap(),
        Addressing::Given | Addressing::Headless => {}
    }
    if service.is_sticky {
        out.push_str(" sticky");
    }
    for port in &*service.ports {
        match &port.target {
            TargetPort::Number(number) => write!(out, " {}->{number}", port.port).unwrap(),
            TargetPort::Name(name) => write!(out, " {}->{name}", port.port).unwrap(),
        }
    }
    service.ranges.iter().for_each(|range| write!(out, " {range}").unwrap());
    service.identities.iter().for_each(|identity| write!(out, " {identity}").unwrap());
    if service.resolution == Resolution::Passthrough {
        out.push_str(" passes through");
    }
    match service.distribution {
        Distribution::Any => {}
        Distribution::ONLY_SAME_NODE => out.push_str(" same node only"),
        Distribution::Require(scopes) => write!(out, " only {scopes:?}").unwrap(),
        Distribution::Prefer(scopes) => write!(out, " prefer {scopes:?}").unwrap(),
    }
    if let Visibility::Namespaces(namespaces) = &service.visibility {
        write!(out, " for [{}]", namespaces.join(" ")).unwrap();
    }
    out.push('\n');
    for endpoint in service.endpoints.iter() {
        write!(out, "  {}", endpoint.address).unwrap();
        for (port, target) in &endpoint.ports {
            write!(out, " {port}->{target}").unwrap();
        }
        out.push_str(match endpoint.health {
            Health::Ready => "",
            Health::Draining => " draining",
            Health::Unready => " unready",
        });
        if endpoint.weight != 1 {
            write!(out, " weight={}", endpoint.weight).unwrap();
        }
        if let (None, Some(node)) = (&endpoint.workload, &endpoint.node) {
            write!(out, " node={node}").unwrap();
        }
        let Locality { region, zone, subzone } = &endpoint.locality;
        if !(region.is_empty() && zone.is_empty()) {
            write!(out, " in {region}/{zone}/{subzone}").unwrap();
        }
        if let Some(workload) = &endpoint.workload {
            write!(out, " {workload}").unwrap();
        }
        out.push('\n');
    }
}

/// `ALLOW demo/web for namespace demo: RULE; RULE`.
pub(super) fn show_authorization(out: &mut String, policy: &AuthorizationPolicy) {
    let dry_run = if policy.dry_run { " in dry-run" } else { "" };
    let rules: Vec<String> = policy.rules.iter().map(rule).collect();
    let (action, scope) = (policy.action.name(), scope(&policy.scope));
    writeln!(out, "{action} {} for {scope}{dry_run}: {}", policy.name, rules.join("; ")).unwrap();
}

/// `mtls demo/web for namespace demo: STRICT, 80=-`.
pub(super) fn show_authentication(out: &mut String, policy: &PeerAuthentication) {
    let mode = |mode: Option<MtlsMode>| mode.map_or("-", MtlsMode::name);
    write!(out, "mtls {} for {}: {}", policy.name, scope(&policy.scope), mode(policy.mode)).unwrap();
    policy.ports.iter().for_each(|(port, of_port)| write!(out, ", {port}={}", mode(*of_port)).unwrap());
    policy.created.iter().for_each(|created| write!(out, " of {created}").unwrap());
    out.push('\n');
}

fn scope(scope: &Scope) -> String {
    match scope {
        Scope::Mesh => "mesh".to_owned(),
        Scope::Namespace(namespace) => format!("namespace {namespace}"),
        Scope::Selector { namespace, labels } => {
            format!("{labels} in {}", namespace.as_deref().unwrap_or("any namespace"))
        }
        Scope::Services(services) => format!("services {}", joined(services)),
    }
}

/// `from MATCH or MATCH, when[0] MATCH, unjudged: FIELDS`; `anything` if there are no clauses.
fn rule(rule: &Rule) -> String {
    let clauses = rule.clauses.iter().map(|clause| {
        let part = match clause.part {
            Part::From => "from".to_owned(),
            Part::To => "to".to_owned(),
            Part::When(index) => format!("when[{index}]"),
        };
        let matches: Vec<String> = clause.matches.iter().map(one_match).collect();
        format!("{part} {}", matches.join(" or "))
    });
    let mut parts: Vec<String> = clauses.collect();
    if parts.is_empty() {
        parts.push("anything".to_owned());
    }
    if !rule.unjudged.is_empty() {
        parts.push(format!("unjudged: {}", rule.unjudged.join(" ")));
    }
    parts.join(", ")
}

fn one_match(found: &Match) -> String {
    let Match {
        principals,
        not_principals,
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        trust_domains,
        not_trust_domains,
        source_ips,
        not_source_ips,
        destination_ips,
        not_destination_ips,
        destination_ports,
        not_destination_ports,
    } = found;
    let fields = [
        ("principal", joined(principals), joined(not_principals)),
        ("namespace", joined(namespaces), joined(not_namespaces)),
        ("account", joined(service_accounts), joined(not_service_accounts)),
        ("domain", joined(trust_domains), joined(not_trust_domains)),
        ("source", joined(source_ips), joined(not_source_ips)),
        ("address", joined(destination_ips), joined(not_destination_ips)),
        ("port", joined(destination_ports), joined(not_destination_ports)),
    ];
    let mut shown = Vec::new();
    for (name, is, is_not) in fields {
        shown.extend((!is.is_empty()).then(|| format!("{name}={is}")));
        shown.extend((!is_not.is_empty()).then(|| format!("{name}!={is_not}")));
    }
    shown.join(" ")
}

fn joined(values: &[impl Display]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join("|")
}
