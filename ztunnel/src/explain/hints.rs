//! The changes that would alter a verdict. A change that is proposed for a rule has been verified: the changed rule was
//! evaluated.

use std::fmt::Write as _;

use super::client::{Client, NO_NETNS};
use super::judgement::{Considered, Sight, would_match};
use super::sources::Sources;
use crate::model::local::LocalPod;
use crate::model::policy::{Action, AuthorizationPolicy, Clause, Match, Part, PeerAuthentication, Rule, StringMatch};
use crate::model::workload::{Membership, Workload};
use crate::policy::{self, Cause, Connection, Counts, Denial, Level};

/// The maximum number of rules of other policies that are named.
const NAMED: usize = 5;

/// The maximum number of policies for which a change is tried.
const TRIED: usize = 100;

/// A verdict, and all facts on which it depends.
#[derive(Debug)]
pub(super) struct Case<'a> {
    pub(super) sources: Sources<'a>,
    pub(super) client: &'a Client<'a>,
    pub(super) captured: &'a Result<(), String>,
    pub(super) workload: &'a Workload,
    pub(super) connection: &'a Connection,
    pub(super) sight: &'a Sight,
    pub(super) denial: Option<&'a Denial>,
}

/// The changes that would alter the verdict. If several policies deny the connection, all changes are needed.
pub(super) fn of(case: &Case<'_>) -> Vec<String> {
    match case.denial {
        None => case.closing(),
        Some(Denial { cause: Cause::Unread { source }, .. }) => {
            vec![format!(
                "repair {source}: until it can be read, connections to the pods that its policies may select are denied"
            )]
        }
        Some(_) => case.opening(),
    }
}

/// The change that would enforce policies at a port of a pod.
pub(super) fn enforce(workload: &Workload, local: Option<&LocalPod>, port: u16) -> String {
    let name = &workload.name;
    match workload.membership {
        Membership::Refused(reason) => format!("to enforce policy at Pod {name}: {reason}"),
        // A label alone would not be enough.
        _ if workload.host_network => {
            format!("to enforce policy at Pod {name}, run it without hostNetwork, in the mesh")
        }
        Membership::NotLabelled => format!(
            "to enforce policy at Pod {name}, label namespace {} with istio.io/dataplane-mode: ambient",
            name.namespace
        ),
        Membership::OptedOut => {
            format!("to enforce policy at Pod {name}, remove its own label istio.io/dataplane-mode: none")
        }
        Membership::InMesh if local.is_some_and(|local| local.netns.is_none()) => {
            format!("to enforce policy at Pod {name}: {NO_NETNS}")
        }
        Membership::InMesh
            if local.is_some_and(|local| {
                local.exclusions.all_inbound && !local.exclusions.inbound_ports.contains(port)
            }) =>
        {
            format!("to enforce policy at Pod {name}, remove its annotation ambient.istio.io/bypass-inbound-capture")
        }
        Membership::InMesh => format!(
            "to enforce policy at port {port} of Pod {name}, take the port out of its annotation \
             traffic.ambient.mesh/exclude-inbound-ports"
        ),
    }
}

impl Case<'_> {
    fn opening(&self) -> Vec<String> {
        let mut hints = Vec::new();
        let Sight { authentication, considered, .. } = self.sight;
        let denying = considered.iter().filter(|one| one.denies()).count();
        let mut allows = considered.iter().filter(|one| one.allows()).peekable();
        let is_not_allowed = allows.peek().is_some() && allows.all(|one| one.matched.is_none());
        let causes = usize::from(authentication.refuses) + denying + usize::from(is_not_allowed);
        let proving = self.proving();
        let guard = self.sources.guard(self.workload);
        let is_enough = proving.as_ref().is_some_and(|proving| guard.judge(proving).is_ok());
        if is_enough && let Some(prove) = self.prove() {
            hints.push(format!("{prove}; that alone is enough"));
            if authentication.refuses && causes == 1 {
                hints.push(self.permit_plaintext());
            }
            return hints;
        }
        if causes > 1 {
            hints.push("several rules deny the connection; all of these changes are needed:".to_owned());
        }
        if self.connection.source.is_none() && (authentication.refuses || is_not_allowed) {
            hints.extend(self.prove());
        }
        // If the client could prove its identity, the missing ALLOW rule is proposed for the client with its identity.
        if authentication.refuses && !(is_not_allowed && proving.is_some()) {
            hints.push(self.permit_plaintext());
        }
        for one in considered.iter().filter(|one| one.denies()).take(NAMED) {
            hints.push(self.narrow(one));
        }
        if is_not_allowed {
            let tried = proving.as_ref().unwrap_or(self.connection);
            hints.push(Addition { case: self, connection: tried }.told());
        }
        hints
    }

    /// The connection as it would be if a client that is not captured were captured, and proved its identity.
    fn proving(&self) -> Option<Connection> {
        let source = self.client.principal.clone().filter(|_| self.connection.source.is_none())?;
        Some(Connection { source: Some(source), ..self.connection.clone() })
    }

    /// How the client gets an identity.
    fn prove(&self) -> Option<String> {
        let Some(pod) = self.client.pod else {
            return Some("run the client as a pod of the mesh: other clients have no identity".to_owned());
        };
        Some(match (pod.membership, self.captured) {
            (Membership::Refused(reason), _) => format!("put Pod {} into the mesh: {reason}", pod.name),
            // A label alone would not be enough.
            _ if pod.host_network => {
                format!(
                    "run Pod {} without hostNetwork, in the mesh: a pod with its node's address cannot prove an \
                     identity",
                    pod.name
                )
            }
            (Membership::NotLabelled, _) => format!(
                "put the client into the mesh: label namespace {} with istio.io/dataplane-mode: ambient",
                pod.name.namespace
            ),
            (Membership::OptedOut, _) => format!(
                "put the client into the mesh: remove the label istio.io/dataplane-mode: none of Pod {}",
                pod.name
            ),
            (Membership::InMesh, Err(why)) => format!("have the connection captured at the client: {why}"),
            (Membership::InMesh, Ok(())) => return None,
        })
    }

    /// The change after which the port accepts plaintext again.
    fn permit_plaintext(&self) -> String {
        let port = self.connection.destination.port();
        let found = policy::authentication(self.sources.snapshot, self.workload, port);
        let own = found.considered.iter().find(|one| {
            let counts = matches!(one.counts, Counts::Decides | Counts::Inherits | Counts::Overridden(_));
            one.level == Level::Workload && counts
        });
        let entry = format!("portLevelMtls: {{{port}: {{mode: PERMISSIVE}}}}");
        match (own, selector(self.workload)) {
            (Some(one), _) => {
                format!("or accept plaintext at port {port}: {entry} in PeerAuthentication {}", titled(&one.policy))
            }
            (None, labels) if labels.is_empty() => format!(
                "or accept plaintext at port {port}: give Pod {} a label, and select it by a PeerAuthentication with \
                 {entry}",
                self.workload.name
            ),
            (None, labels) => format!(
                "or accept plaintext at port {port}: a PeerAuthentication in namespace {} with spec: \
                 {{{labels}{entry}}}",
                self.workload.name.namespace
            ),
        }
    }

    /// The change after which a DENY rule does not match any more.
    fn narrow(&self, one: &Considered) -> String {
        let (title, rule) = (one.title(), one.matched.unwrap_or_default());
        let action = one.policy.action;
        let what =
            one.told.rules.iter().find(|told| told.index == rule).map(|told| told.detail.as_str()).unwrap_or_default();
        let mut hint =
            format!("narrow rules[{rule}] of {action} {title}, which matches by: {what}", action = action.name());
        if let Some(exception) = self.exception(&one.policy, rule) {
            // Writing to a String can't fail.
            let _written = write!(hint, "; for example {exception}");
        }
        if action == Action::Custom {
            hint.push_str(
                "; or write ALLOW or DENY policies in its place: CUSTOM needs an authorizer that cannot be asked at \
                 layer 4",
            );
        }
        hint
    }

    /// A change that excludes this client from a rule; it has been verified.
    fn exception(&self, policy: &AuthorizationPolicy, rule: usize) -> Option<String> {
        let (field, value, except) = self.except();
        let mut changed = with_rule(policy, policy.rules.get(rule)?.clone());
        let only = changed.rules.first_mut()?;
        let mut entries = Vec::new();
        match only.clauses.iter_mut().find(|clause| clause.part == Part::From && !clause.matches.is_empty()) {
            Some(clause) => {
                for (index, wanted) in clause.matches.iter_mut().enumerate() {
                    entries.push(format!("from[{index}].source"));
                    except(wanted);
                }
            }
            None => {
                let mut wanted = Match::default();
                except(&mut wanted);
                only.clauses.push(Clause { part: Part::From, matches: vec![wanted] });
            }
        }
        let text = match entries.as_slice() {
            [] => format!("add from: [{{source: {{{field}: [\"{value}\"]}}}}] to it"),
            entries => format!("add {field}: [\"{value}\"] to its {}", entries.join(" and ")),
        };
        (!would_match(changed, self.workload, self.connection)).then_some(text)
    }

    fn except(&self) -> (&'static str, String, Except) {
        match &self.connection.source {
            Some(source) => {
                let exact = StringMatch::Exact(source.text().into());
                let except = move |wanted: &mut Match| wanted.not_principals.push(exact.clone());
                ("notPrincipals", source.text().to_owned(), Box::new(except))
            }
            None => {
                let address = self.connection.source_ip;
                let except = move |wanted: &mut Match| wanted.not_source_ips.push(address.into());
                ("notIpBlocks", address.to_string(), Box::new(except))
            }
        }
    }

    /// The changes that would deny a connection that is allowed.
    fn closing(&self) -> Vec<String> {
        let mut hints = Vec::new();
        let allows = || self.sight.considered.iter().filter(|one| one.allows());
        if allows().next().is_none() {
            hints.push(format!(
                "an ALLOW policy that applies to the pod denies every connection that no rule matches; an \
                 AuthorizationPolicy with spec: {{}} denies all connections to namespace {}",
                self.workload.name.namespace
            ));
        }
        let matching: Vec<String> = allows()
            .filter(|one| one.matched.is_some())
            .map(|one| {
                let matched = one.told.rules.iter().filter(|rule| rule.matched);
                let rules: Vec<String> = matched.map(|rule| format!("rules[{}]", rule.index)).collect();
                format!("{} of {}", rules.join(", "), one.title())
            })
            .collect();
        if !matching.is_empty() {
            let more = matching.len().saturating_sub(NAMED);
            let named = matching.get(..NAMED).unwrap_or(&matching).join(" and ");
            let more = if more == 0 { String::new() } else { format!(" and {more} more policies") };
            hints.push(format!("without {named}{more} the connection is denied"));
        }
        if self.connection.source.is_none() {
            hints.push(self.demand_identity());
        }
        hints
    }

    /// The change after which the port accepts no plaintext any more.
    fn demand_identity(&self) -> String {
        let authentication = &self.sight.authentication;
        let found = policy::authentication(self.sources.snapshot, self.workload, self.connection.destination.port());
        let by = match (&authentication.policy, authentication.port) {
            (Some(policy), Some(port)) => {
                format!("mode STRICT in portLevelMtls[{port}] of PeerAuthentication {policy}")
            }
            (Some(policy), None) => format!("mode STRICT in PeerAuthentication {policy}"),
            // A new PeerAuthentication would not take precedence over an older one without a mode.
            (None, _) => match found.considered.iter().rev().find(|one| one.counts == Counts::Inherits) {
                Some(one) => format!("mode STRICT in PeerAuthentication {}", titled(&one.policy)),
                None => format!("a PeerAuthentication in namespace {} with mode STRICT", self.workload.name.namespace),
            },
        };
        format!("{by} refuses clients without identity, such as this one")
    }
}

/// Excludes a client from an alternative.
type Except = Box<dyn Fn(&mut Match)>;

/// The rule that ALLOW policies lack to allow a connection.
struct Addition<'a> {
    case: &'a Case<'a>,
    connection: &'a Connection,
}

impl Addition<'_> {
    /// The smallest change after which an ALLOW policy matches.
    fn told(&self) -> String {
        let port = self.connection.destination.port();
        let of_source = self.connection.source.as_ref();
        let source = Match {
            principals: of_source.iter().map(|source| StringMatch::Exact(source.text().into())).collect(),
            source_ips: of_source.is_none().then_some(self.connection.source_ip.into()).into_iter().collect(),
            ..Match::default()
        };
        let operation = Match { destination_ports: vec![port], ..Match::default() };
        let additions = [(Part::From, source), (Part::To, operation)];
        // An ALLOW policy that is not sure to apply to the port allows no connection there, whatever its rules are.
        let allows = || self.case.sight.considered.iter().filter(|one| one.allows() && one.is_sure);
        let (from, to) = (self.entry(), format!("{{operation: {{ports: [\"{port}\"]}}}}"));
        for (part, wanted) in &additions {
            for one in allows().take(TRIED) {
                if let Some(rule) = self.extensible(&one.policy, *part, wanted) {
                    let (entry, list) = if *part == Part::From { (&from, "from") } else { (&to, "to") };
                    return format!("add {entry} to rules[{rule}].{list} of {}{}", one.title(), self.forgeable(*part));
                }
            }
        }
        let rule = format!("{{from: [{from}], to: [{to}]}}");
        match allows().find(|one| !one.policy.rules.is_empty()) {
            Some(one) => format!("add {rule} to the rules of {}{}", one.title(), self.forgeable(Part::From)),
            None => format!(
                "add an AuthorizationPolicy to namespace {} with spec: {{{}action: ALLOW, rules: [{rule}]}}{}",
                self.case.workload.name.namespace,
                selector(self.case.workload),
                self.forgeable(Part::From)
            ),
        }
    }

    /// The entry of `from` for this client.
    fn entry(&self) -> String {
        match &self.connection.source {
            Some(source) => format!("{{source: {{principals: [\"{}\"]}}}}", source.text()),
            None => format!("{{source: {{ipBlocks: [\"{}\"]}}}}", self.connection.source_ip),
        }
    }

    fn forgeable(&self, part: Part) -> &'static str {
        if self.connection.source.is_none() && part == Part::From {
            " (an address can be forged, an identity can't)"
        } else {
            ""
        }
    }

    /// The first rule that matches if an alternative is added to one of its parts.
    fn extensible(&self, policy: &AuthorizationPolicy, part: Part, wanted: &Match) -> Option<usize> {
        policy.rules.iter().enumerate().find_map(|(index, rule)| {
            let mut rule = rule.clone();
            rule.clauses.iter_mut().find(|clause| clause.part == part)?.matches.push(wanted.clone());
            let changed = with_rule(policy, rule);
            would_match(changed, self.case.workload, self.connection).then_some(index)
        })
    }
}

/// A copy of the policy with only this rule; a copy of all rules may be large.
fn with_rule(policy: &AuthorizationPolicy, rule: Rule) -> AuthorizationPolicy {
    let AuthorizationPolicy { name, origin, scope, action, dry_run, rules: _ } = policy;
    let (name, origin, scope) = (name.clone(), origin.clone(), scope.clone());
    AuthorizationPolicy { name, origin, scope, action: *action, dry_run: *dry_run, rules: vec![rule] }
}

fn titled(policy: &PeerAuthentication) -> String {
    format!("{} ({})", policy.name, policy.origin)
}

/// A label's value that YAML parses as a string: a value that is not a plain word is quoted.
fn scalar(value: &str) -> String {
    const OTHER: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let is_word =
        value.starts_with(|c: char| c.is_ascii_alphabetic()) && !OTHER.contains(&value.to_ascii_lowercase().as_str());
    if is_word { value.to_owned() } else { format!("\"{value}\"") }
}

/// `selector: {…}, ` with labels of the pod: the common labels for names, or all labels; empty if it has none.
fn selector(workload: &Workload) -> String {
    const KNOWN: [&str; 3] = ["app", "app.kubernetes.io/name", "k8s-app"];
    let known: Vec<_> = workload.labels.iter().filter(|(key, _)| KNOWN.contains(&&***key)).collect();
    let labels = if known.is_empty() { workload.labels.iter().collect() } else { known };
    if labels.is_empty() {
        return String::new();
    }
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}: {}", scalar(value))).collect();
    format!("selector: {{matchLabels: {{{}}}}}, ", labels.join(", "))
}
