//! The semantics of AuthorizationPolicy, one edge case at a time.

use std::thread;

use super::fixture::{check, connection, local, snapshot, web};
use crate::model::local::{Exclusions, LocalPod};
use crate::policy::{Basis, Permit, PodPolicies};

const CLIENT: &str = "cluster.local/ns/demo/sa/client 10.0.1.1 80";
const OTHER: &str = "cluster.local/ns/prod/sa/batch 10.0.2.2 80";
const PLAIN: &str = "- 10.0.1.1 80";

/// Checks, for each of the three connections, whether an ALLOW rule allows it: `y` or `n`.
fn allows(rule: &str, expected: &str) {
    let mesh = format!("ALLOW demo/a: {rule}");
    for (connection, expected) in [CLIENT, OTHER, PLAIN].into_iter().zip(expected.chars()) {
        let denial = "no ALLOW policy matched: demo/a";
        check(&mesh, connection, if expected == 'y' { "allowed" } else { denial });
    }
}

#[test]
fn nothing_at_all_allows() {
    check("", CLIENT, "allowed");
    check("", PLAIN, "allowed");
    let guard = PodPolicies::default();
    assert!(guard.judge(&connection(PLAIN)).is_ok());
}

#[test]
fn the_order_is_deny_then_allow() {
    let deny = "AuthorizationPolicy demo/d (DENY), rules[0]: to[0].operation.ports 80";
    check("DENY demo/d: to ports=80", CLIENT, deny);
    check("DENY demo/d: to ports=81", CLIENT, "allowed");
    check("ALLOW demo/a: to ports=80\nDENY demo/d: to ports=80", CLIENT, deny);
    check("ALLOW demo/a: to ports=80\nDENY demo/d: to ports=81", CLIENT, "allowed");
    check("ALLOW demo/a: to ports=81\nDENY demo/d: to ports=81", CLIENT, "no ALLOW policy matched: demo/a");
    check("ALLOW demo/a: to ports=81\nALLOW demo/b: to ports=80", CLIENT, "allowed");
    check("ALLOW demo/a: to ports=81\nALLOW istio-system/m: to ports=80", CLIENT, "allowed");
    check("AUDIT demo/d: *", CLIENT, "allowed");
    check("DENY demo/d dry-run: *\nALLOW demo/a dry-run\nCUSTOM demo/c dry-run: *", CLIENT, "allowed");
    check("CUSTOM demo/c: to ports=80", CLIENT, &deny.replace("demo/d (DENY)", "demo/c (CUSTOM)"));
    check("CUSTOM demo/c: to ports=81", CLIENT, "allowed");
}

#[test]
fn the_rule_that_allows_is_named() {
    let named = |mesh: &str, client: &str| {
        let guard = PodPolicies::of(&snapshot(mesh), &web(), &local());
        let client = connection(client);
        assert!(guard.judge(&client).is_ok(), "{mesh}");
        let rule = guard.allowing_rule(&client).map(|(policy, rule)| format!("{policy} {rule}"));
        assert_eq!(rule.is_some(), guard.needs_permission(80), "{mesh}");
        rule
    };
    assert_eq!(named("", CLIENT), None);
    assert_eq!(named("DENY demo/d: to ports=81", CLIENT), None);
    assert_eq!(named("ALLOW demo/b: to ports=80\nALLOW demo/a: *", CLIENT).as_deref(), Some("demo/a 0"));
    assert_eq!(named("ALLOW demo/b: to ports=80\nALLOW demo/a: to ports=81", CLIENT).as_deref(), Some("demo/b 0"));
    assert_eq!(
        named("ALLOW demo/a: to ports=81", "cluster.local/ns/demo/sa/client 10.0.1.1 81").as_deref(),
        Some("demo/a 0")
    );
}

#[test]
fn what_is_empty() {
    check("ALLOW demo/a", CLIENT, "no ALLOW policy matched: demo/a");
    check("DENY demo/d", CLIENT, "allowed");
    check("ALLOW demo/a: *", PLAIN, "allowed");
    check("DENY demo/d: *", PLAIN, "AuthorizationPolicy demo/d (DENY), rules[0]: every connection");
    check("DENY demo/d: from *", PLAIN, "AuthorizationPolicy demo/d (DENY), rules[0]: from: every client");
    check(
        "DENY demo/d: to * & from *",
        PLAIN,
        "AuthorizationPolicy demo/d (DENY), rules[0]: to: every destination, from: every client",
    );
    check("DENY demo/d: when *", PLAIN, "AuthorizationPolicy demo/d (DENY), rules[0]: when[0]: every value");
    allows("from *", "yyy");
    allows("from -", "nnn");
    allows("from - | namespaces=prod", "nyn");
    allows("from * & to -", "nnn");
}

#[test]
fn rules_or_clauses_and_matches_or_fields_and_values_or() {
    allows("from namespaces=demo || from namespaces=prod", "yyn");
    allows("from namespaces=demo & to ports=80", "ynn");
    allows("from namespaces=demo & to ports=81", "nnn");
    allows("from namespaces=demo | ipBlocks=10.0.2.0/24", "yyn");
    allows("from namespaces=demo, ipBlocks=10.0.2.0/24", "nnn");
    allows("from namespaces=demo, ipBlocks=10.0.1.0/24", "ynn");
    allows("from namespaces=test demo", "ynn");
    allows("from namespaces=demo prod, notPrincipals=*/sa/batch", "ynn");
    allows("from ipBlocks=10.0.0.0/8, notIpBlocks=10.0.2.0/24 10.0.3.0/24", "yny");
    allows("when namespaces=demo & when ipBlocks=10.0.1.1/32", "ynn");
}

#[test]
fn principals() {
    allows("from principals=cluster.local/ns/demo/sa/client", "ynn");
    allows("from principals=cluster.local/ns/demo/sa/clien", "nnn");
    allows("from principals=cluster.local/ns/demo/*", "ynn");
    allows("from principals=*/sa/batch", "nyn");
    allows("from principals=*", "yyn");
    allows("from principals=spiffe://cluster.local/ns/demo/sa/client", "nnn");
    allows("from principals=spiffe://*", "nnn");
    allows("from principals=*spiffe://cluster.local/ns/demo/sa/client", "nnn");
    allows("from notPrincipals=spiffe://cluster.local/ns/demo/sa/client", "yyy");
    allows("from notPrincipals=*", "nny");
    allows("from notPrincipals=cluster.local/ns/demo/sa/client", "nyy");
}

#[test]
fn without_an_identity_the_namespace_is_empty() {
    allows("from namespaces=*", "yyn");
    allows("from notNamespaces=demo", "nyy");
    allows("from notNamespaces=*", "nny");
    allows("from namespaces=de*", "ynn");
    allows("from namespaces=*od", "nyn");
    check(
        "DENY demo/d: from notNamespaces=demo",
        PLAIN,
        "AuthorizationPolicy demo/d (DENY), rules[0]: from[0].source.notNamespaces does not list a client without identity",
    );
}

#[test]
fn service_accounts_ignore_the_trust_domain() {
    allows("from serviceAccounts=demo/client", "ynn");
    allows("from serviceAccounts=demo/clien demo/batch prod/client", "nnn");
    allows("from notServiceAccounts=demo/client", "nyy");
    let elsewhere = "other.example/ns/demo/sa/client 10.0.1.1 80";
    check("ALLOW demo/a: from serviceAccounts=demo/client", elsewhere, "allowed");
    check("ALLOW demo/a: from principals=cluster.local/*", elsewhere, "no ALLOW policy matched: demo/a");
}

#[test]
fn trust_domains_are_those_of_certificates() {
    allows("from trustDomains=cluster.local", "yyn");
    allows("from trustDomains=*", "yyn");
    allows("from trustDomains=cluster*", "yyn");
    allows("from trustDomains=*.local", "yyn");
    allows("from trustDomains=other.example", "nnn");
    allows("from trustDomains=cluster", "nnn");
    allows("from trustDomains=cluster.local, namespaces=prod", "nyn");
    allows("from notTrustDomains=cluster.local", "nny");
    allows("from notTrustDomains=other.example", "yyy");
    allows("from notTrustDomains=*", "nny");
    let elsewhere = "other.example/ns/demo/sa/client 10.0.1.1 80";
    check("ALLOW demo/a: from trustDomains=cluster.local", elsewhere, "no ALLOW policy matched: demo/a");
    let mesh = "ALLOW demo/a: from trustDomains=other.example, serviceAccounts=demo/client";
    check(mesh, elsewhere, "allowed");
    check(mesh, CLIENT, "no ALLOW policy matched: demo/a");
    check(
        "DENY demo/d: from trustDomains=other.* x",
        elsewhere,
        "AuthorizationPolicy demo/d (DENY), rules[0]: from[0].source.trustDomains other.*",
    );
    check(
        "DENY demo/d: from notTrustDomains=cluster.local",
        PLAIN,
        "AuthorizationPolicy demo/d (DENY), rules[0]: from[0].source.notTrustDomains does not list a client without identity",
    );
}

#[test]
fn addresses_and_ports() {
    allows("from ipBlocks=10.0.1.1/32", "yny");
    allows("from ipBlocks=0.0.0.0/0", "yyy");
    allows("from ipBlocks=::/0", "nnn");
    allows("from notIpBlocks=::/0", "yyy");
    check("ALLOW demo/a: from ipBlocks=fd00::/16", "- fd00::1 80", "allowed");
    check("DENY demo/a: from ipBlocks=0.0.0.0/0", "- fd00::1 80", "allowed");
    allows("when destination=10.0.9.1/32", "yyy");
    allows("when destination=10.0.9.2/32", "nnn");
    allows("when notDestination=10.0.9.0/24", "nnn");
    allows("to notPorts=80", "nnn");
    allows("to notPorts=81 82", "yyy");
    allows("to ports=81 80", "yyy");
    allows("to ports=80, notPorts=80", "nnn");
}

#[test]
fn what_cant_be_judged_allows_nothing_and_denies_without_it() {
    allows("from namespaces=demo & !to[0].operation.methods", "nnn");
    check("ALLOW demo/a: !to[0].operation.paths || to ports=80", CLIENT, "allowed");
    let deny = "AuthorizationPolicy demo/d (DENY), rules[0]: from[0].source.namespaces demo";
    check("DENY demo/d: from namespaces=demo & !to[0].operation.methods", CLIENT, deny);
    check("DENY demo/d: from namespaces=demo & !to[0].operation.methods", OTHER, "allowed");
    check(
        "DENY demo/d: !to[0].operation.methods",
        OTHER,
        "AuthorizationPolicy demo/d (DENY), rules[0]: every connection",
    );
}

#[test]
fn scopes() {
    let denied = |by: &str| format!("AuthorizationPolicy {by} (DENY), rules[0]: every connection");
    check("DENY prod/d: *", CLIENT, "allowed");
    check("DENY istio-system/d: *", CLIENT, &denied("istio-system/d"));
    check("DENY demo/d @app=web: *", CLIENT, &denied("demo/d"));
    check("DENY demo/d @app=web,tier=front: *", CLIENT, &denied("demo/d"));
    check("DENY demo/d @app=web,tier=back: *", CLIENT, "allowed");
    check("DENY demo/d @app=api: *", CLIENT, "allowed");
    check("DENY prod/d @app=web: *", CLIENT, "allowed");
    check("DENY istio-system/d @app=web: *", CLIENT, &denied("istio-system/d"));
    check("DENY istio-system/d @app=api: *", CLIENT, "allowed");
    check("ALLOW demo/a @app=api\nALLOW prod/b", CLIENT, "allowed");
}

#[test]
fn the_first_by_name_and_place_is_told() {
    let mesh = "DENY istio-system/a: *
        DENY demo/b: to ports=80
        DENY demo/c @app=web: *
        DENY demo/a @tier=front: to ports=81 || from principals=* || to ports=80";
    check(mesh, CLIENT, "AuthorizationPolicy demo/a (DENY), rules[1]: from[0].source.principals *");
    check(mesh, PLAIN, "AuthorizationPolicy demo/a (DENY), rules[2]: to[0].operation.ports 80");
}

#[test]
fn words_of_a_match() {
    let told = |rule: &str, connection: &str, clauses: &str| {
        check(
            &format!("DENY demo/d: {rule}"),
            connection,
            &format!("AuthorizationPolicy demo/d (DENY), rules[0]: {clauses}"),
        );
    };
    told(
        "from namespaces=prod | principals=*/sa/client, notIpBlocks=10.9.0.0/16 & to ports=80 & when notPrincipals=x",
        CLIENT,
        "from[1].source.principals */sa/client, from[1].source.notIpBlocks does not list 10.0.1.1, to[0].operation.ports 80, \
         when[0].notValues (source.principal) does not list cluster.local/ns/demo/sa/client",
    );
    told(
        "from serviceAccounts=demo/client & when destination=10.0.9.0/24 & when ipBlocks=10.0.0.0/8",
        CLIENT,
        "from[0].source.serviceAccounts demo/client, when[0].values (destination.ip) 10.0.9.0/24, when[1].values (source.ip) 10.0.0.0/8",
    );
}

#[test]
fn at_most_ten_names_are_told() {
    let mesh = |count: u32| (1..=count).map(|n| format!("ALLOW demo/p{n:02}\n")).collect::<String>();
    let ten: Vec<String> = (1..=10).map(|n| format!("demo/p{n:02}")).collect();
    check(&mesh(10), CLIENT, &format!("no ALLOW policy matched: {}", ten.join(", ")));
    check(&mesh(13), CLIENT, &format!("no ALLOW policy matched: {} and 3 more", ten.join(", ")));
    check(
        "ALLOW demo/b\nALLOW istio-system/c\nALLOW demo/a dry-run\nALLOW demo/a2 @app=web",
        CLIENT,
        "no ALLOW policy matched: demo/a2, demo/b, istio-system/c",
    );
}

#[test]
fn policies_that_could_not_be_read_keep_everyone_out() {
    let unknown = "policies of broken.yaml are not known: it has never been readable";
    check("UNREAD broken.yaml\nALLOW demo/a: *", CLIENT, unknown);
    check("UNREAD broken.yaml demo\nPA demo/p STRICT", PLAIN, unknown);
    check("UNREAD broken.yaml prod", CLIENT, "allowed");
}

#[test]
fn a_probe_may_be_let_in_whatever_keeps_it_out() {
    let admits = |mesh: &str, text: &str| {
        let guard = PodPolicies::of(&snapshot(mesh), &web(), &local());
        let connection = connection(text);
        let denial = guard.judge(&connection).unwrap_err().told(&connection);
        let permit: Option<Permit> = PodPolicies::admit_probe(&denial);
        assert_eq!(permit.is_some(), denial.at_probe);
        permit.is_some()
    };
    for mesh in ["PA demo/p STRICT", "ALLOW demo/a", "DENY demo/d: *", "UNREAD broken.yaml"] {
        assert!(admits(mesh, "- 10.0.1.1 8086"), "{mesh}");
    }
    assert!(!admits("ALLOW demo/a", "- 10.0.1.1 8080"));
    assert!(!admits("ALLOW demo/a", "cluster.local/ns/demo/sa/client 10.0.1.1 8086"));
}

#[test]
fn no_policy_is_enforced_at_a_port_that_is_excluded_from_inbound_capture() {
    let mesh = "PA demo/p STRICT\nDENY demo/d: *\nDENY demo/e dry-run: *";
    let exclusions = Exclusions { inbound_ports: "9090".parse().unwrap(), ..Exclusions::default() };
    let guard = PodPolicies::of(&snapshot(mesh), &web(), &LocalPod { exclusions, ..local() });
    for client in ["- 10.0.0.1", "cluster.local/ns/demo/sa/client 10.0.0.1"] {
        let excluded = connection(&format!("{client} 9090"));
        assert_eq!(guard.judge(&excluded).unwrap().basis(), Basis::ExcludedPort);
        guard.unenforced(&excluded, |unenforced| panic!("{unenforced:?}"));
        assert!(guard.judge(&connection(&format!("{client} 9091"))).is_err());
    }
    let open = PodPolicies::of(&snapshot("DENY demo/d: to ports=80"), &web(), &local());
    assert_eq!(open.judge(&connection("- 10.0.0.1 81")).unwrap().basis(), Basis::Policy);
}

/// Checks the matches of policies that are not enforced, as `POLICY ACTION [RULE]`.
fn unenforced(mesh: &str, text: &str, expected: &[&str]) {
    let guard = PodPolicies::of(&snapshot(mesh), &web(), &local());
    let mut found = Vec::new();
    guard.unenforced(&connection(text), |unenforced| {
        let rule = unenforced.rule.map_or_else(|| "none".to_owned(), |rule| rule.to_string());
        let dry_run = if unenforced.dry_run { " dry-run" } else { "" };
        found.push(format!("{} {}{dry_run} {rule}", unenforced.policy, unenforced.action.name()));
    });
    assert_eq!(found, expected, "\n{mesh}");
}

#[test]
fn dry_run_and_audit_speak_beside() {
    unenforced("DENY demo/d: *\nALLOW demo/a", CLIENT, &[]);
    unenforced("AUDIT demo/x: to ports=81 || to ports=80\nAUDIT demo/y: to ports=81", CLIENT, &["demo/x AUDIT 1"]);
    unenforced(
        "DENY demo/d dry-run: to ports=80 || *\nDENY demo/e dry-run: to ports=81",
        CLIENT,
        &["demo/d DENY dry-run 0"],
    );
    unenforced(
        "AUDIT istio-system/z: *\nDENY demo/d dry-run: *\nAUDIT demo/a @app=web: *",
        CLIENT,
        &["demo/a AUDIT 0", "demo/d DENY dry-run 0", "istio-system/z AUDIT 0"],
    );
    unenforced("DENY prod/d dry-run: *\nAUDIT demo/a @app=api: *", CLIENT, &[]);
}

#[test]
fn dry_run_allow_tells_what_it_would_keep_out() {
    unenforced("ALLOW demo/a dry-run: to ports=80\nALLOW demo/b dry-run", CLIENT, &["demo/a ALLOW dry-run 0"]);
    unenforced(
        "ALLOW demo/b dry-run\nALLOW demo/a dry-run: to ports=81",
        CLIENT,
        &["demo/a ALLOW dry-run none", "demo/b ALLOW dry-run none"],
    );
    unenforced("ALLOW demo/a dry-run\nALLOW demo/b: to ports=80", CLIENT, &[]);
    unenforced("ALLOW demo/a dry-run\nALLOW demo/b: to ports=81", CLIENT, &["demo/a ALLOW dry-run none"]);
    unenforced("ALLOW demo/a dry-run: !to[0].operation.methods", CLIENT, &["demo/a ALLOW dry-run none"]);
}

#[test]
fn a_guard_outlives_its_snapshot_and_serves_any_thread() {
    let guard = PodPolicies::of(&snapshot("DENY demo/d @app=web: to ports=80\nPA demo/p STRICT"), &web(), &local());
    let names: Vec<String> = guard.names().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["demo/d"]);
    let told = thread::scope(|scope| {
        let judge = || {
            let connection = connection(CLIENT);
            guard.judge(&connection).map_or_else(|denied| denied.told(&connection).to_string(), |_| String::new())
        };
        [scope.spawn(judge), scope.spawn(judge)].map(|thread| thread.join().unwrap())
    });
    assert_eq!(told, ["AuthorizationPolicy demo/d (DENY), rules[0]: to[0].operation.ports 80"; 2]);
}
