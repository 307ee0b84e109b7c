//! The rules of an AuthorizationPolicy.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::control::manifests::bounded::{Bounded, entries};
use crate::control::manifests::check_name;
use crate::control::manifests::field::FieldError;
use crate::control::manifests::peer_authentication::port;
use crate::model::policy::{self, Clause, Match, Part, StringMatch};
use crate::model::workload::NamespacedName;

/// Most entries of `from`, `to` and `when`.
const MOST_ENTRIES: usize = 512;
/// Most values of one field. Lists of addresses that are kept out have the most.
const MOST_VALUES: usize = 4096;
/// The longest value, in bytes: that of the longest identity.
const LONGEST_VALUE: usize = 2048;

type Values = Bounded<Spanned<String>, MOST_VALUES>;

/// One of `spec.rules`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    from: Option<Spanned<Bounded<Spanned<From>, MOST_ENTRIES>>>,
    to: Option<Spanned<Bounded<Spanned<To>, MOST_ENTRIES>>>,
    when: Option<Bounded<Spanned<Condition>, MOST_ENTRIES>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct From {
    source: Option<Spanned<Source>>,
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct To {
    operation: Option<Spanned<Operation>>,
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
    key: Option<Spanned<String>>,
    values: Option<Values>,
    not_values: Option<Values>,
}

/// A field that can't be judged at this layer.
pub(super) struct Unjudged {
    /// Line in the document.
    pub(super) line: u64,
    /// Its path in the policy.
    pub(super) field: String,
}

/// Reads the rules of a policy in a namespace, and what can't be judged of them.
pub(super) fn read(
    rules: &[Spanned<Option<Rule>>],
    namespace: &Arc<str>,
) -> Result<(Vec<policy::Rule>, Vec<Unjudged>), FieldError> {
    let mut unjudged = Vec::new();
    let mut read = Vec::with_capacity(rules.len());
    for (index, rule) in rules.iter().enumerate() {
        let path = format!("spec.rules[{index}]");
        // Nothing and everything must not be one hyphen apart.
        let Some(given) = &rule.value else {
            let message = "is null: write {} for a rule that matches everything";
            return Err(FieldError::new(rule, path, message));
        };
        let mut reader = Reader { namespace, path, unjudged: Vec::new(), unjudged_lines: Vec::new() };
        let clauses = reader.clauses(given)?;
        let lines = reader.unjudged_lines.iter().zip(&reader.unjudged);
        unjudged.extend(lines.map(|(line, field)| Unjudged { line: *line, field: format!("{}.{field}", reader.path) }));
        read.push(policy::Rule { clauses, unjudged: reader.unjudged });
    }
    Ok((read, unjudged))
}

/// Reads one rule.
struct Reader<'a> {
    namespace: &'a Arc<str>,
    /// The rule's own path.
    path: String,
    /// Paths within the rule of what can't be judged.
    unjudged: Vec<String>,
    /// Their lines in the document.
    unjudged_lines: Vec<u64>,
}

impl Reader<'_> {
    fn clauses(&mut self, rule: &Rule) -> Result<Vec<Clause>, FieldError> {
        let mut clauses = Vec::new();
        if let Some(from) = &rule.from {
            let mut matches = Vec::new();
            for (index, entry) in self.some(from, "from")? {
                let place = format!("from[{index}].source");
                let source = self.given(entry, entry.value.source.as_ref(), &place)?;
                matches.push(self.source(&place, source)?);
            }
            clauses.extend(clause(Part::From, matches));
        }
        if let Some(to) = &rule.to {
            let mut matches = Vec::new();
            for (index, entry) in self.some(to, "to")? {
                let place = format!("to[{index}].operation");
                let operation = self.given(entry, entry.value.operation.as_ref(), &place)?;
                matches.push(self.operation(&place, operation)?);
            }
            clauses.extend(clause(Part::To, matches));
        }
        for (index, condition) in entries(rule.when.as_ref()).iter().enumerate() {
            let found = self.condition(&format!("when[{index}]"), condition)?;
            clauses.extend(found.map(|found| Clause { part: Part::When(index), matches: vec![found] }));
        }
        Ok(clauses)
    }

    /// The entries of a list that must have some: without any it could mean everybody, and nobody as well.
    fn some<'e, T>(
        &self,
        list: &'e Spanned<Bounded<T, MOST_ENTRIES>>,
        field: &str,
    ) -> Result<impl Iterator<Item = (usize, &'e T)> + use<'e, T>, FieldError> {
        let entries = list.value.as_slice();
        if entries.is_empty() {
            let message = "is an empty list: take it out to mean everybody";
            return Err(FieldError::new(list, format!("{}.{field}", self.path), message));
        }
        Ok(entries.iter().enumerate())
    }

    fn given<'e, E, T>(&self, entry: &Spanned<E>, field: Option<&'e T>, place: &str) -> Result<&'e T, FieldError> {
        field.ok_or_else(|| FieldError::new(entry, format!("{}.{place}", self.path), "is missing"))
    }

    fn source(&mut self, place: &str, source: &Spanned<Source>) -> Result<Match, FieldError> {
        let fields = &source.value;
        let account = |text: &str| service_account(text, self.namespace);
        let found = Match {
            principals: self.each(place, "principals", &fields.principals, string)?,
            not_principals: self.each(place, "notPrincipals", &fields.not_principals, string)?,
            namespaces: self.each(place, "namespaces", &fields.namespaces, string)?,
            not_namespaces: self.each(place, "notNamespaces", &fields.not_namespaces, string)?,
            service_accounts: self.each(place, "serviceAccounts", &fields.service_accounts, account)?,
            not_service_accounts: self.each(place, "notServiceAccounts", &fields.not_service_accounts, account)?,
            source_ips: self.each(place, "ipBlocks", &fields.ip_blocks, ip_block)?,
            not_source_ips: self.each(place, "notIpBlocks", &fields.not_ip_blocks, ip_block)?,
            ..Match::default()
        };
        let of_requests = [
            ("requestPrincipals", &fields.request_principals),
            ("notRequestPrincipals", &fields.not_request_principals),
            ("remoteIpBlocks", &fields.remote_ip_blocks),
            ("notRemoteIpBlocks", &fields.not_remote_ip_blocks),
        ];
        let unjudged = self.unjudged(place, &of_requests)?;
        let Match { principals, not_principals, namespaces, not_namespaces, .. } = &found;
        let by_name = principals.len() + not_principals.len() + namespaces.len() + not_namespaces.len() > 0;
        let wrong = |message| Err(FieldError::new(source, format!("{}.{place}", self.path), message));
        if found == Match::default() && !unjudged {
            return wrong("is empty: name at least one field, or take from out to mean everybody");
        }
        if by_name && found.service_accounts.len() + found.not_service_accounts.len() > 0 {
            return wrong("has serviceAccounts beside principals or namespaces: write one of them");
        }
        Ok(found)
    }

    fn operation(&mut self, place: &str, operation: &Spanned<Operation>) -> Result<Match, FieldError> {
        let fields = &operation.value;
        let found = Match {
            destination_ports: self.each(place, "ports", &fields.ports, port)?,
            not_destination_ports: self.each(place, "notPorts", &fields.not_ports, port)?,
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
        if !self.unjudged(place, &of_requests)? && found == Match::default() {
            let message = "is empty: name at least one field, or take to out to mean everything";
            return Err(FieldError::new(operation, format!("{}.{place}", self.path), message));
        }
        Ok(found)
    }

    /// `None` where it can't be judged.
    fn condition(&mut self, place: &str, condition: &Spanned<Condition>) -> Result<Option<Match>, FieldError> {
        let Condition { key, values, not_values } = &condition.value;
        let key_place = format!("{place}.key");
        let key = self.given(condition, key.as_ref(), &key_place)?;
        let wrong = |message| FieldError::new(key, format!("{}.{key_place}", self.path), message);
        let name = checked(&key.value).map_err(wrong)?;
        if entries(values.as_ref()).is_empty() && entries(not_values.as_ref()).is_empty() {
            let message = "has neither values nor notValues";
            return Err(FieldError::new(condition, format!("{}.{place}", self.path), message));
        }
        let (is, is_not) = ((place, "values", values), (place, "notValues", not_values));
        let mut found = Match::default();
        match name {
            "source.ip" => (found.source_ips, found.not_source_ips) = self.pair(is, is_not, ip_block)?,
            "source.namespace" => (found.namespaces, found.not_namespaces) = self.pair(is, is_not, string)?,
            "source.principal" => (found.principals, found.not_principals) = self.pair(is, is_not, string)?,
            "source.serviceAccount" => {
                let account = |text: &str| service_account(text, self.namespace);
                (found.service_accounts, found.not_service_accounts) = self.pair(is, is_not, account)?;
            }
            "destination.ip" => {
                (found.destination_ips, found.not_destination_ips) = self.pair(is, is_not, ip_block)?;
            }
            "destination.port" => {
                (found.destination_ports, found.not_destination_ports) = self.pair(is, is_not, port)?;
            }
            name if is_of_requests(name) => {
                self.pair(is, is_not, string)?;
                self.unjudged.push(format!("{key_place}: {name}"));
                self.unjudged_lines.push(key.referenced.line());
                return Ok(None);
            }
            name => {
                return Err(wrong(format!(
                    "{name:?} is not known: write source.ip, source.namespace, source.principal, source.serviceAccount, \
                     destination.ip or destination.port"
                )));
            }
        }
        Ok(Some(found))
    }

    /// The values that one must be, and those that none may be.
    fn pair<T>(
        &self,
        (place, field, values): (&str, &str, &Option<Values>),
        (_, not_field, not_values): (&str, &str, &Option<Values>),
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<(Vec<T>, Vec<T>), FieldError> {
        Ok((self.each(place, field, values, &parse)?, self.each(place, not_field, not_values, &parse)?))
    }

    /// Notes the fields that have values as not to be judged. Says whether there are some.
    fn unjudged(&mut self, place: &str, fields: &[(&str, &Option<Values>)]) -> Result<bool, FieldError> {
        let before = self.unjudged.len();
        for (field, values) in fields {
            self.each(place, field, values, string)?;
            if let Some(first) = entries(values.as_ref()).first() {
                self.unjudged.push(format!("{place}.{field}"));
                self.unjudged_lines.push(first.referenced.line());
            }
        }
        Ok(self.unjudged.len() > before)
    }

    fn each<T>(
        &self,
        place: &str,
        field: &str,
        values: &Option<Values>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, FieldError> {
        let one = |(index, value): (usize, &Spanned<String>)| {
            checked(&value.value)
                .and_then(&parse)
                .map_err(|message| FieldError::new(value, format!("{}.{place}.{field}[{index}]", self.path), message))
        };
        entries(values.as_ref()).iter().enumerate().map(one).collect()
    }
}

/// The clause of `from` or `to`; none where an entry says nothing that can be judged: then it may be anything.
fn clause(part: Part, matches: Vec<Match>) -> Option<Clause> {
    (!matches.contains(&Match::default())).then_some(Clause { part, matches })
}

fn is_of_requests(key: &str) -> bool {
    matches!(key, "remote.ip" | "connection.sni") || key.starts_with("request.") || key.starts_with("experimental.")
}

/// A value that can be one. It reaches logs and headers.
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

/// A value of the rule with a `*` that is no wildcard: as in Istio it means itself, which stands in no identity.
pub(super) fn stray_star(rule: &policy::Rule) -> Option<&StringMatch> {
    let matches = rule.clauses.iter().flat_map(|clause| &clause.matches);
    let mut texts = matches.flat_map(|wanted| {
        let Match { principals, not_principals, namespaces, not_namespaces, .. } = wanted;
        [principals, not_principals, namespaces, not_namespaces].into_iter().flatten()
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

/// Reads an address or a range. A v4-mapped one becomes IPv4; bits behind the prefix do not count.
fn ip_block(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address)),
        Err(_) => text.parse().ok(),
    };
    let net = net.ok_or_else(|| format!("{text:?} is neither an IP address nor a range such as 10.0.0.0/8"))?;
    let mapped = match net {
        IpNet::V4(_) => None,
        IpNet::V6(v6) => v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96)),
    };
    let v4 = mapped.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok());
    Ok(v4.map_or(net, IpNet::V4).trunc())
}
