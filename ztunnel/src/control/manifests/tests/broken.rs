//! Texts that are not valid manifests: they are reported with their place, at bounded cost, and never cause a panic.

use std::fmt::Write;

use proptest::prelude::{Strategy, any, prop, proptest};

use super::{check as check_files, show};
use crate::control::manifests::{check, parse, read};

#[test]
fn broken_files_are_told_with_place_and_field() {
    let table = [
        ("kind: [", "broken f.yaml:..."),
        ("just words", "warning f.yaml:1: not a Kubernetes object: apiVersion and kind are missing; ..."),
        (
            "kind: Pod\nmetadata: {name: p}",
            "broken f.yaml:1: kind is Pod, and apiVersion is missing: write apiVersion: v1",
        ),
        (
            "apiVersion: v2\nkind: Pod\nmetadata: {name: p}",
            "broken f.yaml:1:13: apiVersion: \"v2\" is not supported for kind Pod: write v1",
        ),
        ("apiVersion: v1\nkind: Pod\nspec: {}", "broken f.yaml:1: metadata.name: is missing"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: 'a\\nb'}",
            "broken f.yaml:3:18: metadata.name: \"a\\\\nb\" is not a Kubernetes name...",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: A}",
            "broken f.yaml:3:32: metadata.namespace: \"A\" is not ...",
        ),
        ("apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  name: q", "broken f.yaml:5:3: metadata.name: ..."),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  hostNetwork: sure",
            "broken f.yaml:5:16: spec.hostNetwork: ...",
        ),
        (
            "# first\n---\nkind: X\napiVersion: v1\n---\n\nkind: Pod\napiVersion: v1\nspec: 7",
            "broken f.yaml:9:7: spec: ...",
        ),
        ("a: \u{1}", "broken f.yaml:1:..."),
    ];
    for (text, expected) in table {
        check_files(&format!("# file: f.yaml\n{text}\n"), expected);
    }
}

#[test]
fn an_alias_bomb_is_stopped() {
    let mut text = String::from("apiVersion: v1\nkind: X\na0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = level - 1;
        writeln!(text, "a{level}: &a{level} [*a{before}, *a{before}, *a{before}, *a{before}, *a{before}, *a{before}, *a{before}, *a{before}]").unwrap();
    }
    let error = parse(&"bomb.yaml".into(), &text).unwrap_err();
    assert!(error.line.is_some(), "{error}");
}

#[test]
fn depth_is_bounded() {
    for (open, close) in [("[", "]"), ("{a: ", "}")] {
        let text = format!("apiVersion: v1\nkind: Pod\nspec: {}{}", open.repeat(100_000), close.repeat(100_000));
        assert!(parse(&"deep.yaml".into(), &text).is_err());
    }
    let block: String = (0..5_000).map(|depth| " ".repeat(depth) + "a:\n").collect();
    assert!(parse(&"deep.yaml".into(), &block).is_err());
}

pub(super) const SAMPLE: &str = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata:\n    name: p\n    annotations:\n      \
                      traffic.ambient.mesh/exclude-outbound-cidrs: 10.0.0.0/8\n  status: {podIPs: [{ip: 10.0.0.1}]}\n- apiVersion: v1\n  \
                      kind: Service\n  metadata: {name: s}\n  spec: {selector: {a: b}, ports: [{port: 80, targetPort: x}]}\n---\n\
                      apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e, labels: {kubernetes.io/service-name: s}}\n\
                      addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: p}}]\n\
                      ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: x}\nspec: {hosts: [x.y], \
                      addresses: [10.0.0.0/8, 1.2.3.4], ports: [{number: 80, name: h}], resolution: STATIC, endpoints: [{address: 1.1.1.1, \
                      ports: {h: 8080}, locality: a/b/c, weight: 3}], exportTo: [.], subjectAltNames: ['spiffe://a/ns/b/sa/c']}\n---\n\
                      apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: \"{trustDomain: a, \
                      outboundTrafficPolicy: {mode: REGISTRY_ONLY}}\"}\n---\n\
                      apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: z, annotations: {istio.io/dry-run: 'true'}}\n\
                      spec:\n  action: DENY\n  selector: {matchLabels: {a: b}}\n  rules:\n  - from:\n    - source: {principals: ['a*'], \
                      notIpBlocks: [10.0.0.1]}\n    to: [{operation: {ports: ['80'], paths: [/]}}]\n    when: [{key: source.serviceAccount, \
                      values: [a/b]}]\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: z}\nspec: {selector: \
                      {matchLabels: {a: b}}, mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}}}\n";

/// Words of libraries and of Rust that mean nothing to a user.
const FOREIGN: [&str; 16] = [
    "struct ",
    "enum ",
    "variant",
    "expected",
    "invalid type",
    "invalid value",
    "invalid length",
    "Options",
    "from_str",
    "Policy in",
    "i32",
    "u16",
    "u32",
    "did not find",
    "sequence",
    "premature",
];

fn never_panics(text: &str) {
    check::manifests(text.as_bytes());
    let content = read(&"f.yaml".into(), text);
    let problems = content.problems.iter().map(|problem| &problem.message);
    for message in content.faults.iter().map(|fault| &fault.error.message).chain(problems) {
        // Quoted texts come from the file.
        let own: String = message.split('"').step_by(2).collect();
        assert!(!FOREIGN.iter().any(|word| own.contains(word)), "{message}\n{text}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        never_panics(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_yaml_like_text_panics(text in "(---|- |  |a|&a|\\*a|kind: |Pod|List|items:|apiVersion: v1|\\[|\\]|\\{|\\}|: |,|\"|'|\\||>|\n|#|!|%|<<: |\t|0){0,60}") {
        never_panics(&text);
    }

    #[test]
    fn no_mutation_panics(edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..4, any::<u8>().prop_map(|byte| byte % 128)), 1..12)) {
        let mut bytes = SAMPLE.as_bytes().to_vec();
        for (index, kind, byte) in edits {
            let at = index.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => drop(bytes.drain(at..(at + 7).min(bytes.len() - 1).max(at))),
                _ => {
                    let piece: Vec<u8> = bytes[at..(at + 20).min(bytes.len())].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        never_panics(&String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn the_sample_of_the_mutations_is_good() {
    assert_eq!(show(&format!("# file: s.yaml\n{SAMPLE}")).lines().count(), 11);
}

#[test]
fn every_seed_of_the_fuzz_target_holds() {
    let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/manifests");
    let seeds: Vec<_> = std::fs::read_dir(seeds).unwrap().collect();
    assert!(seeds.len() >= 6, "{} seeds", seeds.len());
    for seed in seeds {
        check::manifests(&std::fs::read(seed.unwrap().path()).unwrap());
    }
}
