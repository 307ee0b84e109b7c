//! An explanation for people: first the verdict, then the reasons, then the possible changes.

use std::collections::BTreeSet;

use super::explanation::{Authentication, Endpoint, Explanation, Judgement, Policy, Preference, Way};
use super::page::Page;

/// The maximum number of listed endpoints of one kind; the others are in the JSON.
const ENDPOINTS: usize = 20;
/// The maximum number of listed policies that do not apply.
const MOST_INAPPLICABLE: usize = 10;
/// The maximum number of listed policies that apply but do not match.
const SILENT: usize = 30;
/// The maximum number of listed notes and warnings.
const REMARKS: usize = 20;

/// The explanation as text, with one line for each fact. It contains no control sequences.
#[must_use]
pub fn text(explanation: &Explanation) -> String {
    wrapped(explanation, None, str::to_owned)
}

/// The explanation as text of this many columns (`None`: lines are not wrapped); only longer words exceed them. It contains no
/// control sequences except those that `paint` adds to the verdict.
#[must_use]
pub fn wrapped(explanation: &Explanation, width: Option<usize>, paint: impl Fn(&str) -> String) -> String {
    let mut page = Page::new(width);
    let Explanation { verdict, reason, from, to, .. } = explanation;
    let headline = format!("{}: {} -> {}, port {}", verdict.name(), from.asked, to.asked, to.port);
    page.painted(0, 2, &headline, verdict.name(), paint);
    page.line(2, 0, reason);
    page.gap();
    way(&mut page, explanation);
    endpoints(&mut page, explanation);
    judgements(&mut page, explanation);
    list(&mut page, "What would change it", &explanation.would_change);
    list(&mut page, "Notes", &explanation.notes);
    list(&mut page, "Warnings", &explanation.warnings);
    page.finish()
}

fn way(page: &mut Page, explanation: &Explanation) {
    let Explanation { from, to, route, .. } = explanation;
    let mut client: Vec<String> = from.pod.iter().map(|pod| format!("Pod {pod}")).collect();
    client.extend(from.identity.clone());
    client.extend(from.addresses.iter().map(ToString::to_string));
    client.extend(from.node.iter().map(|node| format!("node {node}")));
    page.line(0, 7, &format!("From   {}", client.join(", ")));
    let mut server: Vec<String> = to.pod.iter().map(|pod| format!("Pod {pod}")).collect();
    server.extend(to.service.iter().map(|service| format!("Service {service}")));
    server.extend(to.address.iter().map(ToString::to_string));
    server.push(format!("port {}", to.port));
    page.line(0, 7, &format!("To     {}", server.join(", ")));
    page.line(0, 7, &format!("Route  {}", route.text));
    if let Some(refusal) = &route.refusal {
        page.line(0, 7, &format!("       NO WAY: {} ({})", refusal.text, refusal.reason));
    }
}

fn endpoints(page: &mut Page, explanation: &Explanation) {
    if explanation.endpoints.is_empty() {
        return;
    }
    page.gap();
    page.line(0, 0, "Endpoints");
    for turn in [Preference::First, Preference::Later, Preference::Never] {
        let of_turn = || explanation.endpoints.iter().filter(|endpoint| endpoint.turn == turn);
        of_turn().take(ENDPOINTS).for_each(|one| endpoint(page, one));
        more(page, of_turn().count(), ENDPOINTS);
    }
}

fn endpoint(page: &mut Page, endpoint: &Endpoint) {
    let mut facts = vec![match &endpoint.pod {
        Some(pod) => format!("Pod {pod}"),
        None => "no known pod".to_owned(),
    }];
    facts.extend(endpoint.node.iter().map(|node| format!("node {node}")));
    if endpoint.pod.is_some() {
        facts.push(endpoint.health.name().to_owned());
        facts.push(if endpoint.in_mesh { "in the mesh" } else { "NOT IN THE MESH" }.to_owned());
    }
    let verdict = match (&endpoint.judgement, endpoint.turn) {
        (Some(judgement), _) => judgement.verdict.name(),
        (None, _) => "not taken",
    };
    let address =
        if endpoint.address.port() == 0 { endpoint.address.ip().to_string() } else { endpoint.address.to_string() };
    page.line(2, 4, &format!("{address}  {verdict}: {}", facts.join(", ")));
    if endpoint.turn == Preference::Later {
        page.line(6, 2, "only when those before it fail");
    }
    if let Some(why) = &endpoint.why_never {
        page.line(6, 2, why);
        return;
    }
    match &endpoint.way {
        Some(Way::Tunnel { to, expected }) => {
            page.line(6, 2, &format!("mTLS: tunnel to {to}, which must prove {}", expected.join(" or ")));
        }
        Some(Way::Plaintext { because }) => page.line(6, 2, &format!("PLAINTEXT: {because}")),
        None => {}
    }
}

/// Endpoints with the same evaluation are listed together.
fn judgements(page: &mut Page, explanation: &Explanation) {
    let mut groups: Vec<(&Judgement, Vec<&Endpoint>)> = Vec::new();
    for endpoint in &explanation.endpoints {
        let Some(judgement) = &endpoint.judgement else { continue };
        match groups.iter_mut().find(|(known, _)| *known == judgement) {
            Some((_, alike)) => alike.push(endpoint),
            None => groups.push((judgement, vec![endpoint])),
        }
    }
    for (judgement, alike) in groups {
        page.gap();
        let named = |endpoint: &&Endpoint| match &endpoint.pod {
            Some(pod) => format!("Pod {pod}"),
            None => endpoint.address.to_string(),
        };
        let mut names: Vec<String> = alike.iter().take(ENDPOINTS).map(named).collect();
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        if let Some(more) = alike.len().checked_sub(ENDPOINTS).filter(|more| *more > 0) {
            names.push(format!("and {more} more"));
        }
        page.line(0, 2, &format!("At {}: {}, {}", names.join(", "), judgement.verdict.name(), judgement.reason));
        judged(page, judgement);
    }
}

fn judged(page: &mut Page, judgement: &Judgement) {
    if let Some(authentication) = &judgement.authentication {
        page.line(2, 4, &authenticated(authentication));
        authentication.considered.iter().take(MOST_INAPPLICABLE).for_each(|one| page.line(6, 4, one));
        more(page, authentication.considered.len(), MOST_INAPPLICABLE);
    }
    let applying = || judgement.policies.iter().filter(|policy| policy.applies);
    applying().filter(|one| one.matched).for_each(|one| policy(page, one));
    applying().filter(|one| !one.matched).take(SILENT).for_each(|one| policy(page, one));
    more(page, applying().filter(|one| !one.matched).count(), SILENT);
    let inapplicable = || judgement.policies.iter().filter(|policy| !policy.applies);
    for policy in inapplicable().take(MOST_INAPPLICABLE) {
        page.line(2, 4, &format!("{} {}", titled(policy), policy.scope));
    }
    more(page, inapplicable().count().saturating_add(judgement.more_policies), MOST_INAPPLICABLE);
}

fn authenticated(authentication: &Authentication) -> String {
    let Authentication { mode, policy, port, identity, refuses, considered: _ } = authentication;
    let by = match (policy, port) {
        (Some(policy), Some(port)) => format!("PeerAuthentication {policy}, portLevelMtls[{port}]"),
        (Some(policy), None) => format!("PeerAuthentication {policy}"),
        (None, _) => "default: no PeerAuthentication applies".to_owned(),
    };
    let proof = match identity {
        Some(identity) => format!("the client proves {identity}"),
        None => "the client proves no identity".to_owned(),
    };
    let what = if *refuses { "REFUSED" } else { "passes" };
    format!("{mode} ({by}); {proof}: {what}")
}

fn titled(policy: &Policy) -> String {
    let dry_run = if policy.dry_run { ", dry-run" } else { "" };
    format!("{} {} ({}{dry_run})", policy.action, policy.name, policy.place)
}

fn policy(page: &mut Page, policy: &Policy) {
    page.line(2, 4, &format!("{} applies to {}: {}", titled(policy), policy.scope, policy.effect));
    for rule in &policy.rules {
        let matched = if rule.matched { "matches" } else { "does not match" };
        page.line(6, 4, &format!("rules[{}] {matched}: {}", rule.index, rule.detail));
    }
}

fn list(page: &mut Page, title: &str, entries: &[String]) {
    if entries.is_empty() {
        return;
    }
    page.gap();
    page.line(0, 0, title);
    entries.iter().take(REMARKS).for_each(|entry| page.line(2, 2, &format!("- {entry}")));
    more(page, entries.len(), REMARKS);
}

fn more(page: &mut Page, all: usize, shown: usize) {
    if let Some(more) = all.checked_sub(shown).filter(|more| *more > 0) {
        page.line(2, 2, &format!("and {more} more (-o json lists more)"));
    }
}
