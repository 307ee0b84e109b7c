//! NetworkPolicies that block HBONE.

use super::*;

fn network(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: demo}}\nspec: {{{spec}}}\n"
    )
}

/// Checks the findings in a mesh with NetworkPolicies of namespace `demo`: the note that others enforce them is the last.
fn check(more: &[String], expected: &[&str]) {
    let note = "info[manifest] NetworkPolicy of namespace demo: has no effect in this daemon...";
    super::check(more, &[expected, &[note]].concat());
}

const WEB: &str = "podSelector: {matchLabels: {app: web}}";
const BLOCKED: &str = "warning[network-policy-blocks-hbone] NetworkPolicy demo/net: spec.ingress[0] lets port 8080 through and not port \
                       15008: connections from pods of the mesh arrive at port 15008, so they fail for Pod demo/web, which it selects \
                       | add {port: 15008, protocol: TCP} to spec.ingress[0].ports, or a rule with it and the same from";

#[test]
fn ports_of_applications_without_the_port_of_tunnels() {
    for ingress in [
        "[{ports: [{port: 8080}]}]",
        "[{ports: [{port: 8080, protocol: TCP}], from: [{podSelector: {matchLabels: {app: client}}}]}]",
        "[{ports: [{port: 8080}], from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: demo}}}]}]",
        "[{ports: [{port: 8080}], from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [client]}]}}]}]",
        // Unknown clients are probably in the mesh.
        "[{ports: [{port: 8080}], from: [{podSelector: {matchLabels: {app: unknown}}}]}]",
    ] {
        check(&[network("net", &format!("{WEB}, ingress: {ingress}"))], &[BLOCKED]);
    }
    check(
        &[network("net", &format!("{WEB}, ingress: [{{ports: [{{port: http}}]}}]"))],
        &["warning[network-policy-blocks-hbone] NetworkPolicy demo/net: spec.ingress[0] lets port http through ..."],
    );
}

#[test]
fn policies_that_let_tunnels_through() {
    let out = [namespace("plain", "team: x"), pod("plain", "p", "", "", 7)];
    let open = authentication("plain", "a", "mtls: {mode: PERMISSIVE}");
    for ingress in [
        "[{ports: [{port: 8080}, {port: 15008}]}]",
        "[{ports: [{port: 8000, endPort: 16000}]}]",
        "[{from: [{podSelector: {}}]}]",
        "[]",
        "[{ports: [{port: 53, protocol: UDP}]}]",
        "[{ports: [{port: 8080}]}, {ports: [{port: 15008}]}]",
        "[{ports: [{port: 8080}], from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]",
        // Clients outside of the mesh connect in plaintext.
        "[{ports: [{port: 8080}], from: [{namespaceSelector: {matchLabels: {team: x}}}]}]",
    ] {
        let all = [out.as_slice(), &[open.clone(), network("net", &format!("{WEB}, ingress: {ingress}"))]].concat();
        check(&all, &["warning[permissive-left-over] PeerAuthentication plain/a: ..."]);
    }
    // Another policy allows port 15008; a policy for other pods does not.
    let narrow = network("net", &format!("{WEB}, ingress: [{{ports: [{{port: 8080}}]}}]"));
    let tunnels =
        |pods: &str| network("tunnels", &format!("podSelector: {pods}, ingress: [{{ports: [{{port: 15008}}]}}]"));
    check(&[narrow.clone(), tunnels("{}")], &[]);
    check(&[narrow, tunnels("{matchLabels: {app: client}}")], &[BLOCKED]);
    // Pods outside of the mesh need no HBONE.
    let outside = pod("demo", "p", "app: p, istio.io/dataplane-mode: none", "", 3);
    check(
        &[outside, network("net", "podSelector: {matchLabels: {app: p}}, ingress: [{ports: [{port: 8080}]}]")],
        &["warning[pod-outside-mesh] ..."],
    );
}

#[test]
fn outgoing_connections() {
    let client = "podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]";
    for egress in
        ["[{ports: [{port: 8080}]}]", "[{ports: [{port: 8080}], to: [{podSelector: {matchLabels: {app: web}}}]}]"]
    {
        check(
            &[network("net", &format!("{client}, egress: {egress}"))],
            &[
                "warning[network-policy-blocks-hbone] NetworkPolicy demo/net: spec.egress[0] lets port 8080 through and not port 15008: \
               connections to pods of the mesh arrive at port 15008, so they fail for Pod demo/client, ...",
            ],
        );
    }
    for egress in [
        "[{ports: [{port: 53, protocol: TCP}, {port: 53, protocol: UDP}]}]",
        "[{ports: [{port: 443}]}]",
        "[{ports: [{port: 8080}], to: [{ipBlock: {cidr: 192.0.2.0/24}}]}]",
        "[{ports: [{port: 8080}]}, {to: [{podSelector: {}}]}, {ports: [{port: 15008}]}]",
    ] {
        check(&[network("net", &format!("{client}, egress: {egress}"))], &[]);
    }
}

#[test]
fn a_policy_that_denies_everything_is_told() {
    check(&[network("deny", "podSelector: {}, policyTypes: [Ingress]")], &[]);
    let two =
        [network("deny", "podSelector: {}, policyTypes: [Ingress]"), network("more", "podSelector: {}, ingress: []")];
    super::check(
        &two,
        &[
            "info[manifest] NetworkPolicy of namespace demo: has no effect in this daemon (and 1 more of namespace demo): the network \
           plugin of the cluster enforces it; between pods of the mesh it sees connections to port 15008, which it has to allow, and \
           not those to the pods' own ports",
        ],
    );
}
