//! PeerAuthentications.

use super::*;

#[test]
fn plaintext_is_left_open() {
    let left = |object: &str, mode: &str, whom: &str, strict: &str| {
        format!(
            "warning[permissive-left-over] PeerAuthentication {object}: {mode} accepts plaintext at {whom}, where \
             PeerAuthentication {strict} sets STRICT | remove it when no client needs plaintext any more"
        )
    };
    let expected = left("demo/a", "PERMISSIVE", "namespace demo", "istio-system/default");
    check(&[authentication("demo", "a", "mtls: {mode: PERMISSIVE}")], &[&expected]);
    let of_web = |spec: &str| authentication("demo", "a", &format!("selector: {{matchLabels: {{app: web}}}}, {spec}"));
    let expected = left("demo/a", "PERMISSIVE", "the pods that it selects", "istio-system/default");
    check(&[of_web("mtls: {mode: PERMISSIVE}")], &[&expected]);
    let expected = left("demo/a", "PERMISSIVE", "port 8080 of the pods that it selects", "istio-system/default");
    check(&[of_web("portLevelMtls: {'8080': {mode: PERMISSIVE}}")], &[&expected]);
    let expected = left("demo/a", "PERMISSIVE", "port 8080 of the pods that it selects", "demo/a");
    check(
        &[
            authentication("demo", "b", "mtls: {mode: PERMISSIVE}"),
            of_web("mtls: {mode: STRICT}, portLevelMtls: {'8080': {mode: PERMISSIVE}}"),
        ],
        &[&left("demo/b", "PERMISSIVE", "namespace demo", "istio-system/default"), &expected],
    );
    check(&[authentication("demo", "b", "mtls: {mode: STRICT}"), of_web("mtls: {mode: UNSET}")], &[]);
    check(&[authentication("demo", "a", "mtls: {mode: UNSET}")], &[]);
}

#[test]
fn several_for_the_same_pods() {
    check(
        &[authentication("istio-system", "other", "mtls: {mode: STRICT}")],
        &["error[several-peer-authentications] PeerAuthentication istio-system/other: has no effect for the mesh: \
            PeerAuthentication istio-system/default is for the same pods and comes first by name | keep one of the \
            two"],
    );
    let strict = |name: &str, labels: &str| {
        authentication("demo", name, &format!("selector: {{matchLabels: {{{labels}}}}}, mtls: {{mode: STRICT}}"))
    };
    check(
        &[strict("b", "app: web"), strict("a", "tier: front"), pod("demo", "p", "app: web, tier: front", "", 3)],
        &["warning[several-peer-authentications] PeerAuthentication demo/b: has no effect for some of the pods that \
             it selects: PeerAuthentication demo/a is for the same pods and comes first by name | keep one of the two"],
    );
    check(&[strict("b", "app: web"), strict("a", "app: client")], &[]);
}

#[test]
fn nothing_is_strict() {
    let permissive = SANE.replace("STRICT", "PERMISSIVE");
    check_all(
        &permissive,
        &["info[no-strict] no PeerAuthentication sets mTLS mode STRICT: pods of the mesh accept plaintext, in which \
             clients..."],
    );
}
