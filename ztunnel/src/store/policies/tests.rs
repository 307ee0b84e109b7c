use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::ControlFlow;

use super::index::Index;
use super::{Facts, Source};
use crate::model::policy::{Clause, Match, Part, Rule, StringMatch};
use crate::model::workload::NamespacedName;

fn rule(matches: Vec<Match>) -> Rule {
    Rule { clauses: vec![Clause { part: Part::From, matches }], unjudged: vec![] }
}

/// The rules that are evaluated for a client `cluster.local/ns/demo/sa/client` at 10.0.1.1 and port 80. Further rules with
/// other keys are appended.
fn looked_at(rules: &[Rule]) -> BTreeSet<u32> {
    let others = (0..20).map(|n| {
        let namespaces = vec![StringMatch::new(&format!("other-{n}"))];
        rule(vec![Match { namespaces, ..Match::default() }])
    });
    let all: Vec<Rule> = rules.iter().cloned().chain(others).collect();
    let index = Index::new(all.iter().map(Some));
    let source_ip: IpAddr = "10.0.1.1".parse().unwrap();
    let source = Source { principal: "cluster.local/ns/demo/sa/client", namespace: "demo", service_account: "client" };
    let facts = Facts { source: Some(source), source_ip, destination: "10.0.9.1:80".parse().unwrap() };
    let mut found = BTreeSet::new();
    let _ = index.candidates(&facts, |bucket| {
        found.extend(bucket);
        ControlFlow::Continue(())
    });
    found
}

/// Evaluates rules of one alternative each.
fn one_by_one(matches: Vec<Match>) -> BTreeSet<u32> {
    looked_at(&matches.into_iter().map(|wanted| rule(vec![wanted])).collect::<Vec<_>>())
}

#[test]
fn rules_are_found_by_whatever_they_name() {
    let principals = |text: &str| Match { principals: vec![StringMatch::new(text)], ..Match::default() };
    let namespaces = |text: &str| Match { namespaces: vec![StringMatch::new(text)], ..Match::default() };
    let account = |name: &str| Match { service_accounts: vec![NamespacedName::new("demo", name)], ..Match::default() };
    let from = |net: &str| Match { source_ips: vec![net.parse().unwrap()], ..Match::default() };
    let to = |net: &str| Match { destination_ips: vec![net.parse().unwrap()], ..Match::default() };
    let domains = |text: &str| Match { trust_domains: vec![StringMatch::new(text)], ..Match::default() };
    let ports = |port| Match { destination_ports: vec![port], ..Match::default() };
    let found = one_by_one(vec![
        principals("cluster.local/ns/demo/sa/client"),
        principals("cluster.local/ns/demo/sa/web"),
        principals("cluster.local/ns/demo/*"),
        principals("cluster.local/ns/prod/*"),
        principals("*/client"),
        principals("*/batch"),
        principals("*"),
        namespaces("demo"),
        namespaces("prod"),
        account("client"),
        account("web"),
        from("10.0.0.0/16"),
        from("10.1.0.0/16"),
        from("fd00::/16"),
        to("10.0.9.1/32"),
        to("10.0.9.2/32"),
        ports(80),
        ports(81),
        domains("cluster.local"),
        domains("other.example"),
        domains("cluster*"),
        domains("*.local"),
    ]);
    assert_eq!(found, BTreeSet::from([0, 2, 4, 6, 7, 9, 11, 14, 16, 18, 20, 21]));
}

#[test]
fn the_rarest_way_is_chosen() {
    // All rules name the port, and each has its own principal.
    let each = |n: u32| Match {
        principals: vec![StringMatch::new(&format!("cluster.local/ns/demo/sa/client{n}"))],
        destination_ports: vec![80],
        ..Match::default()
    };
    assert!(one_by_one((0..20).map(each).collect()).is_empty());
}

#[test]
fn what_names_nothing_is_always_looked_at() {
    let not = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    let port = Match { destination_ports: vec![81], ..Match::default() };
    let rules = [
        rule(vec![not.clone()]),
        // One alternative must match: if one of them has no key, the rule is always evaluated.
        rule(vec![port.clone(), not.clone()]),
        rule(vec![]),
        Rule::default(),
        // This rule never matches, and is never evaluated.
        rule(vec![Match::default()]),
        // All clauses must match: one clause with a key is enough.
        Rule { clauses: [rule(vec![not]).clauses, rule(vec![port]).clauses].concat(), unjudged: vec![] },
    ];
    assert_eq!(looked_at(&rules), BTreeSet::from([0, 1, 2, 3]));
}
