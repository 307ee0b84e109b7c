//! The rules of an AuthorizationPolicy.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;

use crate::control::field::FieldPath;
use crate::control::objects::bounded::{Bounded, entries};
use crate::control::objects::name::check_name;
use crate::control::objects::port::port_text;
use crate::control::objects::report::{FieldError, FieldErrors};
use crate::model::policy::{self, Clause, Match, Part, StringMatch};
use crate::model::workload::NamespacedName;

/// The most entries of `from`, `to` and `when`.
const MOST_ENTRIES: usize = 512;
/// The most values of one field. Lists of blocked addresses are the longest.
const MOST_VALUES: usize = 4096;
/// The longest value, in bytes: the length of the longest identity.
const LONGEST_VALUE: usize = 2048;

type Values = Bounded<String, MOST_VALUES>;

/// One of `spec.rules`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    from: Option<Bounded<From, MOST_ENTRIES>>,
    to: Option<Bounded<To, MOST_ENTRIES>>,
    when: Option<Bounded<Condition, MOST_ENTRIES>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct From {
    source: Option<Source>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Source {
    principals: Option<Values>,
    not_principals: Option<Values>,
    request_principals: Option<Values>,
    not_request_principals: Option<Values>,
    namespaces: Option<Values>,
    not_namespaces: Option<Values>,
    service_accounts: Option<Values>,
    not_service_accounts: Option<Values>,
    ip_blocks: Option<Values>,
    not_ip_blocks: Option<Values>,
    remote_ip_blocks: Option<Values>,
    not_remote_ip_blocks: Option<Values>,
    trust_domains: Option<Values>,
    not_trust_domains: Option<Values>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct To {
    operation: Option<Operation>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Operation {
    hosts: Option<Values>,
    not_hosts: Option<Values>,
    ports: Option<Values>,
    not_ports: Option<Values>,
    methods: Option<Values>,
    not_methods: Option<Values>,
    paths: Option<Values>,
    not_paths: Option<Values>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    key: Option<String>,
    values: Option<Values>,
    not_values: Option<Values>,
}

/// A field that cannot be evaluated at layer 4.
pub(super) struct Unjudged {
    /// The path of its first value.
    pub(super) at: FieldPath,
    /// Its own path, for messages.
    pub(super) field: String,
}

/// Reads the rules of a policy in a namespace, and the fields that cannot be evaluated.
pub(super) fn read(
    rules: &[Option<Rule>],
    namespace: &Arc<str>,
) -> Result<(Vec<policy::Rule>, Vec<Unjudged>), FieldError> {
    let (mut unjudged, mut errors) = (Vec::new(), FieldErrors::default());
    let mut read = Vec::with_capacity(rules.len());
    for (index, rule) in rules.iter().enumerate() {
        let path = FieldPath::of("spec.rules").index(index);
        // Otherwise a rule that matches nothing and a rule that matches everything would differ by one hyphen.
        let Some(given) = rule else {
            errors.push(FieldError::new(path, "is null: write {} for a rule that matches everything"));
            continue;
        };
        let mut reader =
            Reader { namespace, unjudged: Vec::new(), first_values: Vec::new(), errors: FieldErrors::default() };
        let clauses = reader.clauses(given);
        errors.take(std::mem::take(&mut reader.errors).finish().map_err(|error| error.below(&path)));
        let places = reader.first_values.iter().zip(&reader.unjudged);
        unjudged.extend(places.map(|(at, field)| Unjudged { at: path.join(at), field: format!("{path}.{field}") }));
        read.push(policy::Rule { clauses, unjudged: reader.unjudged });
    }
    errors.finish().map(|()| (read, unjudged))
}

/// Reads one rule. All paths start at the rule.
struct Reader<'a> {
    namespace: &'a Arc<str>,
    /// The fields that cannot be evaluated.
    unjudged: Vec<String>,
    /// The paths of their first values.
    first_values: Vec<FieldPath>,
    /// The invalid fields. A rule with one of them is not used.
    errors: FieldErrors,
}

impl Reader<'_> {
    fn clauses(&mut self, rule: &Rule) -> Vec<Clause> {
        let mut clauses = Vec::new();
        if let Some(from) = &rule.from {
            let mut matches = Vec::new();
            for (index, entry) in self.some(from, "from") {
                let place = FieldPath::of("from").index(index).key("source");
                let source = self.errors.take(given(entry.source.as_ref(), &place));
                matches.extend(source.map(|source| self.source(&place, source)));
            }
            clauses.extend(clause(Part::From, matches));
        }
        if let Some(to) = &rule.to {
            let mut matches = Vec::new();
            for (index, entry) in self.some(to, "to") {
                let place = FieldPath::of("to").index(index).key("operation");
                let operation = self.errors.take(given(entry.operation.as_ref(), &place));
                matches.extend(operation.map(|operation| self.operation(&place, operation)));
            }
            clauses.extend(clause(Part::To, matches));
        }
        for (index, condition) in entries(rule.when.as_ref()).iter().enumerate() {
            let found = self.condition(&FieldPath::of("when").index(index), condition);
            clauses.extend(found.map(|found| Clause { part: Part::When(index), matches: vec![found] }));
        }
        clauses
    }

    fn source(&mut self, place: &FieldPath, fields: &Source) -> Match {
        let before = self.errors.count();
        let namespace = self.namespace;
        let account = |text: &str| service_account(text, namespace);
        let found = Match {
            principals: self.each(place, "principals", &fields.principals, string),
            not_principals: self.each(place, "notPrincipals", &fields.not_principals, string),
            namespaces: self.each(place, "namespaces", &fields.namespaces, string),
            not_namespaces: self.each(place, "notNamespaces", &fields.not_namespaces, string),
            service_accounts: self.each(place, "serviceAccounts", &fields.service_accounts, account),
            not_service_accounts: self.each(place, "notServiceAccounts", &fields.not_service_accounts, account),
            trust_domains: self.each(place, "trustDomains", &fields.trust_domains, trust_domain),
            not_trust_domains: self.each(place, "notTrustDomains", &fields.not_trust_domains, trust_domain),
            source_ips: self.each(place, "ipBlocks", &fields.ip_blocks, ip_block),
            not_source_ips: self.each(place, "notIpBlocks", &fields.not_ip_blocks, ip_block),
            ..Match::default()
        };
        let of_requests = [
            ("requestPrincipals", &fields.request_principals),
            ("notRequestPrincipals", &fields.not_request_principals),
            ("remoteIpBlocks", &fields.remote_ip_blocks),
            ("notRemoteIpBlocks", &fields.not_remote_ip_blocks),
        ];
        let unjudged = self.unjudged(place, &of_requests);
        let Match { principals, not_principals, namespaces, not_namespaces, .. } = &found;
        let by_name = principals.len() + not_principals.len() + namespaces.len() + not_namespaces.len() > 0;
        let is_empty = found == Match::default() && !unjudged && self.errors.count() == before;
        let wrong = |message| FieldError::new(place.clone(), message);
        if is_empty {
            self.errors.push(wrong("is empty: name at least one field, or remove `from` to match every client"));
        }
        if by_name && found.service_accounts.len() + found.not_service_accounts.len() > 0 {
            let message = "has serviceAccounts together with principals or namespaces: write only one of them";
            self.errors.push(wrong(message));
        }
        found
    }

    fn operation(&mut self, place: &FieldPath, fields: &Operation) -> Match {
        let before = self.errors.count();
        let found = Match {
            destination_ports: self.each(place, "ports", &fields.ports, port_text),
            not_destination_ports: self.each(place, "notPorts", &fields.not_ports, port_text),
            ..Match::default()
        };
        let of_requests = [
            ("hosts", &fields.hosts),
            ("notHosts", &fields.not_hosts),
            ("methods", &fields.methods),
            ("notMethods", &fields.not_methods),
            ("paths", &fields.paths),
            ("notPaths", &fields.not_paths),
        ];
        if !self.unjudged(place, &of_requests) && found == Match::default() && self.errors.count() == before {
            let message = "is empty: name at least one field, or remove `to` to match every destination";
            self.errors.push(FieldError::new(place.clone(), message));
        }
        found
    }

    /// `None` if the condition is invalid, or cannot be evaluated.
    fn condition(&mut self, place: &FieldPath, condition: &Condition) -> Option<Match> {
        let Condition { key, values, not_values } = condition;
        let key_place = place.clone().key("key");
        let wrong = |message| FieldError::new(key_place.clone(), message);
        let name = given(key.as_ref(), &key_place).and_then(|name| checked(name).map_err(wrong));
        let name = self.errors.take(name);
        if entries(values.as_ref()).is_empty() && entries(not_values.as_ref()).is_empty() {
            self.errors.push(FieldError::new(place.clone(), "has neither values nor notValues"));
        }
        let name = name?;
        let (is, is_not) = ((place, "values", values), (place, "notValues", not_values));
        let mut found = Match::default();
        match name {
            "source.ip" => (found.source_ips, found.not_source_ips) = self.pair(is, is_not, ip_block),
            "source.namespace" => (found.namespaces, found.not_namespaces) = self.pair(is, is_not, string),
            "source.principal" => (found.principals, found.not_principals) = self.pair(is, is_not, string),
            "source.serviceAccount" => {
                let namespace = self.namespace;
                let account = |text: &str| service_account(text, namespace);
                (found.service_accounts, found.not_service_accounts) = self.pair(is, is_not, account);
            }
            "destination.ip" => {
                (found.destination_ips, found.not_destination_ips) = self.pair(is, is_not, ip_block);
            }
            "destination.port" => {
                (found.destination_ports, found.not_destination_ports) = self.pair(is, is_not, port_text);
            }
            name if is_of_requests(name) => {
                self.pair(is, is_not, string);
                self.unjudged.push(format!("{key_place}: {name}"));
                self.first_values.push(key_place);
                return None;
            }
            name => {
                self.errors.push(wrong(format!(
                    "{name:?} is not known: write source.ip, source.namespace, source.principal, source.serviceAccount, \
                     destination.ip or destination.port"
                )));
                return None;
            }
        }
        Some(found)
    }

    /// The values of a field, and those of its negation.
    fn pair<T>(
        &mut self,
        (place, field, values): (&FieldPath, &str, &Option<Values>),
        (_, not_field, not_values): (&FieldPath, &str, &Option<Values>),
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> (Vec<T>, Vec<T>) {
        (self.each(place, field, values, &parse), self.each(place, not_field, not_values, &parse))
    }

    /// Notes those of the fields that have values as impossible to evaluate. Returns whether there are any.
    fn unjudged(&mut self, place: &FieldPath, fields: &[(&str, &Option<Values>)]) -> bool {
        let before = self.unjudged.len();
        for (field, values) in fields {
            self.each(place, field, values, string);
            if !entries(values.as_ref()).is_empty() {
                self.unjudged.push(format!("{place}.{field}"));
                self.first_values.push(place.clone().key(field).index(0));
            }
        }
        self.unjudged.len() > before
    }

    /// The valid values of a field. The others are among the errors.
    fn each<T>(
        &mut self,
        place: &FieldPath,
        field: &str,
        values: &Option<Values>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let one = |(index, value): (usize, &String)| {
            let wrong = |message| FieldError::new(place.clone().key(field).index(index), message);
            self.errors.take(checked(value).and_then(&parse).map_err(wrong))
        };
        entries(values.as_ref()).iter().enumerate().filter_map(one).collect()
    }

    /// The entries of a list that must not be empty: an empty list could be read as everybody or as nobody.
    fn some<'e, T>(
        &mut self,
        list: &'e Bounded<T, MOST_ENTRIES>,
        field: &str,
    ) -> impl Iterator<Item = (usize, &'e T)> + use<'e, T> {
        let entries = list.as_slice();
        if entries.is_empty() {
            let message = "is an empty list: remove the field to match every value";
            self.errors.push(FieldError::new(FieldPath::of(field), message));
        }
        entries.iter().enumerate()
    }
}

fn given<'e, T>(field: Option<&'e T>, place: &FieldPath) -> Result<&'e T, FieldError> {
    field.ok_or_else(|| FieldError::new(place.clone(), "is missing"))
}

/// The clause of `from` or `to`; `None` if some entry has nothing that can be evaluated, since that entry may match
/// anything.
fn clause(part: Part, matches: Vec<Match>) -> Option<Clause> {
    (!matches.contains(&Match::default())).then_some(Clause { part, matches })
}

fn is_of_requests(key: &str) -> bool {
    matches!(key, "remote.ip" | "connection.sni") || key.starts_with("request.") || key.starts_with("experimental.")
}

/// Checks a value. It ends up in logs and headers.
fn checked(text: &str) -> Result<&str, String> {
    match text {
        "" => Err("is empty".to_owned()),
        text if text.len() > LONGEST_VALUE => Err(format!("is longer than {LONGEST_VALUE} bytes")),
        text if text.contains(char::is_control) => Err(format!("{text:?} has a control character")),
        text => Ok(text),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "like the other parsers")]
fn string(text: &str) -> Result<StringMatch, String> {
    Ok(StringMatch::new(text))
}

/// Parses a trust domain or a pattern of trust domains. A scheme or a path is refused.
fn trust_domain(text: &str) -> Result<StringMatch, String> {
    if text.contains('/') {
        return Err(format!("{text:?} contains a slash: write the trust domain alone, such as cluster.local"));
    }
    Ok(StringMatch::new(text))
}

/// A value of the rule with a `*` that is not a wildcard: as in Istio it stands for itself, and no identity contains
/// it.
pub(super) fn stray_star(rule: &policy::Rule) -> Option<&StringMatch> {
    let matches = rule.clauses.iter().flat_map(|clause| &clause.matches);
    let mut texts = matches.flat_map(|wanted| {
        let Match { principals, not_principals, namespaces, not_namespaces, trust_domains, not_trust_domains, .. } =
            wanted;
        [principals, not_principals, namespaces, not_namespaces, trust_domains, not_trust_domains].into_iter().flatten()
    });
    texts.find(|text| match text {
        StringMatch::Exact(text) | StringMatch::Prefix(text) | StringMatch::Suffix(text) => text.contains('*'),
        StringMatch::Presence => false,
    })
}

fn service_account(text: &str, namespace: &Arc<str>) -> Result<NamespacedName, String> {
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    for part in [namespace, name] {
        if part.contains('*') {
            return Err(format!("{text:?} has a wildcard: write each service account, or principals"));
        }
        check_name(part).map_err(|error| format!("{text:?} is not NAMESPACE/NAME or NAME: {error}"))?;
    }
    Ok(NamespacedName::new(namespace, name))
}

/// Parses an address or an IP block. An IPv4-mapped block becomes IPv4; bits after the prefix are ignored.
fn ip_block(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address)),
        Err(_) => text.parse().ok(),
    };
    let net = net.ok_or_else(|| format!("{text:?} is neither an IP address nor an IP block such as 10.0.0.0/8"))?;
    let mapped = match net {
        IpNet::V4(_) => None,
        IpNet::V6(v6) => v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96)),
    };
    let v4 = mapped.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok());
    Ok(v4.map_or(net, IpNet::V4).trunc())
}
