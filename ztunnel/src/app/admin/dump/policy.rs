//! Policies in the shape that Istio's tools read: rules of clauses of matches.

use serde::Serialize;

use crate::{
    model::{
        policy::{Action, AuthorizationPolicy, Match, MtlsMode, PeerAuthentication, Rule, Scope, StringMatch},
        workload::NamespacedName,
    },
    store::policies::Policies,
};

/// A policy.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyInfo<'a> {
    name: String,
    namespace: &'a str,
    scope: &'static str,
    action: &'static str,
    #[serde(skip_serializing_if = "is_false")]
    dry_run: bool,
    rules: Vec<Vec<Vec<MatchInfo<'a>>>>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The fields of a match; those that are not there do not count.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct MatchInfo<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<StringInfo<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_namespaces: Vec<StringInfo<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    principals: Vec<StringInfo<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_principals: Vec<StringInfo<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trust_domains: Vec<StringInfo<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_trust_domains: Vec<StringInfo<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    source_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_source_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    destination_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_destination_ips: Vec<String>,
    #[serde(skip_serializing_if = "<[u16]>::is_empty")]
    destination_ports: &'a [u16],
    #[serde(skip_serializing_if = "<[u16]>::is_empty")]
    not_destination_ports: &'a [u16],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    service_accounts: Vec<AccountInfo<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_service_accounts: Vec<AccountInfo<'a>>,
}

/// Istio's tools expect these names with a capital letter.
#[derive(Clone, Copy, Serialize)]
enum StringInfo<'a> {
    Exact(&'a str),
    Prefix(&'a str),
    Suffix(&'a str),
    Presence {},
}

impl<'a> StringInfo<'a> {
    fn of(value: &'a StringMatch) -> Self {
        match value {
            StringMatch::Exact(text) => Self::Exact(text),
            StringMatch::Prefix(text) => Self::Prefix(text),
            StringMatch::Suffix(text) => Self::Suffix(text),
            StringMatch::Presence => Self::Presence {},
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountInfo<'a> {
    namespace: &'a str,
    service_account: &'a str,
}

/// All policies, by namespace and name. A PeerAuthentication that refuses plaintext is shown as the DENY policy to which Istio
/// converts it.
pub(super) fn policies(policies: &Policies) -> Vec<PolicyInfo<'_>> {
    let authorization = policies.authorization().iter().map(|policy| PolicyInfo::of(policy));
    let authentication = policies.authentication().iter().filter_map(|policy| PolicyInfo::converted(policy));
    let mut all: Vec<_> = authorization.chain(authentication).collect();
    all.sort_by(|one, other| (one.namespace, &one.name).cmp(&(other.namespace, &other.name)));
    all
}

impl<'a> PolicyInfo<'a> {
    fn of(policy: &'a AuthorizationPolicy) -> Self {
        Self {
            name: policy.name.name.to_string(),
            namespace: &policy.name.namespace,
            scope: scope(&policy.scope),
            action: match policy.action {
                Action::Allow => "Allow",
                Action::Deny => "Deny",
                Action::Audit => "Audit",
                Action::Custom => "Custom",
            },
            dry_run: policy.dry_run,
            rules: policy.rules.iter().map(clauses).collect(),
        }
    }

    fn converted(policy: &'a PeerAuthentication) -> Option<Self> {
        let strict = Some(MtlsMode::Strict);
        let ports = |wanted: bool| policy.ports.iter().filter(move |(_, mode)| (**mode == strict) == wanted);
        let anonymous = || MatchInfo { not_principals: vec![StringInfo::Presence {}], ..MatchInfo::default() };
        let at = |port: &'a u16| MatchInfo { destination_ports: std::slice::from_ref(port), ..MatchInfo::default() };
        let not_at =
            |port: &'a u16| MatchInfo { not_destination_ports: std::slice::from_ref(port), ..MatchInfo::default() };
        let rules: Vec<Vec<Vec<MatchInfo<'a>>>> = if policy.mode == strict {
            // Without the ports that have another mode.
            let others = ports(false).filter(|(_, mode)| mode.is_some()).map(|(port, _)| vec![not_at(port)]);
            vec![std::iter::once(vec![anonymous()]).chain(others).collect()]
        } else {
            ports(true).map(|(port, _)| vec![vec![anonymous()], vec![at(port)]]).collect()
        };
        if rules.is_empty() {
            return None;
        }
        Some(Self {
            name: format!("converted_peer_authentication_{}", policy.name.name),
            namespace: &policy.name.namespace,
            scope: scope(&policy.scope),
            action: "Deny",
            dry_run: false,
            rules,
        })
    }
}

fn scope(scope: &Scope) -> &'static str {
    match scope {
        Scope::Mesh => "Global",
        Scope::Namespace(_) => "Namespace",
        Scope::Selector { .. } | Scope::Services(_) => "WorkloadSelector",
    }
}

fn clauses(rule: &Rule) -> Vec<Vec<MatchInfo<'_>>> {
    rule.clauses.iter().map(|clause| clause.matches.iter().map(MatchInfo::of).collect()).collect()
}

impl<'a> MatchInfo<'a> {
    fn of(wanted: &'a Match) -> Self {
        // All fields are named, so that a new field cannot be forgotten.
        let Match {
            principals,
            not_principals,
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            trust_domains,
            not_trust_domains,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports,
        } = wanted;
        fn texts<T: ToString>(values: &[T]) -> Vec<String> {
            values.iter().map(ToString::to_string).collect()
        }
        Self {
            namespaces: strings(namespaces),
            not_namespaces: strings(not_namespaces),
            principals: strings(principals),
            not_principals: strings(not_principals),
            trust_domains: strings(trust_domains),
            not_trust_domains: strings(not_trust_domains),
            source_ips: texts(source_ips),
            not_source_ips: texts(not_source_ips),
            destination_ips: texts(destination_ips),
            not_destination_ips: texts(not_destination_ips),
            destination_ports,
            not_destination_ports,
            service_accounts: accounts(service_accounts),
            not_service_accounts: accounts(not_service_accounts),
        }
    }
}

fn strings(values: &[StringMatch]) -> Vec<StringInfo<'_>> {
    values.iter().map(StringInfo::of).collect()
}

fn accounts(names: &[NamespacedName]) -> Vec<AccountInfo<'_>> {
    names.iter().map(|name| AccountInfo { namespace: &name.namespace, service_account: &name.name }).collect()
}
