//! Random policies: the verdict is that of the reference, and a change that restricts never allows another connection.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::{Strategy, any, prop};
use proptest::test_runner::{Config, TestRunner};

use super::fixture::{labels, local, origin, snapshot, web};
use super::reference;
use crate::model::identity::SpiffeId;
use crate::model::policy::{
    Action, AuthorizationPolicy, Clause, Match, MtlsMode, Part, PeerAuthentication, PolicySet, Rule, Scope, StringMatch,
};
use crate::model::workload::NamespacedName;
use crate::policy::{Applies, Cause, Connection, PodPolicies, Principal, trace};
use crate::store::snapshot::Snapshot;

const IDENTITIES: [&str; 6] = [
    "",
    "spiffe://cluster.local/ns/demo/sa/client",
    "spiffe://cluster.local/ns/demo/sa/web",
    "spiffe://cluster.local/ns/prod/sa/client",
    "spiffe://other.example/ns/demo/sa/client",
    "spiffe://other.example/ns/prod/sa/batch",
];
const ADDRESSES: [&str; 5] = ["10.0.1.1", "10.0.1.2", "10.0.2.1", "fd00::1", "fd00:1::1"];
const PORTS: [u16; 4] = [80, 8080, 8081, 9090];

const PRINCIPALS: [&str; 12] = [
    "*",
    "cluster.local/ns/demo/sa/client",
    "cluster.local/ns/demo/sa/web",
    "cluster.local/ns/prod/sa/client",
    "other.example/ns/prod/sa/batch",
    "cluster.local/*",
    "cluster.local/ns/demo/*",
    "cluster.local/ns/demo/sa/client*",
    "*/sa/client",
    "*client",
    "spiffe://cluster.local/ns/demo/sa/client",
    "unknown",
];
const NAMESPACES: [&str; 7] = ["*", "demo", "prod", "test", "de*", "*od", "pro*"];
const TRUST_DOMAINS: [&str; 6] = ["*", "cluster.local", "other.example", "cluster.*", "*.example", "cluster"];
const ACCOUNTS: [(&str, &str); 5] =
    [("demo", "client"), ("demo", "web"), ("prod", "client"), ("prod", "batch"), ("demo", "batch")];
const NETS: [&str; 8] =
    ["10.0.1.1/32", "10.0.1.0/24", "10.0.0.0/16", "0.0.0.0/0", "fd00::/32", "::/0", "10.0.2.0/24", "fd00::1/128"];
const DESTINATIONS: [&str; 4] = ["10.0.9.1/32", "10.0.9.0/24", "10.0.8.0/24", "fd00::/16"];

/// Sets of policies, each with all connections above: more than 100,000 evaluations.
const SETS: u32 = 850;

fn connections() -> Vec<Connection> {
    let mut all = Vec::new();
    for identity in IDENTITIES {
        for address in ADDRESSES {
            for port in PORTS {
                let source = identity.parse::<SpiffeId>().ok().map(Principal::new);
                let source_ip: IpAddr = address.parse().unwrap();
                let own: IpAddr = if source_ip.is_ipv4() { "10.0.9.1" } else { "fd00:9::1" }.parse().unwrap();
                all.push(Connection { source, source_ip, destination: (own, port).into() });
            }
        }
    }
    all
}

/// Elements of an alphabet, by index.
fn picked<T>(alphabet: &[T], picks: &[usize]) -> Vec<T>
where
    T: Clone,
{
    picks.iter().map(|pick| alphabet[pick % alphabet.len()].clone()).collect()
}

fn texts(alphabet: &[&str], picks: &[usize]) -> Vec<StringMatch> {
    picked(alphabet, picks).into_iter().map(StringMatch::new).collect()
}

fn set_field(wanted: &mut Match, field: u8, picks: &[usize]) {
    let accounts =
        || picked(&ACCOUNTS, picks).into_iter().map(|(space, name)| NamespacedName::new(space, name)).collect();
    let nets = |alphabet: &[&str]| picked(alphabet, picks).into_iter().map(|net| net.parse().unwrap()).collect();
    match field {
        0 | 12 => wanted.principals = texts(&PRINCIPALS, picks),
        1 => wanted.not_principals = texts(&PRINCIPALS, picks),
        2 | 13 => wanted.namespaces = texts(&NAMESPACES, picks),
        3 => wanted.not_namespaces = texts(&NAMESPACES, picks),
        4 => wanted.service_accounts = accounts(),
        5 => wanted.not_service_accounts = accounts(),
        6 | 14 => wanted.source_ips = nets(&NETS),
        7 => wanted.not_source_ips = nets(&NETS),
        8 => wanted.destination_ips = nets(&DESTINATIONS),
        9 => wanted.not_destination_ips = nets(&DESTINATIONS),
        10 | 15 => wanted.destination_ports = picked(&PORTS, picks),
        16 => wanted.trust_domains = texts(&TRUST_DOMAINS, picks),
        17 => wanted.not_trust_domains = texts(&TRUST_DOMAINS, picks),
        _ => wanted.not_destination_ports = picked(&PORTS, picks),
    }
}

fn any_match() -> impl Strategy<Value = Match> {
    let field = (0..18_u8, prop::collection::vec(0..64_usize, 1..4));
    prop::collection::vec(field, 0..4).prop_map(|fields| {
        let mut wanted = Match::default();
        fields.iter().for_each(|(field, picks)| set_field(&mut wanted, *field, picks));
        wanted
    })
}

/// A list with fewer elements than `fewer`. Empty lists match everything and would hide the other cases, so they are rare.
fn rarely_empty<T: std::fmt::Debug>(of: impl Strategy<Value = T>, fewer: usize) -> impl Strategy<Value = Vec<T>> {
    (prop::collection::vec(of, 1..fewer), 0..20_u8).prop_map(|(list, empty)| if empty == 0 { vec![] } else { list })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let clause = (0..3_usize, rarely_empty(any_match(), 3)).prop_map(|(part, matches)| {
        let part = [Part::From, Part::To, Part::When(0)][part];
        Clause { part, matches }
    });
    (rarely_empty(clause, 4), 0..12_u8).prop_map(|(clauses, unjudged)| Rule {
        clauses,
        unjudged: if unjudged == 0 { vec!["to[0].operation.methods".to_owned()] } else { vec![] },
    })
}

fn any_scope() -> impl Strategy<Value = Scope> {
    let of_services =
        |names: &[&str]| Scope::Services(names.iter().map(|name| NamespacedName::new("demo", *name)).collect());
    let selector =
        |namespace: Option<&str>, text| Scope::Selector { namespace: namespace.map(Into::into), labels: labels(text) };
    let scopes = vec![
        Scope::Namespace("demo".into()),
        Scope::Namespace("demo".into()),
        Scope::Namespace("demo".into()),
        Scope::Namespace("prod".into()),
        Scope::Mesh,
        selector(Some("demo"), "app=web"),
        selector(Some("demo"), "app=web,tier=front"),
        selector(Some("demo"), "app=api"),
        selector(None, "tier=front"),
        of_services(&["web"]),
        of_services(&["named", "web"]),
        of_services(&["listed", "nobody"]),
        of_services(&["unclear"]),
        of_services(&["unclear", "listed"]),
    ];
    prop::sample::select(scopes)
}

/// Policies with mostly two actions, so that their groups are large enough for an index.
fn any_policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let actions = vec![Action::Allow, Action::Allow, Action::Allow, Action::Deny, Action::Audit];
    let rules = prop::collection::vec(any_rule(), 0..4);
    (0..40_u8, prop::sample::select(actions), 0..8_u8, any_scope(), rules).prop_map(
        |(name, action, dry_run, scope, rules)| AuthorizationPolicy {
            name: NamespacedName::new("demo", format!("p{name}")),
            origin: origin(),
            scope,
            action: if name == 0 && action == Action::Deny { Action::Custom } else { action },
            dry_run: dry_run == 0,
            rules,
        },
    )
}

fn any_authentication() -> impl Strategy<Value = PeerAuthentication> {
    let modes = || {
        prop::sample::select(vec![None, Some(MtlsMode::Permissive), Some(MtlsMode::Strict), Some(MtlsMode::Disable)])
    };
    let created = prop::option::of(0..3_i64);
    let ports = prop::collection::btree_map(prop::sample::select(PORTS.to_vec()), modes(), 0..3);
    (0..9_u8, created, any_scope(), modes(), ports).prop_map(|(name, created, scope, mode, ports)| PeerAuthentication {
        name: NamespacedName::new("demo", format!("a{name}")),
        origin: origin(),
        created,
        ports: if matches!(scope, Scope::Selector { .. }) { ports } else { BTreeMap::new() },
        scope,
        mode,
    })
}

fn any_policies() -> impl Strategy<Value = PolicySet> {
    let authorization = prop::collection::vec(any_policy(), 0..24);
    let authentication = prop::collection::vec(any_authentication(), 0..4);
    (authorization, authentication).prop_map(|(mut authorization, mut authentication)| {
        authorization.sort_by(|one, other| one.name.cmp(&other.name));
        authorization.dedup_by(|one, other| one.name == other.name);
        authentication.sort_by(|one, other| one.name.cmp(&other.name));
        authentication.dedup_by(|one, other| one.name == other.name);
        PolicySet { authorization, authentication, ..PolicySet::default() }
    })
}

fn mesh(policies: PolicySet) -> Snapshot {
    let services = "SERVICE demo/web 80:8080 selector:app=web
        SERVICE demo/named 80:http 90:9090 selector:tier=front
        SERVICE demo/listed 80:8081 behind:80:8081
        SERVICE demo/unclear 80:8080 91:unheard-of selector:app=web
        SERVICE demo/nobody 80:80 selector:app=nobody";
    let services = snapshot(services).services().map(|service| (**service).clone()).collect();
    Snapshot::build(1, vec![web()], services, vec![]).with_policies(policies)
}

/// The verdict, in the reference's text.
fn verdict(guard: &PodPolicies, connection: &Connection) -> String {
    let Err(denied) = guard.judge(connection) else { return "allowed".to_owned() };
    match denied.told(connection).cause {
        Cause::Unread { .. } => "unread".to_owned(),
        Cause::Strict { .. } => "strict".to_owned(),
        Cause::Matched { policy, rule, .. } => format!("{policy} {rule}"),
        Cause::NotAllowed { policies, more } => {
            let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
            format!("none of {} and {more}", names.join(" "))
        }
    }
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, source_file: Some(file!()), ..Config::default() })
}

/// Counts the properties of a connection by which the index finds rules in a mesh. The debug output of the index names them.
fn ways(mesh: &Snapshot, seen: &mut BTreeMap<&'static str, usize>) {
    const WAYS: [&str; 9] = [
        "identity",
        "principals",
        "prefixes",
        "suffixes",
        "accounts",
        "namespaces",
        "sources",
        "destinations",
        "ports",
    ];
    let shown = format!("{:?}", mesh.policies());
    for index in shown.split("Keyed { ").skip(1) {
        for way in WAYS {
            let (_, rules) = index.split_once(&format!("{way}: ")).unwrap();
            let is_used = !rules.starts_with("{}") && !rules.starts_with("[]");
            *seen.entry(way).or_default() += usize::from(is_used);
        }
    }
}

#[test]
fn the_judgement_is_the_references() {
    let connections = connections();
    let seen: RefCell<BTreeMap<&str, usize>> = RefCell::default();
    let used: RefCell<BTreeMap<&str, usize>> = RefCell::default();
    let checked = runner(SETS).run(&any_policies(), |policies| {
        let mesh = mesh(policies);
        ways(&mesh, &mut used.borrow_mut());
        let guard = PodPolicies::of(&mesh, &web(), &local());
        for connection in &connections {
            let found = verdict(&guard, connection);
            assert_eq!(found, reference::judge(&mesh, &web(), connection), "{connection:?}");
            let kind =
                ["allowed", "strict", "none"].into_iter().find(|kind| found.starts_with(kind)).unwrap_or("denied");
            *seen.borrow_mut().entry(kind).or_default() += 1;
        }
        Ok(())
    });
    checked.unwrap();
    let used = used.into_inner();
    assert!(used.values().all(|count| *count > 50), "{used:?}");
    let seen = seen.into_inner();
    assert!(seen.values().sum::<usize>() > 100_000, "{seen:?}");
    assert!(seen.len() == 4 && seen.values().all(|count| *count > 500), "{seen:?}");
}

#[test]
fn the_trace_and_what_is_told_beside_agree_with_the_judgement() {
    let connections = connections();
    let checked = runner(60).run(&(any_policies(), 0..7_usize), |(policies, first)| {
        let mesh = mesh(policies);
        let guard = PodPolicies::of(&mesh, &web(), &local());
        for connection in connections.iter().skip(first).step_by(7) {
            let traced = trace(&mesh, &web(), connection);
            let (mut effective, mut unenforced) = (Vec::new(), Vec::new());
            for one in &traced {
                let applies = reference::applies(&mesh, &one.policy, &web(), connection);
                assert_eq!(one.applies == Applies::Yes, applies, "{one:?}");
                let is_sure = reference::applies_for(&mesh, &one.policy, &web(), connection, true);
                if applies && !is_sure && one.policy.action == Action::Allow && !one.policy.dry_run {
                    assert!(one.matched.is_none() && one.rules.iter().all(|rule| !rule.matched), "{one:?}");
                    continue;
                }
                for rule in &one.rules {
                    let wanted = &one.policy.rules[rule.index];
                    assert_eq!(rule.why.len(), wanted.clauses.len().max(1));
                    let can = one.policy.action != Action::Allow || wanted.unjudged.is_empty();
                    assert_eq!(rule.matched, can && reference::rule_matches(wanted, connection), "{one:?}");
                }
                match (one.matched, one.policy.dry_run || one.policy.action == Action::Audit) {
                    (Some(rule), true) => unenforced.push((one.policy.name.clone(), rule)),
                    (Some(_), false) => effective.push(&one.policy),
                    (None, _) => {}
                }
            }
            let names: Vec<&NamespacedName> = traced.iter().map(|one| &one.policy.name).collect();
            assert!(guard.names().iter().all(|name| names.contains(name)));
            let mut told = Vec::new();
            guard.unenforced(connection, |found| told.extend(found.rule.map(|rule| (found.policy.clone(), rule))));
            assert_eq!(told, unenforced);
            if guard.judge(connection).is_ok() {
                assert!(effective.iter().all(|policy| policy.action == Action::Allow));
            }
        }
        Ok(())
    });
    checked.unwrap();
}

/// Asserts that the policies `after` allow no connection that the policies `before` deny.
fn assert_no_more_is_let_in(before: PolicySet, after: PolicySet, connections: &[Connection]) {
    let [before, after] = [before, after].map(|policies| PodPolicies::of(&mesh(policies), &web(), &local()));
    for connection in connections {
        assert!(before.judge(connection).is_ok() || after.judge(connection).is_err(), "{connection:?}");
    }
}

#[test]
fn what_is_added_to_deny_never_lets_in_more() {
    let connections = connections();
    let checked = runner(120).run(&(any_policies(), any_policy()), |(before, added)| {
        let mut after = before.clone();
        let name = NamespacedName::new("demo", "added");
        after.authorization.push(AuthorizationPolicy { name, action: Action::Deny, dry_run: false, ..added });
        assert_no_more_is_let_in(before, after, &connections);
        Ok(())
    });
    checked.unwrap();
}

#[test]
fn without_an_allow_rule_no_more_is_let_in() {
    let connections = connections();
    let checked = runner(120).run(&(any_policies(), any::<prop::sample::Index>()), |(before, index)| {
        let allowing = |policy: &AuthorizationPolicy| policy.action == Action::Allow && !policy.rules.is_empty();
        let mut after = before.clone();
        let mut candidates: Vec<_> = after.authorization.iter_mut().filter(|policy| allowing(policy)).collect();
        if candidates.is_empty() {
            return Ok(());
        }
        let chosen = index.index(candidates.len());
        let rules = &mut candidates[chosen].rules;
        let rule = index.index(rules.len());
        rules.remove(rule);
        assert_no_more_is_let_in(before, after, &connections);
        Ok(())
    });
    checked.unwrap();
}

#[test]
fn dry_run_changes_nothing() {
    let connections = connections();
    let checked = runner(60).run(&any_policies(), |policies| {
        let mut without = policies.clone();
        without.authorization.retain(|policy| !policy.dry_run && policy.action != Action::Audit);
        let [with, without] = [policies, without].map(|policies| PodPolicies::of(&mesh(policies), &web(), &local()));
        for connection in &connections {
            assert_eq!(verdict(&with, connection), verdict(&without, connection));
        }
        Ok(())
    });
    checked.unwrap();
}
