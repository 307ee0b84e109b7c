//! Policies and connections as short texts.
//!
//! A line is a policy: `ACTION NAMESPACE/NAME [dry-run] [@SCOPE]: RULE || RULE`.
//!
//! - A rule has clauses with ` & ` between them. `*` is a rule without clauses.
//! - A clause is `from`, `to` or `when` and alternatives with ` | ` between them. `*` is a clause without alternatives.
//! - An alternative has fields with `, ` between them. `-` is an alternative without fields.
//! - A field is `name=VALUE VALUE`. `!path` is a field that can't be evaluated.
//! - A scope is `@label=value,label=value`, `@any label=value` in any namespace, or `@service/NAME`. Without a scope the policy
//!   is for its namespace, and for the mesh if that is `istio-system`.
//!
//! Other lines: `PA NAMESPACE/NAME MODE [@SCOPE] [created=N] [PORT=MODE]`; `UNREAD FILE [NAMESPACE]`; `SERVICE NAMESPACE/NAME
//! [PORT:TARGET] [selector:label=value] [behind:PORT:TARGET]`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::identity::{SpiffeId, TrustDomain};
use crate::model::labels::Labels;
use crate::model::local::LocalPod;
use crate::model::locality::Locality;
use crate::model::origin::Origin;
use crate::model::policy::{
    Action, AuthorizationPolicy, Clause, Match, MtlsMode, Part, PeerAuthentication, PolicySet, Rule, Scope, StringMatch,
};
use crate::model::service::{Endpoint, Health, Service, ServicePort, TargetPort};
use crate::model::workload::{Membership, NamedPort, NamespacedName, Workload};
use crate::policy::{Connection, PodPolicies, Principal};
use crate::store::snapshot::Snapshot;

/// Checks the verdict on a connection to the pod `demo/web`.
pub(super) fn check(mesh: &str, connection: &str, expected: &str) {
    let connection = self::connection(connection);
    assert_eq!(verdict(&snapshot(mesh), &connection), expected, "\n{mesh}\n{connection:?}");
}

pub(super) fn verdict(snapshot: &Snapshot, connection: &Connection) -> String {
    let guard = PodPolicies::of(snapshot, &web(), &local());
    guard.judge(connection).map_or_else(|denied| denied.told(connection).to_string(), |_| "allowed".to_owned())
}

/// The protected pod: its address is 10.0.9.1, its port `http` is 8080.
pub(super) fn web() -> Workload {
    Workload {
        addresses: vec!["10.0.9.1".parse().unwrap()],
        labels: labels("app=web,tier=front"),
        ports: vec![NamedPort { name: "http".into(), number: 8080 }],
        membership: Membership::InMesh,
        ..Workload::new(NamespacedName::new("demo", "web"), SpiffeId::new(TrustDomain::default(), "demo", "web"))
    }
}

/// Its local facts: port 8086 is a probe's port.
pub(super) fn local() -> LocalPod {
    LocalPod { probe_ports: vec![8086], ..LocalPod::default() }
}

/// Reads `PRINCIPAL ADDRESS PORT`; the principal is `-` in plaintext.
pub(super) fn connection(text: &str) -> Connection {
    let [principal, address, port] = text.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let source = (principal != "-").then(|| Principal::new(format!("spiffe://{principal}").parse().unwrap()));
    let destination = format!("10.0.9.1:{port}").parse().unwrap();
    Connection { source, source_ip: address.parse().unwrap(), destination }
}

pub(super) fn snapshot(mesh: &str) -> Snapshot {
    let mut policies = PolicySet::default();
    let mut services = Vec::new();
    for line in mesh.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (kind, rest) = line.split_once(' ').unwrap();
        match kind {
            "PA" => policies.authentication.push(authentication(rest)),
            "SERVICE" => services.push(service(rest)),
            "UNREAD" => match rest.split_once(' ') {
                Some((file, namespace)) => {
                    policies.unread.namespaces.insert(namespace.into(), file.into());
                }
                None => policies.unread.anywhere = Some(rest.into()),
            },
            _ => policies.authorization.push(authorization(line)),
        }
    }
    Snapshot::build(1, vec![web()], services, vec![]).with_policies(policies)
}

pub(super) fn origin() -> Origin {
    Origin::line_of("policies.yaml", 1)
}

fn name(text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').unwrap();
    NamespacedName::new(namespace, name)
}

pub(super) fn labels(text: &str) -> Labels {
    let pairs = text.split(',').map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn scope(name: &NamespacedName, text: Option<&str>) -> Scope {
    let in_root = &*name.namespace == "istio-system";
    match text {
        None if in_root => Scope::Mesh,
        None => Scope::Namespace(Arc::clone(&name.namespace)),
        Some(text) => match text.strip_prefix("service/") {
            Some(services) => {
                let services = services.split(',').map(|service| NamespacedName::new("demo", service));
                Scope::Services(services.collect())
            }
            None => {
                Scope::Selector { namespace: (!in_root).then(|| Arc::clone(&name.namespace)), labels: labels(text) }
            }
        },
    }
}

fn authorization(line: &str) -> AuthorizationPolicy {
    let (head, rules) = line.split_once(": ").map_or((line, None), |(head, rules)| (head, Some(rules)));
    let words: Vec<&str> = head.split(' ').collect();
    let action = [Action::Allow, Action::Deny, Action::Audit, Action::Custom];
    let name = name(words[1]);
    AuthorizationPolicy {
        origin: origin(),
        scope: scope(&name, words.iter().find_map(|word| word.strip_prefix('@'))),
        action: action.into_iter().find(|action| action.name() == words[0]).unwrap(),
        dry_run: words.contains(&"dry-run"),
        rules: rules.into_iter().flat_map(|rules| rules.split(" || ")).map(rule).collect(),
        name,
    }
}

fn rule(text: &str) -> Rule {
    let mut rule = Rule::default();
    let mut conditions = 0;
    for text in text.split(" & ").filter(|text| *text != "*") {
        if let Some(path) = text.strip_prefix('!') {
            rule.unjudged.push(path.to_owned());
            continue;
        }
        let (part, alternatives) = text.split_once(' ').unwrap();
        let part = match part {
            "from" => Part::From,
            "to" => Part::To,
            "when" => {
                conditions += 1;
                Part::When(conditions - 1)
            }
            other => panic!("{other}"),
        };
        let matches = alternatives.split(" | ").filter(|text| *text != "*").map(alternative).collect();
        rule.clauses.push(Clause { part, matches });
    }
    rule
}

fn alternative(text: &str) -> Match {
    let mut wanted = Match::default();
    for field in text.split(", ").filter(|field| *field != "-") {
        let (field, values) = field.split_once('=').unwrap();
        let values = values.split(' ');
        let texts = || values.clone().map(StringMatch::new).collect();
        let accounts = || values.clone().map(name).collect();
        let nets = || values.clone().map(|value| value.parse().unwrap()).collect();
        let ports = || values.clone().map(|value| value.parse().unwrap()).collect();
        match field {
            "principals" => wanted.principals = texts(),
            "notPrincipals" => wanted.not_principals = texts(),
            "namespaces" => wanted.namespaces = texts(),
            "notNamespaces" => wanted.not_namespaces = texts(),
            "serviceAccounts" => wanted.service_accounts = accounts(),
            "notServiceAccounts" => wanted.not_service_accounts = accounts(),
            "trustDomains" => wanted.trust_domains = texts(),
            "notTrustDomains" => wanted.not_trust_domains = texts(),
            "ipBlocks" => wanted.source_ips = nets(),
            "notIpBlocks" => wanted.not_source_ips = nets(),
            "destination" => wanted.destination_ips = nets(),
            "notDestination" => wanted.not_destination_ips = nets(),
            "ports" => wanted.destination_ports = ports(),
            "notPorts" => wanted.not_destination_ports = ports(),
            other => panic!("{other}"),
        }
    }
    wanted
}

fn mode(text: &str) -> Option<MtlsMode> {
    let modes = [MtlsMode::Permissive, MtlsMode::Strict, MtlsMode::Disable];
    let found = modes.into_iter().find(|mode| mode.name() == text);
    assert!(found.is_some() || text == "UNSET", "{text}");
    found
}

fn authentication(text: &str) -> PeerAuthentication {
    let mut words = text.split(' ');
    let name = name(words.next().unwrap());
    let mut policy = PeerAuthentication {
        scope: scope(&name, None),
        name,
        origin: origin(),
        created: None,
        mode: mode(words.next().unwrap()),
        ports: BTreeMap::new(),
    };
    for word in words {
        match word.split_once('=').unwrap() {
            ("created", seconds) => policy.created = Some(seconds.parse().unwrap()),
            (label, _) if label.starts_with('@') => policy.scope = scope(&policy.name, word.strip_prefix('@')),
            (port, text) => {
                policy.ports.insert(port.parse().unwrap(), mode(text));
            }
        }
    }
    policy
}

fn service(text: &str) -> Service {
    let mut words = text.split(' ');
    let name = name(words.next().unwrap());
    let hostname = format!("{}.{}.svc.cluster.local", name.name, name.namespace);
    let mut service = Service::new(name, hostname);
    for word in words {
        let (first, rest) = word.split_once(':').unwrap();
        match first {
            "selector" => service.selector = labels(rest),
            "behind" => {
                let pair = rest.split_once(':').map(|(port, own)| (port.parse().unwrap(), own.parse().unwrap()));
                let endpoint = Endpoint {
                    address: "10.0.9.1".parse().unwrap(),
                    ports: pair.into_iter().collect(),
                    health: Health::Unready,
                    workload: Some(NamespacedName::new("demo", "web")),
                    weight: 1,
                    node: None,
                    locality: Locality::default(),
                };
                service.endpoints = [endpoint].into();
            }
            port => {
                let target = rest.parse().map_or_else(|_| TargetPort::Name(rest.into()), TargetPort::Number);
                let port = ServicePort { name: None, port: port.parse().unwrap(), target };
                service.ports = service.ports.iter().cloned().chain([port]).collect();
            }
        }
    }
    service
}
