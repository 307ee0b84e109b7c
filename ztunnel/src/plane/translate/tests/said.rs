//! The content of the messages of a mesh.

use std::fmt::Write as _;

use prost::Message as _;

use crate::{
    control::manifests::tests::routing::mesh,
    istio::{
        discovery::DeltaDiscoveryResponse,
        security::{Action, Authorization, Match, MatchType, Scope, StringMatch},
        workload::{
            Address, AddressType, BalancingMode, HealthPolicy, NetworkMode, Service, TunnelProtocol, Visibility,
            Workload, WorkloadStatus,
        },
    },
    model::policy::UnreadPolicies,
    plane::{
        catalogue::{Catalogue, Change, Kind},
        translate::{Touched, Translator, policies},
    },
    store::snapshot::Snapshot,
};

/// The messages of a mesh, one line each, by type and name.
fn said(mesh: &Snapshot) -> String {
    let mut translator = Translator::new("c");
    let touched = Touched { is_whole: true, ..Touched::default() };
    shown(translator.translate(&Snapshot::default(), mesh, touched))
}

fn shown(changes: Vec<Change>) -> String {
    let mut catalogue = Catalogue::default();
    catalogue.apply(changes.clone(), true);
    let mut lines: Vec<String> = changes
        .into_iter()
        .filter(|change| matches!(change.kind, Kind::Address | Kind::Authorization))
        .filter_map(|change| change.resource)
        .map(|resource| {
            let response = DeltaDiscoveryResponse::decode(resource.encoded.clone()).unwrap();
            let [resource] = response.resources.as_slice() else { panic!("{response:?}") };
            let any = resource.resource.as_ref().unwrap();
            let text = match any.type_url.rsplit('/').next().unwrap() {
                "istio.workload.Address" => address(&Address::decode(any.value.clone()).unwrap()),
                _ => policy(&Authorization::decode(any.value.clone()).unwrap()),
            };
            let aliases: String = resource.aliases.iter().map(|alias| format!(" ={alias}")).collect();
            format!("{}{aliases}: {text}", resource.name)
        })
        .collect();
    lines.sort();
    lines.iter().fold(String::new(), |mut all, line| {
        writeln!(all, "{line}").unwrap();
        all
    })
}

fn address(address: &Address) -> String {
    match address.r#type.as_ref().unwrap() {
        AddressType::Workload(workload) => self::workload(workload),
        AddressType::Service(service) => self::service(service),
    }
}

fn bytes(address: &[u8]) -> String {
    address.iter().map(ToString::to_string).collect::<Vec<_>>().join(".")
}

fn workload(workload: &Workload) -> String {
    let Workload { name, namespace, addresses, trust_domain, service_account, node, workload_name, uid, .. } = workload;
    let addresses: Vec<_> = addresses.iter().map(|address| bytes(address)).collect();
    let mut text = format!(
        "{uid} {name}.{namespace} {trust_domain}/{service_account} on {node:?} of {workload_name} {addresses:?}"
    );
    if workload.tunnel_protocol == TunnelProtocol::Hbone as i32 {
        text += " HBONE";
    }
    if workload.status == WorkloadStatus::Unhealthy as i32 {
        text += " unhealthy";
    }
    if workload.network_mode == NetworkMode::HostNetwork as i32 {
        text += " host";
    }
    for (service, ports) in &workload.services {
        let ports: Vec<_> =
            ports.ports.iter().map(|port| format!("{}->{}", port.service_port, port.target_port)).collect();
        write!(text, " {service}[{}]", ports.join(",")).unwrap();
    }
    for policy in &workload.authorization_policies {
        write!(text, " policy {policy}").unwrap();
    }
    if let Some(capacity) = &workload.capacity {
        write!(text, " capacity {}", capacity.value).unwrap();
    }
    text
}

fn service(service: &Service) -> String {
    let addresses = service.addresses.iter().map(|it| match it.length {
        None => bytes(&it.address),
        Some(length) => format!("{}/{length}", bytes(&it.address)),
    });
    let addresses: Vec<_> = addresses.collect();
    let ports: Vec<_> =
        service.ports.iter().map(|port| format!("{}->{}", port.service_port, port.target_port)).collect();
    let mut text = format!("service {}.{} {addresses:?} [{}]", service.name, service.namespace, ports.join(","));
    if let Some(balancing) = &service.load_balancing {
        let mode = BalancingMode::try_from(balancing.mode).unwrap();
        let health = HealthPolicy::try_from(balancing.health_policy).unwrap();
        write!(text, " {mode:?}{:?} {health:?}", balancing.routing_preference).unwrap();
    }
    if service.canonical {
        text += " canonical";
    }
    if service.visibility == Visibility::Namespace as i32 {
        text += " private";
    }
    if !service.subject_alt_names.is_empty() {
        write!(text, " {:?}", service.subject_alt_names).unwrap();
    }
    text
}

fn policy(policy: &Authorization) -> String {
    let scope = Scope::try_from(policy.scope).unwrap();
    let action = Action::try_from(policy.action).unwrap();
    let rules = policy.rules.iter().map(|rule| {
        let clauses = rule.clauses.iter().map(|clause| {
            let matches: Vec<_> = clause.matches.iter().map(matched).collect();
            format!("({})", matches.join(" or "))
        });
        let clauses: Vec<_> = clauses.collect();
        if clauses.is_empty() { "any".to_owned() } else { clauses.join(" and ") }
    });
    let rules: Vec<_> = rules.collect();
    let dry = if policy.dry_run { " dry" } else { "" };
    format!("{action:?}{dry} {scope:?} {}/{} [{}]", policy.namespace, policy.name, rules.join(" | "))
}

fn matched(wanted: &Match) -> String {
    let mut parts = Vec::new();
    let mut texts = |name: &str, all: &[StringMatch]| {
        if !all.is_empty() {
            let all = all.iter().map(|text| match text.match_type.as_ref().unwrap() {
                MatchType::Exact(text) => text.clone(),
                MatchType::Prefix(text) => format!("{text}*"),
                MatchType::Suffix(text) => format!("*{text}"),
                MatchType::Presence(_) => "*".to_owned(),
            });
            parts.push(format!("{name}={}", all.collect::<Vec<_>>().join(",")));
        }
    };
    texts("ns", &wanted.namespaces);
    texts("!ns", &wanted.not_namespaces);
    texts("id", &wanted.principals);
    texts("!id", &wanted.not_principals);
    let mut more = |name: &str, all: Vec<String>| {
        if !all.is_empty() {
            parts.push(format!("{name}={}", all.join(",")));
        }
    };
    let nets = |all: &[crate::istio::security::Address]| {
        all.iter().map(|it| format!("{}/{}", bytes(&it.address), it.length)).collect()
    };
    more("ip", nets(&wanted.source_ips));
    more("!ip", nets(&wanted.not_source_ips));
    more("port", wanted.destination_ports.iter().map(ToString::to_string).collect());
    more("!port", wanted.not_destination_ports.iter().map(ToString::to_string).collect());
    let accounts = wanted.service_accounts.iter().map(|it| format!("{}/{}", it.namespace, it.service_account));
    more("sa", accounts.collect());
    parts.join(" ")
}

const POD: &str = "Pod demo/a labels: {app: a, istio.io/dataplane-mode: ambient} | spec: {nodeName: n1, serviceAccountName: sa-a, \
                   containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}, status: {podIPs: [{ip: 10.0.0.1}]}";
const SERVICE: &str = "Service demo/web | spec: {selector: {app: a}, clusterIP: 10.96.0.1, ports: [{name: p, port: 80, targetPort: \
                       http}, {name: q, port: 443, targetPort: 8443}]}";

/// Compares the messages of a mesh made of these lines with `expected`. Only messages whose line begins with one of
/// `of` count.
#[track_caller]
fn check(lines: &[&str], of: &[&str], expected: &str) {
    let all = said(&mesh(&lines.join("\n")));
    let found: Vec<&str> = all.lines().filter(|line| of.iter().any(|start| line.starts_with(start))).collect();
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(found, expected, "\n{}", found.join("\n"));
}

#[test]
fn pods_and_services_are_told_as_istiod_tells_them() {
    let lines = [
        POD,
        SERVICE,
        "Pod demo/b labels: {app: a} | spec: {hostNetwork: true}, status: {podIPs: [{ip: 10.1.0.1}], conditions: [{type: Ready, status: 'False'}]}",
        "Pod demo/done | status: {phase: Succeeded, podIPs: [{ip: 10.0.0.3}]}",
        "Pod demo/new labels: {istio.io/dataplane-mode: ambient}",
    ];
    check(
        &lines,
        &[""],
        r#"
        c//Pod/demo/a =/10.0.0.1: c//Pod/demo/a a.demo cluster.local/sa-a on "n1" of a ["10.0.0.1"] HBONE demo/web.demo.svc.cluster.local[80->8080,443->8443]
        c//Pod/demo/b: c//Pod/demo/b b.demo cluster.local/default on "" of b ["10.1.0.1"] unhealthy host demo/web.demo.svc.cluster.local[443->8443]
        demo/web.demo.svc.cluster.local =/10.96.0.1: service web.demo ["10.96.0.1"] [80->0,443->8443] canonical
        "#,
    );
}

#[test]
fn how_services_choose_endpoints_is_told() {
    check(
        &[
            POD,
            "Pod demo/unready labels: {app: u} | status: {podIPs: [{ip: 10.0.0.9}], conditions: [{type: Ready, status: 'False'}]}",
            "Service demo/all | spec: {selector: {app: u}, clusterIP: None, publishNotReadyAddresses: true, ports: [{port: 80}]}",
            "Service demo/local | spec: {selector: {app: a}, clusterIP: 10.96.0.2, internalTrafficPolicy: Local, ports: [{port: 80}]}",
            "Service demo/near | spec: {selector: {app: a}, clusterIP: 10.96.0.3, trafficDistribution: PreferClose, ports: [{port: 80}]}",
            "Service demo/own annotations: {networking.istio.io/exportTo: '.'} | spec: {selector: {app: a}, clusterIP: 10.96.0.4, ports: [{port: 80}]}",
            "Service demo/nobody annotations: {networking.istio.io/exportTo: '~'} | spec: {selector: {app: a}, clusterIP: 10.96.0.5, ports: [{port: 80}]}",
        ],
        &["demo/", "c//Pod/demo/u"],
        r#"
        c//Pod/demo/unready =/10.0.0.9: c//Pod/demo/unready unready.demo cluster.local/default on "" of unready ["10.0.0.9"] unhealthy demo/all.demo.svc.cluster.local[80->80]
        demo/all.demo.svc.cluster.local: service all.demo [] [80->80] Unspecified[] AllowAll canonical
        demo/local.demo.svc.cluster.local =/10.96.0.2: service local.demo ["10.96.0.2"] [80->80] Strict[4] OnlyHealthy canonical
        demo/near.demo.svc.cluster.local =/10.96.0.3: service near.demo ["10.96.0.3"] [80->80] Failover[1, 2] OnlyHealthy canonical
        demo/own.demo.svc.cluster.local =/10.96.0.4: service own.demo ["10.96.0.4"] [80->80] canonical private
        "#,
    );
}

#[test]
fn endpoints_outside_of_the_mesh_are_workloads_of_their_service() {
    let entry = "ServiceEntry demo/ext | spec: {hosts: [ext.example], addresses: [10.97.0.1, 10.98.0.0/16], ports: [{number: 443, name: t, \
                 protocol: TLS}], resolution: STATIC, subjectAltNames: ['spiffe://cluster.local/ns/x/sa/y'], endpoints: [{address: \
                 203.0.113.1, ports: {t: 8443}, weight: 3}, {address: 10.0.0.1}]}";
    let none = "ServiceEntry demo/any | spec: {hosts: [any.example], addresses: [10.99.0.0/16], ports: [{number: 443}], resolution: NONE}";
    check(
        &[POD, entry, none],
        &[""],
        r#"
        c//Pod/demo/a =/10.0.0.1: c//Pod/demo/a a.demo cluster.local/sa-a on "n1" of a ["10.0.0.1"] HBONE demo/ext.example[443->443]
        c/networking.istio.io/ServiceEntry/demo/ext/ext.example/203.0.113.1 =/203.0.113.1: c/networking.istio.io/ServiceEntry/demo/ext/ext.example/203.0.113.1 ext.demo cluster.local/default on "" of ext ["203.0.113.1"] demo/ext.example[443->8443] capacity 3
        demo/any.example: service any.demo ["10.99.0.0/16"] [443->443] Passthrough[] OnlyHealthy
        demo/ext.example =/10.97.0.1: service ext.demo ["10.97.0.1", "10.98.0.0/16"] [443->443] private ["spiffe://cluster.local/ns/x/sa/y"]
        "#,
    );
}

#[test]
fn policies_keep_their_scope_and_are_named_by_the_workloads_that_they_select() {
    let rules = "rules: [{from: [{source: {principals: ['cluster.local/ns/a/sa/*'], namespaces: [x]}}, {source: {notPrincipals: ['*/b']}}], \
                 to: [{operation: {ports: ['80']}}], when: [{key: source.ip, notValues: [10.0.0.0/8]}]}]";
    let own = format!(
        "AuthorizationPolicy demo/own | spec: {{selector: {{matchLabels: {{app: a}}}}, action: DENY, {rules}}}"
    );
    check(
        &[
            POD,
            &own,
            "AuthorizationPolicy demo/all | spec: {}",
            "AuthorizationPolicy istio-system/mesh | spec: {action: CUSTOM, provider: {name: p}, rules: [{}]}",
            "AuthorizationPolicy istio-system/picked | spec: {selector: {matchLabels: {app: a}}, action: ALLOW, rules: [{to: [{operation: {methods: [GET]}}]}]}",
            "AuthorizationPolicy demo/told | spec: {selector: {matchLabels: {app: a}}, action: AUDIT, rules: [{}]}",
            "AuthorizationPolicy demo/dry annotations: {istio.io/dry-run: 'true'} | spec: {action: DENY, rules: [{}]}",
        ],
        &[""],
        r#"
        c//Pod/demo/a =/10.0.0.1: c//Pod/demo/a a.demo cluster.local/sa-a on "n1" of a ["10.0.0.1"] HBONE policy demo/own policy istio-system/picked
        demo/all: Allow Namespace demo/all []
        demo/dry: Deny dry Namespace demo/dry [any]
        demo/own: Deny WorkloadSelector demo/own [(ns=x id=cluster.local/ns/a/sa/* or !id=*/b) and (port=80) and (!ip=10.0.0.0/8)]
        istio-system/mesh: Deny Global istio-system/mesh [any]
        istio-system/picked: Allow WorkloadSelector istio-system/picked []
        "#,
    );
}

#[test]
fn strict_mutual_tls_is_a_policy_against_clients_without_identity() {
    let own = "PeerAuthentication demo/own | spec: {selector: {matchLabels: {app: a}}, portLevelMtls: {8080: {mode: DISABLE}, 9090: {mode: STRICT}}}";
    let strict = "PeerAuthentication istio-system/default | spec: {mtls: {mode: STRICT}}";
    let other = "Pod demo/z | status: {podIPs: [{ip: 10.0.0.7}]}";
    let z = r#"c//Pod/demo/z =/10.0.0.7: c//Pod/demo/z z.demo cluster.local/default on "" of z ["10.0.0.7"]"#;
    let a = r#"c//Pod/demo/a =/10.0.0.1: c//Pod/demo/a a.demo cluster.local/sa-a on "n1" of a ["10.0.0.1"] HBONE"#;
    let static_strict = "istio-system/istio_converted_static_strict: Deny WorkloadSelector istio-system/istio_converted_static_strict [(!id=*)]";
    check(
        &[POD, other, strict],
        &[""],
        &format!(
            "{a} policy istio-system/istio_converted_static_strict\n{z} policy istio-system/istio_converted_static_strict\n{static_strict}"
        ),
    );
    check(
        &[POD, other, own],
        &[""],
        &format!(
            "{a} policy demo/converted_peer_authentication_own\n{z}\ndemo/converted_peer_authentication_own: Deny WorkloadSelector \
             demo/converted_peer_authentication_own [(!id=*) and (port=9090)]"
        ),
    );
    check(
        &[POD, other, own, strict],
        &[""],
        &format!(
            "{a} policy demo/converted_peer_authentication_own\n{z} policy istio-system/istio_converted_static_strict\n\
             demo/converted_peer_authentication_own: Deny WorkloadSelector demo/converted_peer_authentication_own [(!id=*) and \
             (!port=8080)]\n{static_strict}"
        ),
    );
}

#[test]
fn policies_of_services_hold_at_the_ports_to_which_these_lead() {
    let of = |name: &str, action: &str, service: &str| {
        format!(
            "AuthorizationPolicy demo/{name} | spec: {{targetRefs: [{{kind: Service, name: {service}}}], action: {action}, rules: [{{from: \
             [{{source: {{namespaces: [x]}}}}]}}]}}"
        )
    };
    let (allow, deny) = (of("allow", "ALLOW", "web"), of("deny", "DENY", "web"));
    let a = r#"c//Pod/demo/a =/10.0.0.1: c//Pod/demo/a a.demo cluster.local/sa-a on "n1" of a ["10.0.0.1"] HBONE demo/web.demo.svc.cluster.local[80->8080,443->8443]"#;
    check(
        &[POD, SERVICE, &allow, &deny],
        &["c", "demo/z"],
        &format!(
            "{a} policy demo/ztunnel_other_ports_8080_8443 policy demo/ztunnel_service_allow_8080_8443 policy \
             demo/ztunnel_service_deny_8080_8443\n\
             demo/ztunnel_other_ports_8080_8443: Allow WorkloadSelector demo/ztunnel_other_ports_8080_8443 [(!port=8080,8443)]\n\
             demo/ztunnel_service_allow_8080_8443: Allow WorkloadSelector demo/ztunnel_service_allow_8080_8443 [(ns=x) and \
             (port=8080,8443)]\n\
             demo/ztunnel_service_deny_8080_8443: Deny WorkloadSelector demo/ztunnel_service_deny_8080_8443 [(ns=x) and (port=8080,8443)]"
        ),
    );
    // Another ALLOW policy closes the other ports: nothing opens them.
    check(
        &[POD, SERVICE, &allow, "AuthorizationPolicy demo/all | spec: {}"],
        &["c", "demo/z"],
        &format!(
            "{a} policy demo/ztunnel_service_allow_8080_8443\n\
             demo/ztunnel_service_allow_8080_8443: Allow WorkloadSelector demo/ztunnel_service_allow_8080_8443 [(ns=x) and \
             (port=8080,8443)]"
        ),
    );
}

#[test]
fn policies_that_could_never_be_read_keep_everyone_out() {
    let of = |anywhere: bool, namespaces: &[&str]| UnreadPolicies {
        anywhere: anywhere.then(|| "a.yaml".into()),
        namespaces: namespaces.iter().map(|name| ((*name).into(), "b.yaml".into())).collect(),
    };
    let nothing = of(false, &[]);
    assert_eq!(
        shown(policies::unread(&nothing, &of(false, &["demo"]))),
        "demo/ztunnel_unread_policies: Deny Namespace demo/ztunnel_unread_policies [any]\n"
    );
    assert_eq!(
        shown(policies::unread(&nothing, &of(true, &["istio-system"]))),
        "istio-system/ztunnel_unread_policies: Deny Global istio-system/ztunnel_unread_policies [any]\n"
    );
    // The policy of the root namespace changes its scope between the two states, but exists all the time.
    let changes = policies::unread(&of(true, &["istio-system"]), &of(false, &["istio-system"]));
    let last = changes.iter().rfind(|change| &*change.name == "istio-system/ztunnel_unread_policies").unwrap();
    assert!(last.resource.is_some());
    assert!(policies::unread(&of(true, &[]), &nothing).iter().all(|change| change.resource.is_none()));
    assert!(policies::unread(&nothing, &nothing).is_empty());
}
