//! The policies in force, as `/config_dump` shows them.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use crate::{
    model::labels::Labels,
    model::origin::{Origin, OriginKeys},
    model::policy::{Action, AuthorizationPolicy, Match, MtlsMode, Part, PeerAuthentication, Rule, Scope},
    store::snapshot::Snapshot,
};

/// All policies of a mesh. They are written out only for a reader: there may be thousands, and metrics are read often.
#[derive(Clone, Debug, Default)]
pub struct PoliciesInfo(Arc<Snapshot>);

impl PoliciesInfo {
    /// The policies of this mesh.
    #[must_use]
    pub fn of(snapshot: Arc<Snapshot>) -> Self {
        Self(snapshot)
    }

    /// The state of the mesh that has them.
    #[must_use]
    pub fn mesh(&self) -> &Arc<Snapshot> {
        &self.0
    }
}

impl Serialize for PoliciesInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let policies = self.0.policies();
        let authorization: Vec<_> =
            policies.authorization().iter().map(|policy| AuthorizationInfo::of(policy)).collect();
        let authentication: Vec<_> =
            policies.authentication().iter().map(|policy| AuthenticationInfo::of(policy)).collect();
        let unread = policies.unread();
        let mut info = serializer.serialize_struct("PoliciesInfo", 3)?;
        info.serialize_field("authorization", &authorization)?;
        info.serialize_field("authentication", &authentication)?;
        let namespaces: BTreeMap<&str, &str> =
            unread.namespaces.iter().map(|(namespace, source)| (&**namespace, &**source)).collect();
        info.serialize_field("unread", &UnreadInfo { anywhere: unread.anywhere.as_deref(), namespaces })?;
        info.end()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuthorizationInfo<'a> {
    namespace: &'a str,
    name: &'a str,
    #[serde(flatten)]
    origin: OriginKeys<'a>,
    scope: ScopeInfo<'a>,
    action: &'static str,
    dry_run: bool,
    rules: Vec<RuleInfo<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuthenticationInfo<'a> {
    namespace: &'a str,
    name: &'a str,
    #[serde(flatten)]
    origin: OriginKeys<'a>,
    scope: ScopeInfo<'a>,
    mode: &'static str,
    ports: BTreeMap<u16, &'static str>,
}

/// The files that may contain unreadable policies: one for the whole mesh, and one for each namespace.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UnreadInfo<'a> {
    anywhere: Option<&'a str>,
    namespaces: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum ScopeInfo<'a> {
    Mesh,
    Namespace(&'a str),
    Selector { namespace: Option<&'a str>, labels: &'a Labels },
    Services(Vec<String>),
}

/// Alternatives, each by the names of its fields. An empty list matches everything.
type Alternatives = Vec<BTreeMap<&'static str, Vec<String>>>;

#[derive(Default, Serialize)]
struct RuleInfo<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Alternatives>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Alternatives>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    when: Vec<Alternatives>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    unjudged: &'a [String],
}

impl<'a> AuthorizationInfo<'a> {
    fn of(policy: &'a AuthorizationPolicy) -> Self {
        let AuthorizationPolicy { name, origin, scope, action, dry_run, rules } = policy;
        Self {
            namespace: &name.namespace,
            name: &name.name,
            origin: Origin::keys(Some(origin)),
            scope: ScopeInfo::of(scope),
            action: Action::name(*action),
            dry_run: *dry_run,
            rules: rules.iter().map(RuleInfo::of).collect(),
        }
    }
}

impl<'a> AuthenticationInfo<'a> {
    fn of(policy: &'a PeerAuthentication) -> Self {
        let PeerAuthentication { name, origin, created: _, scope, mode, ports } = policy;
        let mode_name = |mode: Option<MtlsMode>| mode.map_or("UNSET", MtlsMode::name);
        Self {
            namespace: &name.namespace,
            name: &name.name,
            origin: Origin::keys(Some(origin)),
            scope: ScopeInfo::of(scope),
            mode: mode_name(*mode),
            ports: ports.iter().map(|(port, mode)| (*port, mode_name(*mode))).collect(),
        }
    }
}

impl<'a> ScopeInfo<'a> {
    fn of(scope: &'a Scope) -> Self {
        match scope {
            Scope::Mesh => Self::Mesh,
            Scope::Namespace(namespace) => Self::Namespace(namespace),
            Scope::Selector { namespace, labels } => Self::Selector { namespace: namespace.as_deref(), labels },
            Scope::Services(services) => Self::Services(services.iter().map(ToString::to_string).collect()),
        }
    }
}

impl<'a> RuleInfo<'a> {
    fn of(rule: &'a Rule) -> Self {
        let mut info = Self { unjudged: &rule.unjudged, ..Self::default() };
        for clause in &rule.clauses {
            let alternatives = clause.matches.iter().map(fields).collect();
            match clause.part {
                Part::From => info.from = Some(alternatives),
                Part::To => info.to = Some(alternatives),
                Part::When(_) => info.when.push(alternatives),
            }
        }
        info
    }
}

/// The fields of a match that are not empty.
fn fields(wanted: &Match) -> BTreeMap<&'static str, Vec<String>> {
    fn texts<T: ToString>(values: &[T]) -> Vec<String> {
        values.iter().map(ToString::to_string).collect()
    }
    let all = [
        ("principals", texts(&wanted.principals)),
        ("notPrincipals", texts(&wanted.not_principals)),
        ("namespaces", texts(&wanted.namespaces)),
        ("notNamespaces", texts(&wanted.not_namespaces)),
        ("serviceAccounts", texts(&wanted.service_accounts)),
        ("notServiceAccounts", texts(&wanted.not_service_accounts)),
        ("trustDomains", texts(&wanted.trust_domains)),
        ("notTrustDomains", texts(&wanted.not_trust_domains)),
        ("sourceIps", texts(&wanted.source_ips)),
        ("notSourceIps", texts(&wanted.not_source_ips)),
        ("destinationIps", texts(&wanted.destination_ips)),
        ("notDestinationIps", texts(&wanted.not_destination_ips)),
        ("ports", texts(&wanted.destination_ports)),
        ("notPorts", texts(&wanted.not_destination_ports)),
    ];
    all.into_iter().filter(|(_, values)| !values.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::PoliciesInfo;
    use crate::{
        control::manifests::{assemble, parse},
        model::identity::TrustDomain,
        store::snapshot::Snapshot,
    };

    #[test]
    fn policies_are_told_with_their_rules() {
        let file: Arc<str> = "p.yaml".into();
        let text = "
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: demo, name: a, annotations: {istio.io/dry-run: 'true'}}, spec: {action: DENY, selector: {matchLabels: {app: web}}, rules: [{from: [{source: {namespaces: [x], notPrincipals: ['*']}}], to: [{operation: {ports: ['80'], methods: [GET]}}], when: [{key: source.ip, values: [10.0.0.0/8]}]}]}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {namespace: demo, name: b}, spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {'80': {mode: PERMISSIVE}}}}
";
        let assembled = assemble([(&file, &parse(&file, text).unwrap())], &TrustDomain::default());
        let snapshot = Snapshot::build(1, Vec::new(), Vec::new(), Vec::new()).with_policies(assembled.policies);
        let told = serde_json::to_value(PoliciesInfo::of(Arc::new(snapshot))).unwrap();
        let scope = json!({"selector": {"namespace": "demo", "labels": {"app": "web"}}});
        assert_eq!(
            told,
            json!({
                "authorization": [{
                    "namespace": "demo", "name": "a", "file": "p.yaml", "line": 2, "scope": scope, "action": "DENY",
                    "dryRun": true,
                    "rules": [{
                        "from": [{"namespaces": ["x"], "notPrincipals": ["*"]}],
                        "to": [{"ports": ["80"]}],
                        "when": [[{"sourceIps": ["10.0.0.0/8"]}]],
                        "unjudged": ["to[0].operation.methods"],
                    }],
                }],
                "authentication": [{
                    "namespace": "demo", "name": "b", "file": "p.yaml", "line": 4, "scope": scope, "mode": "STRICT",
                    "ports": {"80": "PERMISSIVE"},
                }],
                "unread": {"anywhere": null, "namespaces": {}},
            })
        );
    }
}
