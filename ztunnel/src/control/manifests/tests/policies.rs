//! AuthorizationPolicy and PeerAuthentication: every field, every error, and the selected workloads.

mod broken;
mod odd;
mod unread;

use super::check;

/// The text of one AuthorizationPolicy `demo/p`, whose spec begins at line 4, as a file.
fn policy(spec: &str) -> String {
    let spec = spec.replace('\n', "\n  ");
    format!(
        "# file: p.yaml\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: demo}}\n\
         spec:\n  {spec}\n"
    )
}

#[test]
fn every_field_of_a_rule_is_read() {
    let table = [
        (
            "{from: [{source: {principals: [cluster.local/ns/a/sa/b, 'a*', '*b', '*']}}]}",
            "from principal=cluster.local/ns/a/sa/b|a*|*b|*",
        ),
        ("{from: [{source: {notPrincipals: ['*']}}]}", "from principal!=*"),
        ("{from: [{source: {namespaces: [a, 'b*']}}]}", "from namespace=a|b*"),
        ("{from: [{source: {notNamespaces: [a]}}]}", "from namespace!=a"),
        ("{from: [{source: {serviceAccounts: [a/b, c]}}]}", "from account=a/b|demo/c"),
        ("{from: [{source: {notServiceAccounts: [c]}}]}", "from account!=demo/c"),
        (
            "{from: [{source: {ipBlocks: [10.0.0.1, 10.1.2.3/8, 'fd00::1', 'FD00::5/64', '::ffff:10.0.0.1', '::ffff:10.1.2.3/104', '::/0']}}]}",
            "from source=10.0.0.1/32|10.0.0.0/8|fd00::1/128|fd00::/64|10.0.0.1/32|10.0.0.0/8|::/0",
        ),
        ("{from: [{source: {notIpBlocks: [10.0.0.0/8]}}]}", "from source!=10.0.0.0/8"),
        (
            "{from: [{source: {namespaces: [a], notPrincipals: [b], ipBlocks: [10.0.0.1]}}, {source: {namespaces: [c]}}]}",
            "from principal!=b namespace=a source=10.0.0.1/32 or namespace=c",
        ),
        ("{from: [{source: {trustDomains: [cluster.local, 'a*', '*b', '*']}}]}", "from domain=cluster.local|a*|*b|*"),
        (
            "{from: [{source: {notTrustDomains: [a], trustDomains: [b], serviceAccounts: [c]}}]}",
            "from account=demo/c domain=b domain!=a",
        ),
        ("{to: [{operation: {ports: ['80', 8080, '65535']}}]}", "to port=80|8080|65535"),
        ("{to: [{operation: {notPorts: ['1']}}, {operation: {ports: ['2']}}]}", "to port!=1 or port=2"),
        (
            "{when: [{key: source.ip, values: [10.0.0.9/8], notValues: [10.0.0.1]}]}",
            "when[0] source=10.0.0.0/8 source!=10.0.0.1/32",
        ),
        ("{when: [{key: source.namespace, values: ['*'], notValues: [a]}]}", "when[0] namespace=* namespace!=a"),
        ("{when: [{key: source.principal, values: [a], notValues: ['b*']}]}", "when[0] principal=a principal!=b*"),
        (
            "{when: [{key: source.serviceAccount, values: [a], notValues: [b/c]}]}",
            "when[0] account=demo/a account!=b/c",
        ),
        (
            "{when: [{key: destination.ip, values: ['fd00::1'], notValues: ['::ffff:1.2.3.4']}]}",
            "when[0] address=fd00::1/128 address!=1.2.3.4/32",
        ),
        ("{when: [{key: destination.port, values: ['80'], notValues: ['81']}]}", "when[0] port=80 port!=81"),
        (
            "{from: [{source: {namespaces: [a]}}], to: [{operation: {ports: ['80']}}], when: [{key: source.ip, values: [1.2.3.4]}, {key: destination.port, notValues: ['1']}]}",
            "from namespace=a, to port=80, when[0] source=1.2.3.4/32, when[1] port!=1",
        ),
        ("{}", "anything"),
        ("{from: null, to: null, when: null}", "anything"),
        ("{when: []}", "anything"),
        ("{from: [{source: {principals: [], namespaces: [a], ipBlocks: null}}]}", "from namespace=a"),
    ];
    for (rule, expected) in table {
        check(&policy(&format!("rules: [{rule}]")), &format!("ALLOW demo/p for namespace demo: {expected}"));
    }
}

#[test]
fn an_action_is_read_and_an_empty_policy_has_no_rules() {
    check(&policy("{}"), "ALLOW demo/p for namespace demo: ");
    check(&policy("rules: []"), "ALLOW demo/p for namespace demo: ");
    check(&policy("rules: null\naction: null"), "ALLOW demo/p for namespace demo: ");
    check(&policy("action: ALLOW\nrules: [{}, {}]"), "ALLOW demo/p for namespace demo: anything; anything");
    check(&policy("action: DENY\nrules: [{}]"), "DENY demo/p for namespace demo: anything");
    check(&policy("action: AUDIT"), "AUDIT demo/p for namespace demo: ");
    check(
        &policy("action: CUSTOM\nprovider: {name: opa}\nrules: [{}]"),
        "CUSTOM demo/p for namespace demo: anything
         problem p.yaml:5: AuthorizationPolicy demo/p: spec.action: CUSTOM needs an external authorizer, which cannot \
             be asked at layer 4: connections that match its rules are refused; ...",
    );
    for version in ["v1", "v1beta1"] {
        check(
            &format!(
                "# file: p.yaml\napiVersion: security.istio.io/{version}\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nstatus: {{any: thing}}"
            ),
            "ALLOW default/p for namespace default: ",
        );
        check(
            &format!(
                "# file: p.yaml\napiVersion: security.istio.io/{version}\nkind: PeerAuthentication\nmetadata: {{name: p, managedFields: [{{any: thing}}]}}\nstatus: {{any: thing}}"
            ),
            "mtls default/p for namespace default: -",
        );
    }
}

#[test]
fn dry_run_is_true_or_false() {
    let annotated = |value: &str| {
        format!(
            "# file: p.yaml\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\n  annotations:\n    \
             istio.io/dry-run: {value}\n"
        )
    };
    check(&annotated("'true'"), "ALLOW default/p for namespace default in dry-run: ");
    check(&annotated("'false'"), "ALLOW default/p for namespace default: ");
    for wrong in ["'True'", "'1'", "''"] {
        check(
            &annotated(wrong),
            &format!(
                "ALLOW default/p for namespace default: \nproblem p.yaml:6: AuthorizationPolicy default/p: annotation \
                 istio.io/dry-run: {}: is neither \"true\" nor \"false\"; the policy is enforced",
                wrong.replace('\'', "\"")
            ),
        );
    }
}

#[test]
fn fields_of_requests_are_told_and_not_judged() {
    let rules = "rules:
- from:
  - source: {namespaces: [a], remoteIpBlocks: [1.2.3.4]}
  - source: {requestPrincipals: ['*'], notRequestPrincipals: [x], notRemoteIpBlocks: [1.2.3.4]}
  to:
  - operation:
      ports: ['80']
      methods: [GET]
- to: [{operation: {hosts: [a], notHosts: [b], notMethods: [c], paths: [d], notPaths: [e]}}]
  when:
  - {key: 'request.headers[x]', values: [a]}
  - {key: remote.ip, values: [1.2.3.4]}
  - {key: connection.sni, notValues: [a]}
  - {key: experimental.envoy.filters.a, values: [a]}
  - {key: source.ip, values: [1.2.3.4]}";
    let shown = "to port=80, unjudged: from[0].source.remoteIpBlocks from[1].source.requestPrincipals \
                 from[1].source.notRequestPrincipals from[1].source.notRemoteIpBlocks to[0].operation.methods; when[4] \
                 source=1.2.3.4/32, unjudged: to[0].operation.hosts to[0].operation.notHosts to[0].operation.notMethods \
                 to[0].operation.paths to[0].operation.notPaths when[0].key: request.headers[x] when[1].key: remote.ip \
                 when[2].key: connection.sni when[3].key: experimental.envoy.filters.a";
    let told = [
        (8, "rules[0].from[0].source.remoteIpBlocks"),
        (9, "rules[0].from[1].source.notRemoteIpBlocks"),
        (9, "rules[0].from[1].source.notRequestPrincipals"),
        (9, "rules[0].from[1].source.requestPrincipals"),
        (13, "rules[0].to[0].operation.methods"),
        (14, "rules[1].to[0].operation.hosts"),
        (14, "rules[1].to[0].operation.notHosts"),
        (14, "rules[1].to[0].operation.notMethods"),
        (14, "rules[1].to[0].operation.notPaths"),
        (14, "rules[1].to[0].operation.paths"),
        (16, "rules[1].when[0].key: request.headers[x]"),
        (17, "rules[1].when[1].key: remote.ip"),
        (18, "rules[1].when[2].key: connection.sni"),
        (19, "rules[1].when[3].key: experimental.envoy.filters.a"),
    ];
    let table = [
        ("ALLOW", "the rule never matches, so it allows no connection"),
        ("DENY", "the rule is enforced without the field, so it refuses more connections than written"),
        ("AUDIT", "the rule is applied without the field, so it reports more connections than written"),
    ];
    for (action, consequence) in table {
        let warnings: String = told
            .iter()
            .map(|(line, field)| {
                format!(
                    "\nwarning p.yaml:{line}: AuthorizationPolicy demo/p: spec.{field}: requests are not visible at \
                     layer 4: \
                     {consequence}; ..."
                )
            })
            .collect();
        check(
            &policy(&format!("action: {action}\n{rules}")),
            &format!("{action} demo/p for namespace demo: {shown}{warnings}"),
        );
    }
    let many: String = (0..40).map(|_| "{to: [{operation: {paths: [a]}}]},").collect();
    let shown = super::show(&policy(&format!("rules: [{many}]")));
    assert_eq!(shown.lines().count(), 1 + 32 + 1);
    assert!(shown.contains("AuthorizationPolicy demo/p: 8 more fields cannot be evaluated"), "{shown}");
}

#[test]
fn a_policy_protects_whom_it_selects() {
    let check_scope = |namespace: &str, spec: &str, expected: &str| {
        let file = |kind: &str| {
            format!(
                "# file: p.yaml\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p, namespace: {namespace}}}\n\
                 spec: {spec}\n"
            )
        };
        check(&file("AuthorizationPolicy"), &format!("ALLOW {namespace}/p for {expected}: "));
        if expected.contains("any namespace") {
            check(
                &file("PeerAuthentication"),
                "problem p.yaml:1: PeerAuthentication istio-system/p: spec.selector: istio-system is the root \
                 namespace, in which a policy with a selector has no effect: ...",
            );
        } else {
            check(&file("PeerAuthentication"), &format!("mtls {namespace}/p for {expected}: -"));
        }
    };
    check_scope("demo", "{}", "namespace demo");
    check_scope("demo", "null", "namespace demo");
    check_scope("demo", "{selector: {}}", "namespace demo");
    check_scope("demo", "{selector: {matchLabels: {}}}", "namespace demo");
    check_scope("demo", "{selector: {matchLabels: null}}", "namespace demo");
    check_scope("demo", "{selector: {matchLabels: {app: web, tier: ''}}}", "app=web,tier= in demo");
    check_scope("istio-system", "{}", "mesh");
    check_scope("istio-system", "{selector: {matchLabels: {app: web}}}", "app=web in any namespace");
}

#[test]
fn the_settings_name_the_root_namespace() {
    let files = |root: &str| {
        format!(
            "# file: a.yaml\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: \
             '{{rootNamespace: {root}}}'}}\n{}---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: \
             q, namespace: istio-system}}\n",
            policy("{}")
        )
    };
    check(
        &files("demo"),
        "ALLOW demo/p for mesh: 
         mtls istio-system/q for namespace istio-system: -",
    );
    check(
        &files("null"),
        "ALLOW demo/p for namespace demo: 
         mtls istio-system/q for mesh: -",
    );
    check(
        &files("A"),
        "broken a.yaml:4:14: data.mesh.rootNamespace: \"A\" is not a Kubernetes name: ...
         ALLOW demo/p for namespace demo: 
         mtls istio-system/q for mesh: -",
    );
}

#[test]
fn targets_are_services_of_the_namespace() {
    let service = "# file: s.yaml\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: demo}\nspec: {selector: {a: b}}\n";
    let check_targets = |spec: &str, expected: &str| {
        check(
            &format!("{service}{}", policy(spec)),
            &format!("service demo/web somewhere\n{}", expected.replace("\n         ", "\n")),
        );
    };
    let web = "ALLOW demo/p for services demo/web: ";
    check_targets("targetRefs: [{kind: Service, group: '', name: web}]", web);
    check_targets("targetRefs: [{kind: Service, group: core, name: web, namespace: demo}]", web);
    check_targets("targetRefs: [{kind: Service, name: web}, {kind: Service, name: web}]", web);
    check_targets("targetRef: {kind: Service, name: web}\nselector: {}", web);
    check_targets("targetRefs: []", "ALLOW demo/p for namespace demo: ");
    check_targets(
        "targetRefs: [{kind: Service, name: web}, {kind: Service, name: wbe}]",
        "ALLOW demo/p for services demo/web|demo/wbe: 
         problem p.yaml:1: AuthorizationPolicy demo/p: spec.targetRefs: there is no Service demo/wbe: this target \
             matches no pod",
    );
    for kind in ["{}", "{type: ExternalName, externalName: example.org}", "{clusterIP: None, ports: [{port: 80}]}"] {
        let shown = super::show(&format!(
            "{}{}",
            service.replace("{selector: {a: b}}", kind),
            policy("targetRefs: [{kind: Service, name: web}]")
        ));
        let told = "spec.targetRefs: Service demo/web has no selector, and no EndpointSlice names it: this target \
            matches no pod";
        assert!(shown.contains(web) && shown.contains(told), "{shown}");
    }
    let waypoint = |index: usize, kind: &str| {
        format!(
            "warning p.yaml:6: AuthorizationPolicy demo/p: spec.targetRefs[{index}]: a policy for a \"{kind}\" is \
             enforced by a waypoint or gateway: it has no effect here; ..."
        )
    };
    check_targets(
        "targetRefs: [{kind: Service, name: web},\n{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}]",
        &format!("{web}\n{}", waypoint(1, "Gateway")),
    );
    check_targets(
        "targetRefs:\n- {kind: GatewayClass, group: gateway.networking.k8s.io, name: waypoint}",
        &waypoint(0, "GatewayClass"),
    );
    check_targets(
        "targetRefs:\n- {kind: ServiceEntry, group: networking.istio.io, name: x}",
        &waypoint(0, "ServiceEntry"),
    );
}

#[test]
fn peer_authentication_is_read() {
    let check_spec = |spec: &str, expected: &str| {
        check(
            &format!(
                "# file: p.yaml\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: \
                 demo, creationTimestamp: '1970-01-01T00:01:00Z'}}\nspec: {spec}\n"
            ),
            &format!("mtls demo/p for {expected}"),
        );
    };
    check_spec("{mtls: {mode: STRICT}}", "namespace demo: STRICT of 60");
    check_spec("{mtls: {mode: PERMISSIVE}}", "namespace demo: PERMISSIVE of 60");
    check_spec("{mtls: {mode: UNSET}}", "namespace demo: - of 60");
    check_spec("{mtls: {mode: null}}", "namespace demo: - of 60");
    check_spec("{mtls: {}}", "namespace demo: - of 60");
    check_spec("{mtls: null}", "namespace demo: - of 60");
    let disable = "\nwarning p.yaml:1: PeerAuthentication demo/p: mode DISABLE is treated as PERMISSIVE: ...";
    check_spec("{mtls: {mode: DISABLE}}", &format!("namespace demo: DISABLE of 60{disable}"));
    let ports = |ports: &str| {
        format!("{{selector: {{matchLabels: {{app: web}}}}, mtls: {{mode: STRICT}}, portLevelMtls: {ports}}}")
    };
    check_spec(
        &ports("{8080: {mode: PERMISSIVE}, '80': {mode: STRICT}, 81: {}, 82: {mode: UNSET}, 83: null}"),
        "app=web in demo: STRICT, 80=STRICT, 81=-, 82=-, 83=-, 8080=PERMISSIVE of 60",
    );
    check_spec(&ports("{}"), "app=web in demo: STRICT of 60");
    check_spec(&ports("{1: {mode: DISABLE}}"), &format!("app=web in demo: STRICT, 1=DISABLE of 60{disable}"));
    check_spec(
        "{portLevelMtls: {80: {mode: STRICT}}}",
        "namespace demo: - of 60
         problem p.yaml:1: PeerAuthentication demo/p: spec.portLevelMtls: it has an effect only with a selector: \
             write one",
    );
}

#[test]
fn of_several_peer_authentications_the_oldest_counts() {
    let object = |name: &str, namespace: &str, time: Option<u8>, spec: &str| {
        let time = time.map(|time| format!(", creationTimestamp: '1970-01-01T00:00:0{time}Z'")).unwrap_or_default();
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}{time}}}\n\
             spec: {{{spec}}}\n"
        )
    };
    let web = "selector: {matchLabels: {app: web}}";
    let files = [
        object("a", "demo", Some(2), ""),
        object("b", "demo", Some(1), ""),
        object("c", "demo", Some(1), ""),
        object("d", "demo", None, web),
        object("e", "demo", Some(1), web),
        object("f", "demo", None, "selector: {matchLabels: {app: other}}"),
        object("g", "other", None, ""),
        object("h", "other", None, web),
        object("i", "istio-system", None, ""),
        object("j", "istio-system", None, ""),
    ];
    check(
        &format!("# file: p.yaml\n{}", files.concat()),
        "mtls demo/a for namespace demo: - of 2
         mtls demo/b for namespace demo: - of 1
         mtls demo/c for namespace demo: - of 1
         mtls demo/d for app=web in demo: -
         mtls demo/e for app=web in demo: - of 1
         mtls demo/f for app=other in demo: -
         mtls istio-system/i for mesh: -
         mtls istio-system/j for mesh: -
         mtls other/g for namespace other: -
         mtls other/h for app=web in other: -
         problem p.yaml:2: PeerAuthentication demo/a: has no effect: PeerAuthentication demo/b is for the same workloads and is older: remove one of the two
         problem p.yaml:12: PeerAuthentication demo/c: has no effect: PeerAuthentication demo/b is for the same workloads and comes first by name: ...
         problem p.yaml:22: PeerAuthentication demo/e: has no effect: PeerAuthentication demo/d is for the same workloads and is older: ...
         problem p.yaml:47: PeerAuthentication istio-system/j: has no effect: PeerAuthentication istio-system/i is \
             for the same workloads and comes first by name: ...",
    );
}

#[test]
fn policies_stand_in_lists_and_json_and_once() {
    check(
        "# file: a.yaml
        apiVersion: v1
        kind: List
        items:
        - {apiVersion: v1, kind: Namespace, metadata: {name: demo}}
        - apiVersion: security.istio.io/v1beta1
          kind: AuthorizationPolicy
          metadata: {name: p, namespace: demo}
          spec:
            rules:
            - to:
              - operation:
                  paths: [/]
        - {apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: q, namespace: demo}}
        # file: b.json
        {\"apiVersion\": \"security.istio.io/v1\", \"kind\": \"AuthorizationPolicy\",
        \t\"metadata\": {\"name\": \"json\", \"namespace\": \"demo\", \"creationTimestamp\": null},
        \t\"spec\": {\"rules\": [{\"to\": [{\"operation\": {\"ports\": [\"80\"]}}]}]}}
        # file: c.yaml
        apiVersion: security.istio.io/v1
        kind: AuthorizationPolicy
        metadata: {name: p, namespace: demo}
        spec: {action: DENY, rules: [{}]}",
        "ALLOW demo/json for namespace demo: to port=80
         ALLOW demo/p for namespace demo: anything, unjudged: to[0].operation.paths
         mtls demo/q for namespace demo: -
         warning a.yaml:12: AuthorizationPolicy demo/p: spec.rules[0].to[0].operation.paths: requests ...
         problem c.yaml:1: AuthorizationPolicy demo/p: is already in a.yaml:5, which is in force: remove one of the \
             two",
    );
}
