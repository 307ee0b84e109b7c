//! Policy routing in a pod's network namespace.
//!
//! | pref | rule | for |
//! |---|---|---|
//! | 1 | mark CAPTURE -> table 15001 | connects that the hook marked |
//! | 2 | mark DELIVER -> table 15006 | deliveries, and answers of the application to them |
//! | 3 | mark CAPTURE -> table local | the daemon's answers to captured connects |
//! | 4, 5 | mark CAPTURE, mark DELIVER: prohibit | no marked packet leaves if the tables above have no route |
//! | 6 | all -> table local | the kernel's rule with pref 0; it must come after the marks, see below |
//!
//! Both tables make every address local: `local default dev lo`. Table 15001 has the same route for each other
//! interface, with a larger metric; without it, packets of sockets that are bound to a device would leave the pod
//! unencrypted. Table 15001 also has a throw route for each of the pod's own addresses, which leads back to table
//! local: the daemon's answers to a socket that is bound to a device must arrive on the interface that has the address.
//! Table local comes after the marks, because a delivery to the pod's own address must be routed through `lo`: by this
//! `steer` distinguishes it from a packet of another sender. The preferences are the first possible ones, so that no
//! rule of the pod comes before them.

use std::{collections::HashSet, net::IpAddr};

use ebpf_common::mark;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use nix::libc;
use rtnetlink::IpVersion;

use super::link::{Interface, LinkError, NetnsFacts, NetnsLink};
use crate::{model::addr::is_link_local_v6, net::socket::Family};

/// The table of captured connects. The number is the outbound port of Istio's ztunnel, which is easy to recognise.
pub const TABLE_CAPTURE: u32 = 15001;
/// The table of deliveries. The number is the inbound port of Istio's ztunnel.
pub const TABLE_DELIVER: u32 = 15006;
const PREF_CAPTURE: u32 = 1;
const PREF_DELIVER: u32 = 2;
const PREF_CAPTURE_LOCAL: u32 = 3;
const PREF_CAPTURE_END: u32 = 4;
const PREF_DELIVER_END: u32 = 5;
const PREF_LOCAL: u32 = 6;
const TABLE_LOCAL: u32 = 255;
/// The metric of routes through other interfaces than `lo` is above 1024, the kernel's default for IPv6.
const METRIC_INTERFACE: u32 = 2048;
const METRIC_LOOPBACK: u32 = 1;

/// Makes the rules and routes that capture needs, in each IP family of the namespace. Repairs missing ones.
///
/// `sources` are the pod's addresses. The first address of a family becomes the source address of captured connections.
/// If the pod has no address of a family, the first address of an interface is used: a pod of an IPv6 cluster may have
/// an IPv4 address for egress that is not in its status.
///
/// # Errors
/// The first refusal of the kernel. The other steps have been done.
pub async fn ensure(link: &NetnsLink, facts: &NetnsFacts, sources: &[IpAddr]) -> Result<(), LinkError> {
    let mut result = Ok(());
    for family in Family::ALL.into_iter().filter(|family| facts.speaks(*family)) {
        let source = sources.iter().copied().find(|ip| Family::of(*ip) == family);
        let routes = ensure_routes(link, facts, family, source).await;
        // The rules are made even if a route failed: they keep marked packets inside the pod.
        let rules = ensure_rules(link, family).await;
        result = result.and(routes).and(rules);
    }
    result
}

/// Removes the rules and routes of [`ensure`], and restores the rule for table local. A failed step does not stop the
/// others.
///
/// # Errors
/// The first refusal of the kernel.
pub async fn remove(link: &NetnsLink) -> Result<(), LinkError> {
    let mut result = Ok(());
    for family in Family::ALL {
        for step in [restore_rules(link, family).await, flush_tables(link, family).await] {
            result = result.and(step);
        }
    }
    result
}

async fn ensure_rules(link: &NetnsLink, family: Family) -> Result<(), LinkError> {
    let present = rules(link, family).await?;
    let wanted = our_rules(family);
    for rule in wanted {
        if !present.iter().any(|other| same_rule(other, &rule)) {
            add_rule(link, family, rule).await?;
        }
    }
    // This comes last, so that there is always a rule for table local.
    for rule in present.into_iter().filter(is_first_local) {
        delete_rule(link, rule).await?;
    }
    Ok(())
}

async fn restore_rules(link: &NetnsLink, family: Family) -> Result<(), LinkError> {
    let present = rules(link, family).await?;
    let ours = our_rules(family);
    let is_ours = |rule: &RuleMessage| ours.iter().any(|own| same_rule(rule, own));
    if !present.iter().any(is_ours) {
        return Ok(());
    }
    if !present.iter().any(is_first_local) {
        add_rule(link, family, local_rule(family, 0)).await?;
    }
    for rule in present.into_iter().filter(is_ours) {
        delete_rule(link, rule).await?;
    }
    Ok(())
}

async fn rules(link: &NetnsLink, family: Family) -> Result<Vec<RuleMessage>, LinkError> {
    let version = if family == Family::V4 { IpVersion::V4 } else { IpVersion::V6 };
    present(link.list(&format!("list the {family:?} rules"), link.handle().rule().get(version).execute()).await)
}

/// A kernel without the IP family has no rules and routes of it.
fn present<T>(dump: Result<Vec<T>, LinkError>) -> Result<Vec<T>, LinkError> {
    match dump {
        Err(error) if matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => Ok(Vec::new()),
        other => other,
    }
}

/// Turns the errors `done` into success: they mean that there was nothing to do.
fn unless(result: Result<(), LinkError>, done: &[i32]) -> Result<(), LinkError> {
    match result {
        Err(error) if error.errno().is_some_and(|errno| done.contains(&errno)) => Ok(()),
        other => other,
    }
}

async fn add_rule(link: &NetnsLink, family: Family, rule: RuleMessage) -> Result<(), LinkError> {
    let what = format!("add the {family:?} rule with preference {}", preference(&rule));
    let mut request = link.handle().rule().add();
    *request.message_mut() = rule;
    unless(link.ask(&what, request.execute()).await, &[libc::EEXIST])
}

async fn delete_rule(link: &NetnsLink, rule: RuleMessage) -> Result<(), LinkError> {
    let what = format!("delete the rule with preference {}", preference(&rule));
    unless(link.ask(&what, link.handle().rule().del(rule).execute()).await, &[libc::ENOENT])
}

fn rule(family: Family, attributes: Vec<RuleAttribute>, table: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = address_family(family);
    rule.header.action = RuleAction::ToTable;
    rule.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    rule.attributes = attributes;
    rule.attributes.push(RuleAttribute::Table(table));
    rule
}

fn our_rules(family: Family) -> [RuleMessage; 6] {
    let marked = |preference, mark, table| {
        let attributes =
            vec![RuleAttribute::Priority(preference), RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mark::ROUTES)];
        rule(family, attributes, table)
    };
    let prohibited = |preference, mark| {
        let mut rule = marked(preference, mark, 0);
        rule.header.action = RuleAction::Prohibit;
        rule.attributes.pop();
        rule
    };
    // The last rules come first, so that there is no gap while they are added one by one.
    [
        local_rule(family, PREF_LOCAL),
        prohibited(PREF_DELIVER_END, mark::DELIVER),
        prohibited(PREF_CAPTURE_END, mark::CAPTURE),
        marked(PREF_CAPTURE_LOCAL, mark::CAPTURE, TABLE_LOCAL),
        marked(PREF_DELIVER, mark::DELIVER, TABLE_DELIVER),
        marked(PREF_CAPTURE, mark::CAPTURE, TABLE_CAPTURE),
    ]
}

fn local_rule(family: Family, preference: u32) -> RuleMessage {
    rule(family, vec![RuleAttribute::Priority(preference)], TABLE_LOCAL)
}

/// The identity of a rule: preference, mark, mask, table and whether it prohibits. The kernel omits preference 0.
fn identity_of(rule: &RuleMessage) -> (u32, u32, u32, u32, bool) {
    let (mut mark, mut mask, mut table) = (0, 0, u32::from(rule.header.table));
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::FwMark(value) => mark = *value,
            RuleAttribute::FwMask(value) => mask = *value,
            RuleAttribute::Table(value) => table = *value,
            _ => {}
        }
    }
    let prohibits = rule.header.action == RuleAction::Prohibit;
    (preference(rule), mark, if mark == 0 { 0 } else { mask }, if prohibits { 0 } else { table }, prohibits)
}

fn preference(rule: &RuleMessage) -> u32 {
    let priority = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(value) => Some(*value),
        _ => None,
    });
    priority.unwrap_or(0)
}

fn same_rule(a: &RuleMessage, b: &RuleMessage) -> bool {
    identity_of(a) == identity_of(b)
}

fn is_first_local(rule: &RuleMessage) -> bool {
    identity_of(rule) == (0, 0, 0, TABLE_LOCAL, false)
}

async fn ensure_routes(
    link: &NetnsLink,
    facts: &NetnsFacts,
    family: Family,
    source: Option<IpAddr>,
) -> Result<(), LinkError> {
    let present = routes(link, family).await?;
    let wanted = our_routes(facts, family, source);
    let keys = |routes: &[RouteMessage]| routes.iter().map(key_of).collect::<HashSet<_>>();
    let (present_keys, wanted_keys) = (keys(&present), keys(&wanted));
    let mut result = Ok(());
    for route in wanted.iter().filter(|route| !present_keys.contains(&key_of(route))) {
        let what = format!("add a {family:?} capture route");
        result = result.and(link.ask(&what, link.handle().route().add(route.clone()).replace().execute()).await);
    }
    // Stale routes are above all exceptions for addresses that the pod no longer has. A route that differs only in its
    // source has been replaced by now: deleting it would delete its successor.
    let slots: HashSet<_> = wanted.iter().map(slot_of).collect();
    let is_stale = |route: &RouteMessage| !wanted_keys.contains(&key_of(route)) && !slots.contains(&slot_of(route));
    for stale in present.into_iter().filter(is_stale) {
        result = result.and(delete_route(link, family, stale).await);
    }
    result
}

fn our_routes(facts: &NetnsFacts, family: Family, source: Option<IpAddr>) -> Vec<RouteMessage> {
    // The kernel accepts no route whose source is a tentative address.
    let source = source.filter(|ip| facts.addresses.contains(ip) && !facts.tentative.contains(ip));
    let usable = |ip: &IpAddr| Family::of(*ip) == family && !is_link_local_v6(*ip) && !facts.tentative.contains(ip);
    let outward = facts.interfaces.iter().filter(|interface| !interface.loopback);
    let source = source.or_else(|| outward.flat_map(|interface| &interface.addresses).copied().find(usable));
    let loopback = facts.interfaces.iter().filter(|interface| interface.loopback);
    let deliver = loopback.map(|interface| default_route(family, TABLE_DELIVER, interface, None));
    // A socket that is bound to a device gets only packets for an address of that device.
    let source_on = |interface: &Interface| {
        let mut own = interface.addresses.iter().copied().filter(usable);
        if interface.loopback || source.is_some_and(|ip| interface.addresses.contains(&ip)) {
            source
        } else {
            own.next().or(source)
        }
    };
    let capture =
        facts.interfaces.iter().map(|interface| default_route(family, TABLE_CAPTURE, interface, source_on(interface)));
    let own = facts.addresses.iter().filter(|ip| Family::of(**ip) == family).map(|ip| exception(family, *ip));
    deliver.chain(capture).chain(own).collect()
}

async fn flush_tables(link: &NetnsLink, family: Family) -> Result<(), LinkError> {
    for route in routes(link, family).await? {
        delete_route(link, family, route).await?;
    }
    Ok(())
}

async fn delete_route(link: &NetnsLink, family: Family, route: RouteMessage) -> Result<(), LinkError> {
    let what = format!("delete a {family:?} capture route");
    unless(link.ask(&what, link.handle().route().del(route).execute()).await, &[libc::ESRCH])
}

/// The routes of this daemon's tables. The kernel filters them, because a pod may have a million other routes.
async fn routes(link: &NetnsLink, family: Family) -> Result<Vec<RouteMessage>, LinkError> {
    let mut all = Vec::new();
    for table in [TABLE_CAPTURE, TABLE_DELIVER] {
        let what = format!("list the {family:?} routes of table {table}");
        let found = link.list(&what, link.handle().route().get(of_table(family, table)).execute()).await;
        let found = match found {
            // The table does not exist yet.
            Err(error) if error.errno() == Some(libc::ENOENT) => continue,
            found => present(found)?,
        };
        all.extend(found.into_iter().filter(|route| table_of(route) == table));
    }
    Ok(all)
}

/// The request for all routes of a table. It has no other fields, because each of them would be a filter as well.
fn of_table(family: Family, table: u32) -> RouteMessage {
    let mut query = RouteMessage::default();
    query.header.address_family = address_family(family);
    query.attributes = vec![RouteAttribute::Table(table)];
    query
}

/// `local default dev INTERFACE [src SOURCE] table TABLE metric …`
fn default_route(family: Family, table: u32, interface: &Interface, source: Option<IpAddr>) -> RouteMessage {
    let metric = if interface.loopback { METRIC_LOOPBACK } else { METRIC_INTERFACE.saturating_add(interface.index) };
    let mut route = route(family, table, metric);
    route.header.kind = RouteType::Local;
    route.header.scope = if family == Family::V4 { RouteScope::Host } else { RouteScope::Universe };
    route.attributes.push(RouteAttribute::Oif(interface.index));
    route.attributes.extend(source.map(|ip| RouteAttribute::PrefSource(route_address(ip))));
    route
}

/// `throw ADDRESS table 15001`
fn exception(family: Family, own: IpAddr) -> RouteMessage {
    let mut route = route(family, TABLE_CAPTURE, METRIC_LOOPBACK);
    route.header.kind = RouteType::Throw;
    route.header.destination_prefix_length = if family == Family::V4 { 32 } else { 128 };
    route.attributes.push(RouteAttribute::Destination(route_address(own)));
    route
}

fn route(family: Family, table: u32, metric: u32) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = address_family(family);
    route.header.protocol = RouteProtocol::Static;
    route.header.table = RouteHeader::RT_TABLE_UNSPEC;
    route.attributes = vec![RouteAttribute::Table(table), RouteAttribute::Priority(metric)];
    route
}

fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn table_of(route: &RouteMessage) -> u32 {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or_else(|| u32::from(route.header.table))
}

type RouteKey = (u32, u8, u8, Vec<String>);

/// The identity of a route without its source.
fn slot_of(route: &RouteMessage) -> RouteKey {
    let mut route = route.clone();
    route.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::PrefSource(_)));
    key_of(&route)
}

/// The identity of a route: table, type, prefix length and some attributes. Other fields are ignored. A throw route has
/// no interface, although the kernel shows one for IPv6.
fn key_of(route: &RouteMessage) -> RouteKey {
    let is_throw = route.header.kind == RouteType::Throw;
    let counts = |attribute: &&RouteAttribute| match attribute {
        RouteAttribute::Oif(_) => !is_throw,
        RouteAttribute::Priority(_) | RouteAttribute::PrefSource(_) | RouteAttribute::Destination(_) => true,
        _ => false,
    };
    let mut attributes: Vec<_> =
        route.attributes.iter().filter(counts).map(|attribute| format!("{attribute:?}")).collect();
    attributes.sort_unstable();
    (table_of(route), route.header.kind.into(), route.header.destination_prefix_length, attributes)
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Family, Interface, NetnsFacts, TABLE_CAPTURE, identity_of, is_first_local, key_of, local_rule, our_routes,
        our_rules, same_rule, table_of,
    };
    use netlink_packet_route::{
        route::{RouteAttribute, RoutePreference, RouteType},
        rule::{RuleAttribute, RuleMessage},
    };

    #[test]
    fn a_rule_is_known_again_in_the_kernels_form() {
        let [.., deliver, capture] = our_rules(Family::V4);
        let mut dumped = capture.clone();
        dumped.attributes.reverse();
        dumped.attributes.push(RuleAttribute::SuppressPrefixLen(u32::MAX));
        assert!(same_rule(&dumped, &capture));
        assert!(!same_rule(&dumped, &deliver));
    }

    #[test]
    fn only_preference_0_without_a_mark_is_the_first_local_rule() {
        let mut dumped = RuleMessage::default();
        dumped.header.table = 255;
        dumped.attributes = vec![RuleAttribute::Table(255)];
        assert!(is_first_local(&dumped), "{:?}", identity_of(&dumped));
        assert!(!is_first_local(&local_rule(Family::V6, 200)));
        dumped.attributes.push(RuleAttribute::FwMark(1));
        assert!(!is_first_local(&dumped));
    }

    #[test]
    fn captured_connections_come_from_an_address_that_the_namespace_has() {
        let interface = |index, name: &str, addresses: &[&str]| Interface {
            index,
            name: name.into(),
            loopback: index == 1,
            ethernet: true,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        };
        let facts = NetnsFacts {
            addresses: ["fd00::1", "fe80::1", "169.254.172.2", "fd00::9"]
                .map(|address| address.parse().unwrap())
                .into(),
            tentative: vec!["fd00::9".parse().unwrap()],
            interfaces: vec![
                interface(1, "lo", &["192.0.2.1"]),
                interface(2, "eth0", &["fe80::1", "fd00::9", "fd00::1"]),
                interface(3, "v4if0", &["169.254.172.2"]),
            ],
        };
        let sources = |family, of_status: Option<&str>| -> Vec<Option<String>> {
            let routes = our_routes(&facts, family, of_status.map(|address| address.parse().unwrap()));
            let capture =
                routes.iter().filter(|route| table_of(route) == TABLE_CAPTURE && route.header.kind == RouteType::Local);
            let source = |route: &netlink_packet_route::route::RouteMessage| {
                route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::PrefSource(address) => Some(format!("{address:?}")),
                    _ => None,
                })
            };
            capture.map(source).collect()
        };
        let from = |address: &str| Some(address.to_owned());
        let egress = from("Inet(169.254.172.2)");
        assert_eq!(sources(Family::V4, None), [egress.clone(), egress.clone(), egress.clone()]);
        // An address of the pod's status that the namespace does not have is no source.
        assert_eq!(sources(Family::V4, Some("10.0.0.7")), [egress.clone(), egress.clone(), egress]);
        let own = from("Inet6(fd00::1)");
        assert_eq!(sources(Family::V6, Some("fd00::1")), [own.clone(), own.clone(), own.clone()]);
        assert_eq!(sources(Family::V6, None), [own.clone(), own.clone(), own]);
    }

    #[test]
    fn own_addresses_are_thrown_back_and_all_else_is_local() {
        let interface = |index, name: &str| Interface {
            index,
            name: name.into(),
            loopback: index == 1,
            ethernet: true,
            addresses: Vec::new(),
        };
        let facts = NetnsFacts {
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            tentative: Vec::new(),
            interfaces: vec![interface(1, "lo"), interface(2, "eth0")],
        };
        let routes = our_routes(&facts, Family::V4, Some("10.0.0.1".parse().unwrap()));
        let kinds: Vec<_> = routes.iter().map(|route| (table_of(route), route.header.kind)).collect();
        let capture = TABLE_CAPTURE;
        assert_eq!(
            kinds,
            [
                (15006, RouteType::Local),
                (capture, RouteType::Local),
                (capture, RouteType::Local),
                (capture, RouteType::Throw)
            ]
        );
        let mut dumped = routes[3].clone();
        dumped.attributes.insert(0, RouteAttribute::Oif(1));
        dumped.attributes.push(RouteAttribute::Preference(RoutePreference::Medium));
        assert!(key_of(&dumped) == key_of(&routes[3]) && key_of(&routes[1]) != key_of(&routes[2]));
    }
}
