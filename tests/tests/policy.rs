//! AuthorizationPolicy between pods of the mesh, through HBONE, over both families, on one node and across two nodes. Both
//! nodes report a refusal in the same way and count it.

use anyhow::{Context, Result, ensure};
use ebpf_common::HBONE_PORT;
use serde_json::json;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::ca;
use ztunnel_tests::hbone::Caller;
use ztunnel_tests::hbone::peer::HbonePeer;
use ztunnel_tests::mesh::{GROUP_LABEL, Mesh, PodManifest};
use ztunnel_tests::policy::{DECISIONS, admitted, authorization, decisions, denied, denied_plaintext, dry_run, told};
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Shape};
use ztunnel_tests::wait;

/// Two nodes; `other-a` is in its own namespace.
const NODES: &Shape<'static> = &[("node-a", &["client-a", "web-a", "other-a"]), ("node-b", &["client-b", "web-b"])];

const OTHER: &str = "other";

const CLIENTS: [&str; 3] = ["client-a", "client-b", "other-a"];
const WEBS: [&str; 2] = ["web-a", "web-b"];
const PORTS: [u16; 2] = [7000, 7001];

/// Pods of both nodes are enrolled, with an echo at each port of each web and without a policy.
struct Stage {
    servers: Vec<Server>,
    bed: Testbed,
}

impl Stage {
    /// The daemons read the manifests.
    fn new() -> Result<Self> {
        Self::by(|_| Ok(()))
    }

    /// The daemons use a control plane, which reads the manifests.
    fn with_control_plane() -> Result<Self> {
        Self::by(|bed| bed.start_control_plane("node-a"))
    }

    fn by(source: impl FnOnce(&mut Testbed) -> Result<()>) -> Result<Self> {
        let mut bed = Testbed::new(NODES)?;
        bed.mesh.labelled_namespace(OTHER)?;
        bed.mesh.pod(&PodManifest::of(bed.pod("other-a")?).namespace(OTHER))?;
        source(&mut bed)?;
        bed.start("node-a")?;
        bed.start("node-b")?;
        if bed.plane().is_ok() {
            // The node's manifest of the pod, in the same namespace as in the mesh.
            let own = Mesh::new(&bed.topology.folder.join("pods-node-a"))?;
            own.pod(&PodManifest::of(bed.pod("other-a")?).namespace(OTHER))?;
        }
        bed.enrol()?;
        let mut servers = Vec::new();
        for (web, port) in WEBS.iter().flat_map(|web| PORTS.map(|port| (web, port))) {
            for family in Family::BOTH {
                servers.push(Server::echo(bed.pod(web)?, bed.pod(web)?.at(family, port))?);
            }
        }
        Ok(Self { servers, bed })
    }

    /// The number of connections that all servers have accepted.
    fn accepted(&self) -> usize {
        self.servers.iter().map(Server::accepted).sum()
    }

    /// With these policies, a web accepts exactly the connections of `allowed` (`client:port`). The others are refused with a
    /// reason that begins with `reason`.
    fn exactly(&self, web: &str, policies: &str, allowed: &[&str], reason: &str) -> Result<()> {
        self.bed.change(|mesh| mesh.policy("case", policies))?;
        self.checked(web, policies, allowed, reason)
    }

    /// The same, with policies that are already in force.
    fn checked(&self, web: &str, policies: &str, allowed: &[&str], reason: &str) -> Result<()> {
        for (client, port) in CLIENTS.iter().flat_map(|client| PORTS.map(|port| (*client, port))) {
            for family in Family::BOTH {
                let target = self.bed.pod(web)?.at(family, port);
                let what = || format!("{client} to {web} at {target} with\n{policies}");
                if allowed.contains(&format!("{client}:{port}").as_str()) {
                    admitted(self.bed.pod(client)?, target).with_context(what)?;
                    continue;
                }
                let seen = self.accepted();
                let told = denied(&self.bed, (client, web), target).with_context(what)?;
                ensure!(told.starts_with(reason), "{told:?} does not begin with {reason:?}: {}", what());
                ensure!(self.accepted() == seen, "the server saw a refused connection: {}", what());
            }
        }
        Ok(())
    }

    /// The same for both webs.
    fn everywhere(&self, policies: &str, allowed: &[&str], reason: &str) -> Result<()> {
        self.bed.change(|mesh| mesh.policy("case", policies))?;
        WEBS.iter().try_for_each(|web| self.checked(web, policies, allowed, reason))
    }
}

const EVERYONE: [&str; 6] =
    ["client-a:7000", "client-a:7001", "client-b:7000", "client-b:7001", "other-a:7000", "other-a:7001"];

fn allow_by_who_the_client_is(stage: &Stage) -> Result<()> {
    let none = "no ALLOW policy matched: demo/case";
    let (one, both) = (["client-a:7000", "client-a:7001"], ["client-a", "client-b"]);
    let both: Vec<String> = both.iter().flat_map(|client| PORTS.map(|port| format!("{client}:{port}"))).collect();
    let (both, other) =
        (both.iter().map(String::as_str).collect::<Vec<_>>(), ["other-a:7000".to_owned(), "other-a:7001".to_owned()]);
    let other: Vec<&str> = other.iter().map(String::as_str).collect();
    let cases: [(&str, &[&str]); 8] = [
        ("serviceAccounts: [client-a]", &one),
        ("serviceAccounts: [other/other-a]", &other),
        ("namespaces: [other]", &other),
        ("notNamespaces: [other]", &both),
        ("principals: [cluster.local/ns/demo/sa/client-a]", &one),
        ("principals: [cluster.local/ns/demo/*]", &both),
        ("principals: ['*/sa/other-a']", &other),
        ("notPrincipals: ['*/sa/other-a'], principals: ['*']", &both),
    ];
    for (source, allowed) in cases {
        let spec = format!("{{rules: [{{from: [{{source: {{{source}}}}}]}}]}}");
        stage.everywhere(&authorization("case", &spec), allowed, none)?;
    }
    // A principal with the scheme `spiffe://` matches nothing.
    let scheme = "{rules: [{from: [{source: {principals: ['spiffe://cluster.local/ns/demo/sa/client-a']}}]}]}";
    stage.exactly("web-b", &authorization("case", scheme), &[], none)
}

fn allow_by_port_and_by_conditions(stage: &Stage) -> Result<()> {
    let none = "no ALLOW policy matched: demo/case";
    let first = ["client-a:7000", "client-b:7000", "other-a:7000"];
    for rule in [
        "to: [{operation: {ports: ['7000']}}]",
        "to: [{operation: {notPorts: ['7001']}}]",
        "when: [{key: destination.port, values: ['7000']}]",
    ] {
        stage.everywhere(&authorization("case", &format!("{{rules: [{{{rule}}}]}}")), &first, none)?;
    }
    let from = "from: [{source: {namespaces: [demo]}}], to: [{operation: {ports: ['7000']}}]";
    let spec = format!("{{rules: [{{{from}, when: [{{key: source.principal, notValues: ['*/client-b']}}]}}]}}");
    stage.everywhere(&authorization("case", &spec), &["client-a:7000"], none)
}

fn deny_all_then_one_that_denies_among_those_that_allow(stage: &Stage) -> Result<()> {
    stage.everywhere(&authorization("deny-all", "{}"), &[], "no ALLOW policy matched: demo/deny-all")?;
    let first = ["client-a:7000", "client-b:7000", "other-a:7000"];
    let wins = authorization("allow", "{rules: [{}]}")
        + &authorization("deny", "{action: DENY, rules: [{to: [{operation: {ports: ['7001']}}]}]}");
    stage.everywhere(&wins, &first, "AuthorizationPolicy demo/deny (DENY), rules[0]: to[0].operation.ports 7001")?;
    let second = authorization(
        "deny",
        "{action: DENY, rules: [{to: [{operation: {ports: ['9']}}]}, {from: [{source: {notPrincipals: ['*/client-a']}}]}]}",
    );
    let one = ["client-a:7000", "client-a:7001"];
    stage.everywhere(&second, &one, "AuthorizationPolicy demo/deny (DENY), rules[1]: ")?;
    // An unsupported action denies.
    let custom =
        authorization("ask", "{action: CUSTOM, provider: {name: x}, rules: [{to: [{operation: {ports: ['7001']}}]}]}");
    stage.exactly("web-b", &custom, &first, "AuthorizationPolicy demo/ask (CUSTOM), rules[0]: ")
}

fn a_selector_protects_those_that_it_selects(stage: &Stage) -> Result<()> {
    let policy = authorization("case", "{selector: {matchLabels: {app: web-a}}}");
    stage.exactly("web-a", &policy, &[], "no ALLOW policy matched: demo/case")?;
    stage.checked("web-b", &policy, &EVERYONE, "")?;
    let root = ztunnel_tests::policy::document("AuthorizationPolicy", "istio-system", "all", "{}");
    stage.everywhere(&root, &[], "no ALLOW policy matched: istio-system/all")?;
    let elsewhere = ztunnel_tests::policy::document("AuthorizationPolicy", OTHER, "case", "{}");
    stage.everywhere(&elsewhere, &EVERYONE, "")
}

fn dry_run_and_audit_only_tell(stage: &Stage) -> Result<()> {
    let daemon = stage.bed.daemon("node-b")?;
    let port = "{action: DENY, rules: [{to: [{operation: {ports: ['7001']}}]}]}";
    let policies =
        dry_run("maybe", port) + &dry_run("closed", "{}") + &authorization("watch", &port.replace("DENY", "AUDIT"));
    let sum = |decision| Ok::<_, anyhow::Error>(daemon.metrics()?.sum(DECISIONS, &[("decision", decision)]));
    let before = [sum("denied")?, sum("cut")?];
    stage.everywhere(&policies, &EVERYONE, "")?;
    // Three clients, two families.
    for (kind, policy, decision) in
        [("AuthorizationPolicy", "maybe", "dry_run_deny"), ("AuthorizationPolicy", "watch", "audit")]
    {
        let counted = decisions(daemon, kind, policy, decision)?;
        ensure!(counted == 6.0, "{policy} has {decision} {counted} times");
    }
    let would_refuse = daemon.metrics()?.sum(DECISIONS, &[("decision", "dry_run_no_allow")]);
    ensure!(would_refuse == 12.0, "the dry-run deny-all has told of {would_refuse} connections");
    ensure!([sum("denied")?, sum("cut")?] == before, "{before:?}");
    for (policy, action) in [("demo/maybe", "DENY"), ("demo/watch", "AUDIT")] {
        wait::until_true(&format!("the lines of {policy}"), wait::PATIENCE, || {
            Ok(told(daemon, policy, action)?.len() == 6)
        })
        .with_context(|| daemon.tail())?;
    }
    Ok(())
}

#[test]
fn an_address_is_the_clients_own_and_not_what_a_peer_says() -> Result<()> {
    let mut stage = Stage::new()?;
    let client = stage.bed.pod("client-a")?;
    let blocks = format!("['{}', '{}/127']", client.v4, client.v6);
    let policy = authorization("case", &format!("{{rules: [{{from: [{{source: {{ipBlocks: {blocks}}}}}]}}]}}"));
    let none = "no ALLOW policy matched: demo/case";
    stage.everywhere(&policy, &["client-a:7000", "client-a:7001"], none)?;
    let condition = policy.replace("from: [{source: {ipBlocks: ", "when: [{key: source.ip, values: ");
    let condition = condition.replace("}}]}]}", "}]}]}");
    stage.everywhere(&condition, &["client-a:7000", "client-a:7001"], none)?;
    // A peer with a certificate, but another address, names the allowed address in a header.
    stage.bed.topology.grow("node-b", "guest")?;
    let (bed, victim) = (&stage.bed, stage.bed.pod("web-a")?);
    let allowed = bed.pod("client-a")?.v4;
    let caller = Caller::with(&bed.authority.honest("client-a")?)?;
    let peer = HbonePeer::connect(&caller, bed.pod("guest")?, victim.at(Family::V4, HBONE_PORT))?;
    let authority = victim.at(Family::V4, 7000).to_string();
    for forwarded in
        [format!("for={allowed}"), format!("for=\"{allowed}:1\";by={allowed}"), format!("host={authority}")]
    {
        let seen = stage.accepted();
        let answer = peer.ask(&authority, &[("forwarded", &forwarded), ("x-forwarded-for", &allowed.to_string())])?;
        ensure!(answer.status() == Some(401), "{forwarded}: {answer:?}");
        let told = answer.refusal();
        ensure!(told.starts_with("denied ") && told.ends_with(none), "{forwarded}: {answer:?}");
        ensure!(stage.accepted() == seen, "{forwarded}: the server saw it");
    }
    Ok(())
}

const VIPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

/// The client connects to the pod, not to the service; the policy of the service applies as well.
fn a_policy_of_a_service_protects_the_pods_behind_it(stage: &Stage) -> Result<()> {
    let bed = &stage.bed;
    let web = PodManifest::of(bed.pod("web-b")?).label(GROUP_LABEL, "web").port("main", 7000);
    bed.change(|mesh| mesh.pod(&web))?;
    bed.change(|mesh| mesh.service("web", &VIPS, 80, &json!("main")))?;
    let rule = "{from: [{source: {serviceAccounts: [client-a]}}]}";
    let spec = format!("{{targetRefs: [{{kind: Service, group: '', name: web}}], rules: [{rule}]}}");
    let policy = authorization("case", &spec);
    // The service leads to port 7000 only.
    let allowed = ["client-a:7000", "client-a:7001", "client-b:7001", "other-a:7001"];
    stage.exactly("web-b", &policy, &allowed, "no ALLOW policy matched: demo/case")?;
    stage.checked("web-a", &policy, &EVERYONE, "")?;
    for vip in VIPS {
        let target = std::net::SocketAddr::new(vip.parse()?, 80);
        wait::until("the service to be reached", wait::PATIENCE, || Ok(admitted(bed.pod("client-a")?, target).ok()))?;
        ztunnel_tests::policy::refused(bed.pod("client-b")?, target).context("through the service's address")?;
    }
    Ok(())
}

/// Tests that pass for every source of policies, with the same reasons.
const BODIES: [fn(&Stage) -> Result<()>; 6] = [
    allow_by_who_the_client_is,
    allow_by_port_and_by_conditions,
    deny_all_then_one_that_denies_among_those_that_allow,
    a_selector_protects_those_that_it_selects,
    dry_run_and_audit_only_tell,
    a_policy_of_a_service_protects_the_pods_behind_it,
];

#[test]
fn policies_of_a_folder() -> Result<()> {
    let stage = Stage::new()?;
    BODIES.iter().try_for_each(|body| body(&stage))
}

#[test]
fn policies_of_a_control_plane() -> Result<()> {
    let stage = Stage::with_control_plane()?;
    BODIES.iter().try_for_each(|body| body(&stage))
}

#[test]
fn reasons_are_in_both_logs_and_in_the_metrics() -> Result<()> {
    const TIMES: u32 = 3;
    let mut stage = Stage::new()?;
    stage.bed.topology.grow("node-a", "guest")?;
    let bed = &stage.bed;
    let policies = authorization("allow-web", "{rules: [{from: [{source: {serviceAccounts: [client-a]}}]}]}")
        + &authorization("deny-all", "{}")
        + &authorization("deny-7001", "{action: DENY, rules: [{to: [{operation: {ports: ['7001']}}]}]}")
        + &ztunnel_tests::policy::document("PeerAuthentication", "istio-system", "default", "{mtls: {mode: STRICT}}");
    bed.change(|mesh| mesh.policy("case", &policies))?;
    let web = bed.pod("web-b")?;
    for family in Family::BOTH {
        for _ in 0..TIMES {
            let told = denied(bed, ("client-a", "web-b"), web.at(family, 7001))?;
            ensure!(
                told == "AuthorizationPolicy demo/deny-7001 (DENY), rules[0]: to[0].operation.ports 7001",
                "{told}"
            );
            let told = denied(bed, ("other-a", "web-b"), web.at(family, 7000))?;
            ensure!(told == "no ALLOW policy matched: demo/allow-web, demo/deny-all", "{told}");
            let told = denied_plaintext(bed, bed.pod("guest")?, "web-b", web.at(family, 7000))?;
            ensure!(
                told == "PeerAuthentication istio-system/default: STRICT, and the client has no identity",
                "{told}"
            );
        }
        admitted(bed.pod("client-a")?, web.at(family, 7000))?;
    }
    let (times, metrics) = (f64::from(TIMES * 2), bed.daemon("node-b")?.metrics()?);
    for (kind, namespace, policy) in [
        ("AuthorizationPolicy", "demo", "deny-7001"),
        ("none", "demo", ""),
        ("PeerAuthentication", "istio-system", "default"),
    ] {
        let labels = [("kind", kind), ("policy_namespace", namespace), ("policy", policy), ("decision", "denied")];
        let counted = metrics.sum(DECISIONS, &labels);
        ensure!(counted == times, "{labels:?} {counted} times, not {times}");
    }
    ensure!(metrics.sum(DECISIONS, &[]) == times * 3.0, "other decisions were counted");
    let failed = "istio_tcp_connections_failed_total";
    let denied_there = metrics.sum(failed, &[("reporter", "destination"), ("response_flags", "DENY")]);
    ensure!(denied_there == times * 3.0, "Istio's counter at the destination has {denied_there}");
    let principal = ca::identity_in(OTHER, "other-a");
    let here = bed.daemon("node-a")?.metrics()?;
    let labels = [("reporter", "source"), ("response_flags", "DENY"), ("source_principal", principal.as_str())];
    ensure!(here.sum(failed, &labels) == times, "Istio's counter at the source has {}", here.sum(failed, &labels));
    ensure!(here.sum(DECISIONS, &[]) == 0.0, "the source decided something");
    Ok(())
}

/// A peer requests a denied port again and again. It gets the same answer each time, and others are not affected.
#[test]
fn a_peer_that_asks_for_denied_ports_is_told_so_each_time() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.bed.topology.grow("node-b", "guest")?;
    let spec = "{action: DENY, rules: [{to: [{operation: {notPorts: ['7000']}}]}]}";
    stage.bed.change(|mesh| mesh.policy("case", &authorization("case", spec)))?;
    let (bed, victim) = (&stage.bed, stage.bed.pod("web-a")?);
    let caller = Caller::with(&bed.authority.honest("client-a")?)?;
    let peer = HbonePeer::connect(&caller, bed.pod("guest")?, victim.at(Family::V4, HBONE_PORT))?;
    let mut stream = peer.open(&victim.at(Family::V4, 7000).to_string(), &[])?;
    for port in (7001..7301).chain([1, 22, 65_535]) {
        let answer = peer.ask(&victim.at(Family::V4, port).to_string(), &[])?;
        ensure!(answer.status() == Some(401), "port {port}: {answer:?}");
        let told = answer.refusal();
        let reason = "AuthorizationPolicy demo/case (DENY), rules[0]: ";
        ensure!(told.starts_with("denied ") && told.contains(reason), "port {port}: {told}");
        peer.exchange(&mut stream, b"still here").with_context(|| format!("after port {port}"))?;
    }
    admitted(bed.pod("client-b")?, victim.at(Family::V6, 7000))?;
    Ok(())
}

/// 100 policies with 100 rules each; only the last rule matters.
fn ten_thousand_rules() -> String {
    let rule = |policy: u32, rule: u32| {
        let port = 10_000 + policy * 100 + rule;
        format!(
            "{{from: [{{source: {{principals: ['cluster.local/ns/n{policy}/sa/s{rule}']}}}}], \
             to: [{{operation: {{ports: ['{port}']}}}}]}}"
        )
    };
    let policy = |number: u32| {
        let rules: Vec<String> = (0..100).map(|index| rule(number, index)).collect();
        authorization(&format!("many-{number:03}"), &format!("{{rules: [{}]}}", rules.join(", ")))
    };
    (0..100).map(policy).collect()
}

#[test]
fn ten_thousand_rules_are_enforced() -> Result<()> {
    let stage = Stage::new()?;
    let many = ten_thousand_rules();
    let names = "no ALLOW policy matched: demo/many-000, demo/many-001, demo/many-002, demo/many-003, demo/many-004, \
                 demo/many-005, demo/many-006, demo/many-007, demo/many-008, demo/many-009 and 90 more";
    stage.exactly("web-b", &many, &[], names)?;
    let last = "{rules: [{from: [{source: {serviceAccounts: [client-a]}}], to: [{operation: {ports: ['7000']}}]}]}";
    let with_last = many + &authorization("zz-last", last);
    stage.exactly("web-b", &with_last, &["client-a:7000"], "no ALLOW policy matched: ")?;
    let gone: fn(&Mesh) -> Result<()> = |mesh| mesh.remove_policy("case");
    stage.bed.change(gone)?;
    for client in CLIENTS {
        admitted(stage.bed.pod(client)?, stage.bed.pod("web-b")?.at(Family::V4, 7001))?;
    }
    Ok(())
}
