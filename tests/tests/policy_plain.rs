//! Clients without an identity: STRICT refuses them, and no address replaces an identity.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::mesh::PodManifest;
use ztunnel_tests::policy::{
    admitted, authentication, authorization, connect_as, denied_plaintext, denied_stream, document, impersonate,
};
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod};

/// A pod outside the mesh, on the same node as `web-a`.
const GUEST: &str = "guest";

const WEB: &str = "web-a";

fn bed() -> Result<Testbed> {
    let mut bed = Testbed::both_enrolled()?;
    bed.topology.grow("node-a", GUEST)?;
    Ok(bed)
}

/// An echo at each of these ports of the web, over both families.
fn echoes(bed: &Testbed, ports: &[u16]) -> Result<Vec<Server>> {
    let web = bed.pod(WEB)?;
    let all = ports.iter().flat_map(|port| Family::BOTH.map(|family| web.at(family, *port)));
    all.map(|address| Server::echo(web, address)).collect()
}

fn accepted(servers: &[Server]) -> usize {
    servers.iter().map(Server::accepted).sum()
}

/// The guest can connect to the open ports only, whether an application listens at the others or not. Pods of the mesh can
/// connect to all ports.
fn strict_but(bed: &Testbed, servers: &[Server], policies: &str, open: &[u16], reason: &str) -> Result<()> {
    bed.change(|mesh| mesh.policy("mode", policies))?;
    let (guest, web) = (bed.pod(GUEST)?, bed.pod(WEB)?);
    for family in Family::BOTH {
        for port in [1, 22, 80, 7000, 7001, 8080, 15_021, 65_535] {
            let (target, seen) = (web.at(family, port), accepted(servers));
            if open.contains(&port) {
                admitted(guest, target).with_context(|| policies.to_owned())?;
                continue;
            }
            let told = denied_plaintext(bed, guest, WEB, target).with_context(|| policies.to_owned())?;
            ensure!(told.starts_with(reason), "{target}: {told:?} does not begin with {reason:?}, with\n{policies}");
            ensure!(accepted(servers) == seen, "{target}: the server saw it, with\n{policies}");
        }
    }
    for server in servers {
        for client in ["client-a", "client-b"] {
            admitted(bed.pod(client)?, server.address()).with_context(|| policies.to_owned())?;
        }
    }
    Ok(())
}

#[test]
fn strict_refuses_plaintext_at_every_port_but_those_excepted() -> Result<()> {
    let bed = bed()?;
    let servers = echoes(&bed, &[7000, 7001])?;
    for (namespace, name) in [("istio-system", "default"), ("demo", "all")] {
        let policy = document("PeerAuthentication", namespace, name, "{mtls: {mode: STRICT}}");
        let reason = format!("PeerAuthentication {namespace}/{name}: STRICT, and the client has no identity");
        strict_but(&bed, &servers, &policy, &[], &reason)?;
    }
    let selector = "selector: {matchLabels: {app: web-a}}, mtls: {mode: STRICT}";
    let excepted = format!("{{{selector}, portLevelMtls: {{'7001': {{mode: PERMISSIVE}}, '80': {{mode: STRICT}}}}}}");
    let reason = "PeerAuthentication demo/web";
    strict_but(&bed, &servers, &authentication("web", &excepted), &[7001], reason)
}

#[test]
fn the_nearest_policy_decides_and_one_port_may_be_strict() -> Result<()> {
    let bed = bed()?;
    let servers = echoes(&bed, &[7000, 7001, 8080])?;
    let mesh = document("PeerAuthentication", "istio-system", "default", "{mtls: {mode: STRICT}}");
    let nearer = mesh + &authentication("ns", "{mtls: {mode: PERMISSIVE}}");
    bed.change(|mesh| mesh.policy("mode", &nearer))?;
    let (guest, web) = (bed.pod(GUEST)?, bed.pod(WEB)?);
    admitted(guest, web.at(Family::V4, 7000))?;
    let port = "{selector: {matchLabels: {app: web-a}}, portLevelMtls: {'8080': {mode: STRICT}}}";
    bed.change(|mesh| mesh.policy("mode", &(nearer.clone() + &authentication("web", port))))?;
    for family in Family::BOTH {
        admitted(guest, web.at(family, 7000))?;
        admitted(bed.pod("client-b")?, web.at(family, 8080))?;
        let seen = accepted(&servers);
        let told = denied_plaintext(&bed, guest, WEB, web.at(family, 8080))?;
        let reason = "PeerAuthentication demo/web, portLevelMtls[8080]: STRICT, and the client has no identity";
        ensure!(told == reason, "{told}");
        ensure!(accepted(&servers) == seen, "the server saw it");
    }
    Ok(())
}

/// Policies that allow clients with an identity, by each kind of field, and one by address.
const BY_IDENTITY: [&str; 6] = [
    "from: [{source: {principals: ['*']}}]",
    "from: [{source: {principals: ['cluster.local/ns/demo/*']}}]",
    "from: [{source: {namespaces: [demo]}}]",
    "from: [{source: {serviceAccounts: [client-a]}}]",
    "when: [{key: source.principal, values: ['*']}]",
    "when: [{key: source.namespace, values: ['*']}]",
];

/// The guest connects with the address of an allowed pod, or with its own address, which a manifest gives to an allowed pod.
fn never_let_in(bed: &Testbed, servers: &[Server], source: SocketAddr, what: &str) -> Result<()> {
    let (guest, web) = (bed.pod(GUEST)?, bed.pod(WEB)?);
    let family = Family::of(source);
    let target = web.at(family, 7000);
    for rule in BY_IDENTITY {
        bed.change(|mesh| mesh.policy("case", &authorization("case", &format!("{{rules: [{{{rule}}}]}}"))))?;
        let seen = accepted(servers);
        let stream = connect_as(guest, source.ip(), target)?;
        let told = denied_stream(bed, stream, WEB, target).with_context(|| format!("{what} with {rule}"))?;
        ensure!(told == "no ALLOW policy matched: demo/case", "{what} with {rule}: {told}");
        ensure!(accepted(servers) == seen, "{what} with {rule}: the server saw it");
    }
    Ok(())
}

#[test]
fn an_address_is_no_identity() -> Result<()> {
    let bed = bed()?;
    let (guest, web, client) = (bed.pod(GUEST)?, bed.pod(WEB)?, bed.pod("client-a")?);
    let servers = echoes(&bed, &[7000])?;
    // A manifest gives the guest's address to a pod of the mesh.
    let claimed = PodManifest::of(guest).named("claimed").service_account("client-a").node("node-z").no_netns();
    bed.change(|mesh| mesh.pod(&claimed))?;
    for family in Family::BOTH {
        never_let_in(&bed, &servers, guest.at(family, 0), "an address that a manifest names")?;
    }
    bed.change(|mesh| mesh.remove_pod("claimed"))?;
    // The guest takes the address of a pod on its bridge.
    for family in Family::BOTH {
        impersonate(guest, web, family, client.ip(family))?;
        never_let_in(&bed, &servers, client.at(family, 0), "a neighbour's address")?;
    }
    // The policy in force allows other pods of the mesh.
    admitted(bed.pod("client-b")?, web.at(Family::V4, 7000))?;
    admitted(bed.pod("client-b")?, web.at(Family::V6, 7000))?;
    Ok(())
}

/// A policy may name an address, which also applies to plaintext. A rule with negative fields (`not...`) matches plaintext as
/// well.
#[test]
fn what_needs_no_identity_applies_to_plaintext() -> Result<()> {
    let bed = bed()?;
    let (guest, web) = (bed.pod(GUEST)?, bed.pod(WEB)?);
    let servers = echoes(&bed, &[7000, 7001])?;
    let allow = format!("{{rules: [{{from: [{{source: {{ipBlocks: ['{}', '{}']}}}}]}}]}}", guest.v4, guest.v6);
    let deny = |source: &str| {
        let rule = format!("{{from: [{{source: {{{source}}}}}], to: [{{operation: {{ports: ['7001']}}}}]}}");
        authorization("deny", &format!("{{action: DENY, rules: [{rule}]}}"))
    };
    for source in
        ["notPrincipals: ['*']", "notPrincipals: [x]", "notNamespaces: [demo]", "notServiceAccounts: [demo/x]"]
    {
        let policies = authorization("allow", &allow) + &deny(source);
        bed.change(|mesh| mesh.policy("case", &policies))?;
        for family in Family::BOTH {
            admitted(guest, web.at(family, 7000)).with_context(|| source.to_owned())?;
            let seen = accepted(&servers);
            let told = denied_plaintext(&bed, guest, WEB, web.at(family, 7001)).with_context(|| source.to_owned())?;
            ensure!(told.starts_with("AuthorizationPolicy demo/deny (DENY), rules[0]: "), "{source}: {told}");
            ensure!(accepted(&servers) == seen, "{source}: the server saw it");
        }
    }
    Ok(())
}

/// Tested from each kind of client: a pod on the same node, a pod on another node, and the other node itself.
#[test]
fn deny_all_is_for_everyone() -> Result<()> {
    let mut bed = bed()?;
    bed.topology.grow("node-b", "stranger")?;
    let servers = echoes(&bed, &[7000])?;
    let web = bed.pod(WEB)?;
    bed.change(|mesh| mesh.policy("case", &authorization("deny-all", "{}")))?;
    for family in Family::BOTH {
        let target = web.at(family, 7000);
        let strangers: [&Pod; 2] = [bed.pod(GUEST)?, bed.pod("stranger")?];
        for stranger in strangers {
            let told = denied_plaintext(&bed, stranger, WEB, target)?;
            ensure!(told == "no ALLOW policy matched: demo/deny-all", "{told}");
        }
        for node in ["node-a", "node-b"] {
            let netns = &bed.topology.node(node)?.netns;
            let stream = netns.run(|| std::net::TcpStream::connect(target))??;
            let told = denied_stream(&bed, stream, WEB, target).with_context(|| node.to_owned())?;
            ensure!(told == "no ALLOW policy matched: demo/deny-all", "{node}: {told}");
        }
    }
    ensure!(accepted(&servers) == 0, "a server accepted a connection");
    Ok(())
}
