//! The addresses that an object names, for an object that can't be read because of other fields.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::error::AddressesIn;
use crate::control::objects::Kind;
use crate::control::yaml::{Node, Value};

/// The most addresses that are taken from one object. If it has more, any address may be its own.
const MOST: usize = 4_096;

/// The addresses that an object may give to pods or services.
pub(super) fn named_by(kind: Kind, node: &Node<'_>) -> AddressesIn {
    let fields: &[&str] = match kind {
        Kind::Pod => &["status.podIP", "status.podIPs[].ip"],
        Kind::Service => {
            &["spec.clusterIP", "spec.clusterIPs[]", "spec.externalIPs[]", "status.loadBalancer.ingress[].ip"]
        }
        Kind::Slice => &["endpoints[].addresses[]"],
        Kind::Endpoints => &["subsets[].addresses[].ip", "subsets[].notReadyAddresses[].ip"],
        Kind::Entry if has_only_known_fields(node) => &["spec.addresses[]", "spec.endpoints[].address"],
        Kind::WorkloadEntry if has_only_known_fields(node) => &["spec.address"],
        _ => return AddressesIn::Anywhere,
    };
    let mut found = BTreeSet::new();
    let is_known = fields.iter().all(|field| take(node, field, &mut found).is_some());
    // A pod may be there without a status that names its addresses.
    let is_missing = matches!(kind, Kind::Pod) && found.is_empty();
    if is_known && !is_missing && found.len() <= MOST { AddressesIn::These(found) } else { AddressesIn::Anywhere }
}

/// Whether no field is misspelled that may name addresses. The kinds of Kubernetes itself have other fields as well.
fn has_only_known_fields(node: &Node<'_>) -> bool {
    const OBJECT: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
    const SPEC: [&str; 15] = [
        "hosts",
        "addresses",
        "ports",
        "location",
        "resolution",
        "endpoints",
        "workloadSelector",
        "exportTo",
        "subjectAltNames",
        "address",
        "labels",
        "network",
        "locality",
        "weight",
        "serviceAccount",
    ];
    let is_known = |node: &Node<'_>, known: &[&str]| node.entries().iter().all(|entry| known.contains(&&*entry.key));
    let spec = node.get("spec");
    let endpoints = spec.and_then(|spec| spec.get("endpoints")).map(|endpoints| &endpoints.value);
    let endpoints = match endpoints {
        Some(Value::List(endpoints)) => endpoints.as_slice(),
        _ => &[],
    };
    is_known(node, &OBJECT) && spec.into_iter().chain(endpoints).all(|fields| is_known(fields, &SPEC))
}

/// Adds the addresses at a path; `[]` stands for each entry of a list. `None`: a value there is not an address, or is
/// not reached.
fn take(node: &Node<'_>, path: &str, found: &mut BTreeSet<IpNet>) -> Option<()> {
    if node.is_null() {
        return Some(());
    }
    if path.is_empty() {
        let text = node.text().filter(|_| !matches!(node.value, Value::List(_) | Value::Map(_)))?;
        if !matches!(text, "" | "None") {
            found.insert(address(text)?);
        }
        return Some(());
    }
    if let Some(rest) = path.strip_prefix("[]") {
        let Value::List(items) = &node.value else { return None };
        let rest = rest.trim_start_matches('.');
        return items.iter().all(|item| take(item, rest, found).is_some()).then_some(());
    }
    let end = path.find(['.', '[']).unwrap_or(path.len());
    let (key, rest) = path.split_at(end);
    let Value::Map(_) = &node.value else { return None };
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    node.get(key).map_or(Some(()), |value| take(value, rest, found))
}

fn address(text: &str) -> Option<IpNet> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address.to_canonical()),
        Err(_) => text.parse::<IpNet>().ok()?.trunc(),
    };
    let is_mapped = matches!(net.addr(), IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
    (!is_mapped).then_some(net)
}

#[cfg(test)]
mod tests {
    use super::named_by;
    use crate::control::manifests::error::AddressesIn;
    use crate::control::objects::Kind;
    use crate::control::yaml::{Base, tree};

    /// The addresses, or `any`.
    fn check(kind: Kind, text: &str, expected: &str) {
        let node = tree(text, Base::default()).unwrap().unwrap();
        let shown = match named_by(kind, &node) {
            AddressesIn::Nowhere => "none".to_owned(),
            AddressesIn::These(all) => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            AddressesIn::Anywhere => "any".to_owned(),
        };
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn addresses_of_objects_with_other_faults() {
        check(
            Kind::Pod,
            "{status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}",
            "10.0.0.1/32 fd00::1/128",
        );
        check(Kind::Pod, "{spec: {hostNetwork: sure}, status: {podIP: '::ffff:10.0.0.1', podIPs: ~}}", "10.0.0.1/32");
        for unknown in
            ["{spec: 7}", "{status: {}}", "{status: 7}", "{status: {podIP: 10.0.0.x}}", "{status: {podIPs: 10.0.0.1}}"]
        {
            check(Kind::Pod, unknown, "any");
        }
        check(
            Kind::Service,
            "{spec: {clusterIP: None, externalIPs: [192.0.2.1]}, status: {loadBalancer: {ingress: [{ip: 192.0.2.2}, {hostname: x}]}}}",
            "192.0.2.1/32 192.0.2.2/32",
        );
        check(Kind::Service, "{spec: {ports: [{port: '80'}]}}", "");
        check(Kind::Service, "{spec: {clusterIP: [10.0.0.1]}}", "any");
        check(
            Kind::Slice,
            "{endpoints: [{addresses: [10.0.0.1]}, {addresses: ['fd00::1'], hints: 7}]}",
            "10.0.0.1/32 fd00::1/128",
        );
        check(Kind::Slice, "{endpoints: {addresses: [10.0.0.1]}}", "any");
        check(
            Kind::Endpoints,
            "{subsets: [{addresses: [{ip: 10.0.0.1}], notReadyAddresses: [{ip: 10.0.0.2}]}]}",
            "10.0.0.1/32 10.0.0.2/32",
        );
        check(
            Kind::Entry,
            "{spec: {hosts: [a.b], addresses: [10.0.0.0/8], endpoints: [{address: 192.0.2.1}]}}",
            "10.0.0.0/8 192.0.2.1/32",
        );
        for unknown in [
            "{spec: {adresses: [10.0.0.0/8]}}",
            "{sepc: {}}",
            "{spec: {endpoints: [{addres: 10.0.0.1}]}}",
            "{spec: {endpoints: [{address: a.b}]}}",
        ] {
            check(Kind::Entry, unknown, "any");
        }
        check(Kind::WorkloadEntry, "{spec: {address: 10.0.0.1, weight: x}}", "10.0.0.1/32");
        check(Kind::Namespace, "{}", "any");
        let many: Vec<String> = (0..5_000u32).map(|number| std::net::Ipv4Addr::from(number).to_string()).collect();
        check(Kind::Entry, &format!("{{spec: {{addresses: [{}]}}}}", many.join(", ")), "any");
    }
}
