//! Pods and namespaces outside of the mesh, where policy is not enforced.

use super::*;

fn outside(name: &str, why: &str, rest: &str) -> String {
    format!("warning[pod-outside-mesh] Pod {name}: is outside of the mesh ({why}): {rest}")
}

const STRICT: &str = "mTLS mode STRICT of PeerAuthentication istio-system/default is not enforced there; pods of this \
    namespace with mode STRICT refuse their connections | ...";

#[test]
fn pods_outside_of_the_mesh_beside_strict_ones() {
    let out = pod("demo", "out", "istio.io/dataplane-mode: none", "", 3);
    check(std::slice::from_ref(&out), &[&outside("demo/out", "labelled istio.io/dataplane-mode: none", STRICT)]);
    let host = pod("demo", "host", "", ", hostNetwork: true", 4);
    check(std::slice::from_ref(&host), &[&outside("demo/host", "hostNetwork", STRICT)]);
    let two = [out.replace("name: out", "name: out2").replace(".3}", ".5}"), out];
    check(
        &two,
        &["warning[pod-outside-mesh] Pod demo/out: and demo/out2 are outside of the mesh (labelled \
           istio.io/dataplane-mode: none): ..."],
    );
    let nowhere = pod("demo", "p", "", "", 3).replace("ambient.mesh/netns: /run/netns/p", "");
    check(
        &[nowhere],
        &[
            "warning[pod-refused] Pod demo/p: is labelled, and cannot be enrolled by the node (the annotation ambient.mesh/netns is missing): connections from \
           the mesh fail, and no policy is enforced there | set the annotation ambient.mesh/netns to the absolute path of the \
           pod's network namespace",
        ],
    );
    // The pod has no node that could enrol it.
    let unscheduled = pod("demo", "p", "", "", 3).replace("ambient.mesh/netns: /run/netns/p", "");
    check(&[unscheduled.replace("nodeName: a, ", "")], &[]);
    // The pod has ended, or does not run yet.
    check(
        &[pod("demo", "p", "istio.io/dataplane-mode: none", "", 3).replace("podIPs", "phase: Succeeded, podIPs")],
        &[],
    );
    check(&[pod("demo", "p", "", "", 3).replace("{ip: 10.0.0.3}", "")], &[]);
}

/// If there are STRICT pods, or a policy that is not enforced, another code is reported.
#[test]
fn labelled_pods_with_sidecars() {
    let with = |namespace: &str, name: &str, last: u8| {
        pod(namespace, name, "", "", last).replace("containers: []", "containers: [{name: istio-proxy}]")
    };
    let told = |text: &str| {
        format!(
            "warning[pod-with-sidecar] Pod other/{text} not enrolled, and pods of the mesh connect to the proxy in plaintext | \
             turn the injection of the sidecar off and create the pod anew"
        )
    };
    let one = told("a: is labelled and has a sidecar proxy of its own: it is");
    let two = told("a: and other/b are labelled and have sidecar proxies of their own: they are");
    let no_strict = "info[no-strict] ...";
    let labelled = namespace("other", "istio.io/dataplane-mode: ambient");
    let plain = pod("other", "plain", "", "", 13);
    let meshes = [
        (vec![with("other", "a", 11)], vec![&*one, "info[empty-mesh] ..."]),
        (vec![with("other", "a", 11), plain.clone()], vec![&*one, no_strict]),
        (vec![with("other", "a", 11), with("other", "b", 12), plain], vec![&*two, no_strict]),
    ];
    for (pods, expected) in meshes {
        check_all(&[vec![labelled.clone()], pods].concat().join("---\n"), &expected);
    }
    check(
        &[with("demo", "a", 3)],
        &["warning[pod-outside-mesh] Pod demo/a: is outside of the mesh (with a sidecar proxy of its own): ..."],
    );
}

#[test]
fn namespaces_outside_of_a_strict_mesh() {
    let more = [namespace("legacy", ""), pod("legacy", "p", "", "", 3)];
    let whole = "info[namespaces-outside-mesh] the mesh has mTLS mode STRICT, which is not enforced for pods of \
        namespaces outside of the mesh: legacy | label the namespace, or the pod, istio.io/dataplane-mode: ambient";
    check(&more, &[whole]);
    let own = authentication("legacy", "a", "mtls: {mode: STRICT}");
    let own = [more.as_slice(), &[own]].concat();
    check(
        &own,
        &[&outside(
            "legacy/p",
            "not labelled",
            "mTLS mode STRICT of PeerAuthentication legacy/a is not enforced there | label...",
        )],
    );
}

#[test]
fn unlabelled_clients_of_strict_pods() {
    let permissive = SANE.replace("STRICT", "PERMISSIVE");
    let of_web = authentication("demo", "a", "selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}");
    let out = pod("demo", "out", "istio.io/dataplane-mode: none", "", 3);
    check_all(
        &[permissive.clone(), of_web, out.clone()].join("---\n"),
        &["warning[unlabelled-client] Pod demo/out: is outside of the mesh (labelled istio.io/dataplane-mode: \
             none); pods of this namespace with mode STRICT refuse their connections | remove the label, or protect it by other means"],
    );
    check_all(&[permissive, out].join("---\n"), &["info[no-strict] ..."]);
}

#[test]
fn policies_about_pods_outside_of_the_mesh() {
    let more = [
        namespace("legacy", ""),
        pod("legacy", "p", "app: p", "", 3),
        authentication("legacy", "a", "mtls: {mode: PERMISSIVE}"),
    ];
    let left_over = "warning[permissive-left-over] PeerAuthentication legacy/a: ...";
    let unenforced = "warning[unenforced-policy] AuthorizationPolicy legacy/deny: it is not enforced: all pods that it \
                      selects are outside of the mesh, for example legacy/p (not labelled) | label the namespace, or the pod, \
                      istio.io/dataplane-mode: ambient";
    for spec in ["", "selector: {matchLabels: {app: p}}"] {
        let all = [more.as_slice(), &[policy_of("legacy", "deny", spec)]].concat();
        check(&all, &[left_over, unenforced]);
    }
    let permissive = SANE.replace("STRICT", "PERMISSIVE");
    let out = pod("demo", "out", "istio.io/dataplane-mode: none", "", 3);
    check_all(
        &[permissive, out, policy("deny", "")].join("---\n"),
        &[
            &outside(
                "demo/out",
                "labelled istio.io/dataplane-mode: none",
                "policy of namespace demo (AuthorizationPolicy) is not enforced there | ...",
            ),
            "info[no-strict] ...",
        ],
    );
}

#[test]
fn ports_that_are_not_captured() {
    let excluded = |ports: &str| {
        pod("demo", "p", "", "", 3).replace(
            "annotations: {",
            &format!("annotations: {{traffic.ambient.mesh/exclude-inbound-ports: '{ports}', "),
        )
    };
    check(
        &[excluded("80, 443")],
        &["warning[excluded-port] Pod demo/p: port 80,443 is excluded from capture: mTLS mode STRICT of \
            PeerAuthentication \
           istio-system/default is not enforced there | ..."],
    );
    check(&[excluded("")], &[]);
}

#[test]
fn probes_of_strict_pods() {
    let probed = pod("demo", "p", "", "", 3)
        .replace("containers: []", "containers: [{name: c, livenessProbe: {tcpSocket: {port: 81}}}]");
    check(
        std::slice::from_ref(&probed),
        &["info[probe-without-node-address] Pod demo/p: pods of namespace demo with mTLS mode STRICT have probes \
             and no status.hostIPs \
           (demo/p): their node accepts the probes, but `explain` does not know the address of the kubelet | fill in status.hostIPs"],
    );
    check(&[probed.replace("podIPs", "hostIPs: [{ip: 192.168.0.1}], podIPs")], &[]);
}

#[test]
fn labels_that_say_nothing() {
    let more = pod("demo", "p", "istio.io/dataplane-mode: Ambient", "", 3);
    check(
        &[more],
        &["warning[unknown-mode] Pod demo/p: the label istio.io/dataplane-mode: Ambient is not known, and has no \
            effect | write ambient or none, or remove the label"],
    );
}

#[test]
fn an_empty_mesh() {
    let unlabelled = SANE.replace("istio.io/dataplane-mode: ambient", "");
    check_all(
        &unlabelled,
        &[
            "info[empty-mesh] no pod is in the mesh: nothing is enforced, and nothing is encrypted | ...",
            "info[namespaces-outside-mesh] the mesh has mTLS mode STRICT, which is not enforced for pods of \
             namespaces outside of the mesh: demo | ...",
        ],
    );
    check_all("", &[]);
    // The finding does not hide others.
    check_all(
        &[
            unlabelled,
            pod("demo", "p", "istio.io/dataplane-mode: Ambient", "", 3),
            policy("p", "selector: {matchLabels: {app: wbe}}"),
        ]
        .join("---\n"),
        &[
            "warning[unknown-mode] Pod demo/p: ...",
            "warning[unmatched-selector] AuthorizationPolicy demo/p: ...",
            "info[empty-mesh] ...",
            "info[namespaces-outside-mesh] ...",
        ],
    );
}
