use std::sync::Arc;

use bytes::Bytes;

use super::{Catalogue, Change, Kind, REMEMBERED, Resource};

/// A resource with the content `text`, with aliases and services.
pub(in crate::plane) fn resource(text: &str, aliases: &[&str], services: &[&str]) -> Resource {
    let all = |texts: &[&str]| texts.iter().map(|text| Arc::from(*text)).collect();
    let content = text.bytes().fold(7, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte));
    Resource {
        encoded: Bytes::copy_from_slice(text.as_bytes()),
        content,
        aliases: all(aliases),
        services: all(services),
        ranges: Box::default(),
    }
}

pub(in crate::plane) fn set(kind: Kind, name: &str, text: &str) -> Change {
    Change { kind, name: name.into(), resource: Some(resource(text, &[], &[])) }
}

pub(in crate::plane) fn gone(kind: Kind, name: &str) -> Change {
    Change { kind, name: name.into(), resource: None }
}

fn since(catalogue: &Catalogue, kind: Kind, after: u64) -> (Vec<String>, Vec<String>) {
    let shelf = catalogue.shelf(kind);
    let changed = shelf.changed(after, catalogue.version()).map(|(record, _)| record.name.to_string());
    let gone = shelf.gone(after, catalogue.version()).map(|record| record.name.to_string());
    (changed.collect(), gone.collect())
}

#[test]
fn what_is_as_it_was_is_no_change_and_each_name_counts_once() {
    let mut catalogue = Catalogue::default();
    let address = Kind::Address;
    assert_eq!(catalogue.apply(vec![set(address, "a", "1"), set(address, "b", "1"), gone(address, "c")], true), 2);
    assert_eq!(catalogue.version(), 2);
    assert_eq!(catalogue.apply(vec![set(address, "a", "1"), set(Kind::Authorization, "a", "1")], true), 1);
    assert_eq!(since(&catalogue, address, 0), (vec!["a".to_owned(), "b".to_owned()], vec![]));
    assert_eq!(catalogue.apply(vec![set(address, "a", "2"), gone(address, "b")], true), 2);
    assert_eq!(since(&catalogue, address, 0), (vec!["a".to_owned()], vec!["b".to_owned()]));
    assert_eq!(since(&catalogue, address, 4), (vec![], vec!["b".to_owned()]));
    assert_eq!(since(&catalogue, address, 5), (vec![], vec![]));
    // A resource that comes back is not reported as gone.
    catalogue.apply(vec![set(address, "b", "1")], true);
    assert_eq!(since(&catalogue, address, 4), (vec!["b".to_owned()], vec![]));
    assert_eq!(catalogue.shelf(address).bytes(), 2);
}

#[test]
fn removals_are_forgotten_before_they_are_more_than_there_is() {
    let mut catalogue = Catalogue::default();
    for number in 0..REMEMBERED + 10 {
        let name = format!("pod-{number}");
        catalogue.apply(vec![set(Kind::Address, &name, "1")], true);
        catalogue.apply(vec![gone(Kind::Address, &name)], true);
    }
    let shelf = catalogue.shelf(Kind::Address);
    assert_eq!(shelf.gone(0, catalogue.version()).count(), REMEMBERED);
    assert_eq!(shelf.forgotten(), 20);
    assert!(shelf.is_empty() && shelf.aliases.is_empty() && shelf.gone_at.len() == REMEMBERED);
}

#[test]
fn an_address_leads_to_its_resource_and_a_service_to_the_workloads_behind_it() {
    let mut catalogue = Catalogue::default();
    let put = |name: &str, resource| Change { kind: Kind::Address, name: name.into(), resource: Some(resource) };
    let changes = vec![
        put("demo/web", resource("s", &["/10.96.0.1"], &[])),
        put("c//Pod/demo/web-0", resource("w", &["/10.0.0.1"], &["demo/web"])),
        put("c//Pod/demo/other", resource("o", &["/10.0.0.2"], &[])),
    ];
    catalogue.apply(changes, true);
    let found = |catalogue: &Catalogue, name: &str| {
        let mut found: Vec<String> = catalogue
            .shelf(Kind::Address)
            .asked_for([&name.into()])
            .names
            .into_iter()
            .map(ToString::to_string)
            .collect();
        found.sort();
        found
    };
    assert_eq!(found(&catalogue, "/10.96.0.1"), ["c//Pod/demo/web-0", "demo/web"]);
    assert_eq!(found(&catalogue, "demo/web"), ["c//Pod/demo/web-0", "demo/web"]);
    assert_eq!(found(&catalogue, "/10.0.0.1"), ["c//Pod/demo/web-0"]);
    assert_eq!(found(&catalogue, "/10.0.0.3"), [""; 0]);
    catalogue.apply(vec![put("c//Pod/demo/web-0", resource("w", &["/10.0.0.9"], &[]))], true);
    assert_eq!(found(&catalogue, "demo/web"), ["demo/web"]);
    assert_eq!(found(&catalogue, "/10.0.0.1"), [""; 0]);
}

/// A node asks for 20,000 addresses in the block of a service, for the service by its name, and for its alias.
#[test]
fn the_endpoints_of_a_service_are_looked_at_once_however_many_names_stand_for_it() {
    let mut catalogue = Catalogue::default();
    let put = |name: String, resource| Change { kind: Kind::Address, name: name.into(), resource: Some(resource) };
    let ranges = |block: &str| [("net".into(), block.parse().unwrap())].into();
    let service = Resource { ranges: ranges("10.96.0.0/16"), ..resource("s", &["net/10.0.0.1"], &[]) };
    let endpoints = (0..1000).map(|number| put(format!("pod-{number}"), resource("w", &[], &["demo/web"])));
    catalogue.apply(endpoints.chain([put("demo/web".to_owned(), service.clone())]).collect(), true);
    let addresses = (0..20_000).map(|number| format!("net/10.96.{}.{}", number / 250, number % 250));
    let names = addresses.chain(["demo/web", "net/10.0.0.1", "net/10.97.0.1", "other/10.96.0.1"].map(str::to_owned));
    let names: Vec<Arc<str>> = names.map(Arc::from).collect();
    let found = catalogue.shelf(Kind::Address).asked_for(&names);
    assert_eq!(found.names.len(), 1001);
    assert_eq!(found.missing, ["net/10.97.0.1".into(), "other/10.96.0.1".into()]);
    // The blocks are those of the last version.
    catalogue.apply(vec![put("demo/web".to_owned(), Resource { ranges: ranges("fd00::/64"), ..service })], true);
    let shelf = catalogue.shelf(Kind::Address);
    assert_eq!(shelf.asked_for(&["net/10.96.0.1".into()]).names.len(), 0);
    assert_eq!(shelf.asked_for(&["net/fd00::7".into()]).names.len(), 1001);
    catalogue.apply(vec![gone(Kind::Address, "demo/web")], true);
    assert!(catalogue.shelf(Kind::Address).around.is_empty());
}
