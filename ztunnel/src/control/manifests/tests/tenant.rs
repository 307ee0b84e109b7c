//! What the objects of one namespace may cost: memory on all nodes, and steps until a change takes effect.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use super::changes::{Following, from_nothing, from_nothing_within, say};
use crate::model::identity::SpiffeId;
use crate::model::service::{Endpoint, Service, ServicePort, Visibility};
use crate::store::effort;
use crate::store::snapshot::{Owner, Snapshot};

/// The memory of the services on a node that shares nothing between them, in bytes.
fn memory(mesh: &Snapshot) -> usize {
    let of = |service: &Arc<Service>| {
        let namespaces = match &service.visibility {
            Visibility::Everyone => 0,
            Visibility::Namespaces(namespaces) => namespaces.len(),
        };
        let endpoints = service.endpoints.iter().map(|one| size_of::<Endpoint>() + 4 * one.ports.iter().count());
        size_of::<Service>()
            + size_of::<IpAddr>() * (service.vips.len() + service.ranges.len())
            + size_of::<ServicePort>() * service.ports.len()
            + size_of::<SpiffeId>() * service.identities.len()
            + size_of::<Arc<str>>() * (namespaces + 2 * service.selector.len())
            + endpoints.sum::<usize>()
    };
    mesh.services().map(of).sum()
}

const GOOD: &str = "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: good, namespace: demo}, spec: {hosts: \
                    [good.example], addresses: [198.51.100.1], ports: [{number: 80}]}}";

/// Objects of namespace evil, beside those of another namespace, take no more than their budget. Returns whether that is
/// reported.
#[track_caller]
fn within_budget(objects: &[String], what: &str) -> bool {
    let texts: Vec<&str> = objects.iter().map(String::as_str).chain([GOOD]).collect();
    let mut following = from_nothing(&[("a", texts.join("\n---\n"))]);
    let memory = memory(&following.mesh);
    assert!(memory < 32 << 20, "{what}: {memory}");
    let good = following.mesh.owner("198.51.100.1".parse().unwrap(), 80, "demo");
    assert!(matches!(good, Owner::Service(service) if *service.name.namespace == *"demo"), "{what}: {good:?}");
    let told = |following: &Following| {
        let told = "the services of namespace evil cost ";
        following.mesh.problems().iter().any(|problem| problem.message.starts_with(told))
    };
    let was_told = told(&following);
    // What is less has a place again.
    say(&mut following.joiner, "a", &[GOOD, &objects[0]].join("\n---\n"));
    following.follow();
    assert!(!told(&following), "{what}");
    was_told
}

/// A short file may multiply two lists: each host of an entry has each address, each endpoint has each port.
#[test]
fn the_memory_of_all_nodes_is_not_filled_by_the_services_of_one_namespace() {
    let list = |most: usize, of: &dyn Fn(usize) -> String| (0..most).map(of).collect::<Vec<_>>().join(", ");
    let lists = ["hosts", "addresses", "blocks", "ports", "identities", "namespaces", "endpoints"];
    let entry = |number: usize, long: [&str; 2]| {
        let most = |name, most| if long.contains(&name) { most } else { 1 };
        let hosts = list(most("hosts", 256), &|host| format!("h{host:03}.e{number}.example"));
        let addresses = match long {
            _ if long.contains(&"blocks") => list(256, &|third| format!("198.{number}.{third}.0/24")),
            _ => list(most("addresses", 256), &|last| format!("203.{number}.113.{last}")),
        };
        let ports = list(most("ports", 256), &|port| format!("{{number: {}, name: p{port}}}", port + 1));
        let identities = list(most("identities", 256), &|name| format!("'spiffe://td/ns/x/sa/s{name}'"));
        let namespaces = list(most("namespaces", 2000), &|name| format!("n{name}"));
        let endpoints =
            list(most("endpoints", 256), &|place| format!("{{address: 192.0.{}.{}}}", place / 256, place % 256));
        // Only an entry without endpoints may be exported.
        let resolution = if long.contains(&"namespaces") { "NONE" } else { "STATIC" };
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: e{number}, namespace: evil}}, spec: \
             {{resolution: {resolution}, hosts: [{hosts}], addresses: [{addresses}], ports: [{ports}], subjectAltNames: \
             [{identities}], exportTo: [evil, {namespaces}], endpoints: [{endpoints}]}}}}"
        )
    };
    for (place, one) in lists.into_iter().enumerate() {
        for other in &lists[place + 1..] {
            let entries: Vec<String> = (0..24).map(|number| entry(number, [one, other])).collect();
            let is_told = within_budget(&entries, &format!("{one} and {other}"));
            assert!(is_told || one != "hosts", "{one} and {other}");
        }
    }

    let service = |number: usize, spec: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s{number}, namespace: evil}}, spec: {{clusterIP: 10.96.9.{number}, \
             {spec}}}}}"
        )
    };
    let ports = |target: &str| list(1000, &|port| format!("{{port: {}, name: p{port}{target}}}", port + 1));
    let slice = |number: usize, ports: &str, addresses: &str| {
        format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: t{number}, namespace: evil, labels: \
             {{kubernetes.io/service-name: s{number}}}}}, addressType: IPv4, ports: [{ports}], endpoints: [{{addresses: [{addresses}]}}]}}"
        )
    };
    let addresses = list(4000, &|place| format!("10.5.{}.{}", place / 250, place % 250));
    let of_slices = (0..4).flat_map(|number| {
        let spec = format!("ports: [{}]", ports(""));
        [service(number, &spec), slice(number, &ports(""), &addresses)]
    });
    assert!(within_budget(&of_slices.collect::<Vec<_>>(), "ports and endpoints of a slice"));

    let pod = |number: usize, addresses: usize| {
        let addresses = list(addresses, &|place| format!("{{ip: 10.6.{}.{}}}", number + place / 250, place % 250));
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p{number}, namespace: evil, labels: {{app: a}}}}, spec: {{containers: \
             [{{name: c, ports: [{{name: http, containerPort: {}}}]}}]}}, status: {{podIPs: [{addresses}]}}}}",
            8000 + number
        )
    };
    let of_pods = |target: &str| {
        let spec = format!("selector: {{app: a}}, ports: [{}]", ports(target));
        let services = (0..40).map(|number| service(number, &spec));
        services.chain((0..200).map(|number| pod(number, 1))).collect::<Vec<_>>()
    };
    assert!(within_budget(&of_pods(""), "ports and pods"));
    assert!(within_budget(&of_pods(", targetPort: http"), "ports with a name and pods"));
    let services = (0..200).map(|number| service(number, "selector: {app: a}, ports: [{port: 80}]"));
    assert!(within_budget(&services.chain([pod(0, 2000)]).collect::<Vec<_>>(), "addresses of a pod and services"));
}

/// Services of Kubernetes come before entries, and what is over the budget is reported with the cost.
#[test]
fn what_is_over_the_budget_is_told_and_the_rest_has_an_effect() {
    let entry = |number: usize| {
        let hosts: Vec<String> = (0..256).map(|host| format!("h{host:03}.e{number}.example")).collect();
        let addresses: Vec<String> = (0..256).map(|last| format!("198.51.100.{last}")).collect();
        let (hosts, addresses) = (hosts.join(", "), addresses.join(", "));
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: e{number}, namespace: evil}}, spec: \
             {{hosts: [{hosts}], addresses: [{addresses}], ports: [{{number: 80}}]}}}}"
        )
    };
    let text = [GOOD.to_owned(), entry(0), entry(1), entry(2)].join("\n---\n");
    let mut following = from_nothing(&[("a", text)]);
    let taken = |mesh: &Snapshot| mesh.services().map(|service| service.vips.len() + 1).sum::<usize>();
    assert!((99_000..=100_002).contains(&taken(&following.mesh)), "{}", taken(&following.mesh));
    let problems: Vec<String> = following
        .mesh
        .problems()
        .iter()
        .map(ToString::to_string)
        .filter(|told| told.contains("may have 100000"))
        .collect();
    let [told] = &problems[..] else { panic!("{problems:?}") };
    assert!(told.contains("the services of namespace evil cost 197376 units of memory"), "{told}");
    let owner = |following: &Following, namespace: &str| {
        let owner = following.mesh.owner("198.51.100.1".parse().unwrap(), 80, namespace);
        let Owner::Service(service) = owner else { panic!("{owner:?}") };
        service.name.to_string()
    };
    assert_eq!(owner(&following, "demo"), "demo/good");
    say(&mut following.joiner, "a", &[GOOD.to_owned(), entry(2)].join("\n---\n"));
    following.follow();
    assert_eq!((following.mesh.services().count(), owner(&following, "evil")), (257, "evil/e2".to_owned()));
    assert!(!following.mesh.problems().iter().any(|problem| problem.message.contains("may have")));
}

/// If two entries name one host, the second is reported, unless the host exceeds the budget: then that is reported.
#[test]
fn whose_host_is_taken_is_told_again_once_there_is_a_place_for_it() {
    let entry = |name: &str, addresses: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: {name}, namespace: evil}}, spec: {{hosts: \
             [e.example], addresses: [{addresses}], ports: [{{number: 80}}], resolution: NONE}}}}"
        )
    };
    let service = "{apiVersion: v1, kind: Service, metadata: {name: large, namespace: evil}, spec: {clusterIP: 10.96.0.9, ports: \
                   [{port: 80}]}}";
    let entries = [entry("e0", "198.51.100.1"), entry("e1", "")].join("\n---\n");
    let mut following = from_nothing_within(Some(3), &[("entries", entries), ("service", service.to_owned())]);
    let is_told = |following: &Following| {
        let problems = following.mesh.problems();
        problems.iter().any(|problem| problem.message.contains("e.example belongs to another service"))
    };
    assert!(!is_told(&following));
    say(&mut following.joiner, "service", "");
    following.follow();
    assert!(is_told(&following));
    say(&mut following.joiner, "service", service);
    following.follow();
    assert!(!is_told(&following));
}

#[test]
fn a_service_without_a_place_leads_nowhere_rather_than_past_the_mesh() {
    let pod = |number: u8| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p{number}, namespace: demo, labels: {{app: a}}}}, status: {{podIP: 10.0.0.{number}}}}}"
        )
    };
    let service = "{apiVersion: v1, kind: Service, metadata: {name: s, namespace: demo}, spec: {clusterIP: 10.96.0.1, selector: \
                   {app: a}, ports: [{port: 80}]}}";
    let text = [service.to_owned(), pod(1), pod(2), pod(3)].join("\n---\n");
    for (budget, endpoints) in [(5, 3), (4, 0)] {
        let following = from_nothing_within(Some(budget), &[("a", text.clone())]);
        let found = following.mesh.owner("10.96.0.1".parse().unwrap(), 80, "other");
        let Owner::Service(service) = found else { panic!("{found:?}") };
        assert_eq!(service.endpoints.len(), endpoints, "{budget}");
    }
}

/// The steps of the work for objects that come all at once, after others.
fn steps(before: &str, objects: &str) -> usize {
    let mut following = Following::new();
    say(&mut following.joiner, "before", before);
    following.follow();
    effort::of(|| {
        say(&mut following.joiner, "objects", objects);
        following.follow();
    })
}

/// Twice as many objects take about twice as many steps, also where each concerns the same name or address.
#[test]
fn the_work_for_many_objects_of_one_namespace_grows_with_their_number_only() {
    let pod = |number: usize, address: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p{number}, namespace: evil, labels: {{app: a, own: p{number}}}}}, \
             status: {{podIP: {address}}}}}"
        )
    };
    let own = |number: usize| format!("10.1.{}.{}", number / 250, number % 250);
    let objects = |kind: &str, number: usize| match kind {
        "entries with one host" => format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: e{number}, namespace: evil}}, spec: \
             {{hosts: [h.example], addresses: [192.0.2.1], ports: [{{number: 80}}], resolution: NONE}}}}"
        ),
        "pods with one address" => pod(number, "10.0.0.1"),
        "services of one address" => format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s{number}, namespace: evil}}, spec: {{clusterIP: 10.96.0.1, \
             ports: [{{port: 80}}]}}}}"
        ),
        "selectors" => format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s{number}, namespace: evil}}, spec: {{selector: {{app: a, own: \
             p{number}}}, ports: [{{port: 80}}]}}}}"
        ),
        _ => panic!("{kind}"),
    };
    let all = |count: usize, of: &dyn Fn(usize) -> String| {
        (0..count).fold(String::new(), |mut text, number| {
            writeln!(text, "---\n{}", of(number)).unwrap();
            text
        })
    };
    let with_pods = |count: usize| all(count, &|number| pod(number, &own(number)));
    for kind in ["entries with one host", "pods with one address", "services of one address", "selectors"] {
        let taken = [200, 400].map(|count| {
            let before = if kind == "selectors" { with_pods(count) } else { String::new() };
            steps(&before, &all(count, &|number| objects(kind, number)))
        });
        assert!(taken[0] >= 200 && taken[1] <= taken[0] * 5 / 2, "{kind}: {taken:?}");
    }
}

/// Services that select the same pods: with one selector, or with selectors that differ. The work is bounded by the budget and grows
/// with the number of objects, not with the product of services and pods.
#[test]
fn the_work_for_services_that_select_the_same_pods_is_within_the_budget() {
    const BUDGET: usize = 2000;
    const LABELS: usize = 10;
    let all_labels: Vec<String> = (0..LABELS).map(|label| format!("l{label}: v")).collect();
    let pods = |count: usize| {
        let labels = all_labels.join(", ");
        let pod = |number: usize| {
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: p{number}, namespace: evil, labels: {{{labels}}}}}, status: {{podIP: \
                 10.1.{}.{}}}}}",
                number / 250,
                number % 250
            )
        };
        (0..count).map(pod).collect::<Vec<_>>().join("\n---\n")
    };
    let services = |count: usize, differ: bool| {
        let service = |number: usize| {
            let chosen = (0..LABELS).filter(|label| if differ { (number + 1) >> label & 1 == 1 } else { *label == 0 });
            let selector: Vec<&str> = chosen.map(|label| &*all_labels[label]).collect();
            format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: s{number}, namespace: evil}}, spec: {{clusterIP: 10.96.{}.{}, \
                 selector: {{{}}}, ports: [{{port: 80}}]}}}}",
                number / 250,
                number % 250,
                selector.join(", ")
            )
        };
        (0..count).map(service).collect::<Vec<_>>().join("\n---\n")
    };
    for differ in [false, true] {
        for pods_first in [false, true] {
            let taken = [200, 400].map(|count| {
                let mut texts = [("services", services(count, differ)), ("pods", pods(count))];
                if pods_first {
                    texts.reverse();
                }
                let mut following = Following::within(Some(BUDGET));
                let steps = effort::of(|| {
                    for (name, text) in &texts {
                        say(&mut following.joiner, name, text);
                        following.follow();
                    }
                    // One pod becomes another, and all of them go.
                    say(&mut following.joiner, "pods", &pods(count - 1));
                    following.follow();
                    say(&mut following.joiner, "pods", "");
                    following.follow();
                });
                let endpoints: usize = following.mesh.services().map(|service| service.endpoints.len()).sum();
                assert_eq!((following.mesh.services().count(), endpoints), (count, 0));
                let told = following.mesh.problems().iter().any(|problem| problem.message.contains("may have"));
                assert!(!told, "without pods the services are within the budget");
                steps
            });
            assert!(
                taken[0] >= 200 && taken[1] <= taken[0] * 5 / 2,
                "differ: {differ}, pods first: {pods_first}: {taken:?}"
            );
        }
    }
}

/// The search for the pods of a selector costs as many steps as pods have the rarest label of the selector: so many units does the
/// service cost, also if the other labels of the selector leave fewer pods.
#[test]
fn a_selector_costs_the_pods_with_its_rarest_label() {
    let pod = |number: u8, tier: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p{number}, namespace: demo, labels: {{app: a, tier: {tier}, own: \
             p{number}}}}}, status: {{podIP: 10.0.0.{number}}}}}"
        )
    };
    let service = |selector: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: demo}}, spec: {{clusterIP: 10.96.0.1, selector: \
             {{{selector}}}, ports: [{{port: 80}}]}}}}"
        )
    };
    let pods: Vec<String> = (1..=4).map(|number| pod(number, if number < 4 { "front" } else { "back" })).collect();
    // One unit is the service, one is its address.
    for (selector, budget, endpoints) in [
        ("app: a, tier: front", 5, 3),
        ("app: a, tier: front", 4, 0),
        ("own: p1, tier: back", 3, 0),
        ("own: p1, tier: front", 3, 1),
        ("own: p1, tier: front", 2, 0),
        ("own: p9, tier: front", 2, 0),
    ] {
        let text = [service(selector), pods.join("\n---\n")].join("\n---\n");
        let following = from_nothing_within(Some(budget), &[("a", text)]);
        let service = following.mesh.services().next().unwrap();
        assert_eq!(service.endpoints.len(), endpoints, "{selector}, {budget}");
        let told = following.mesh.problems().iter().any(|problem| problem.message.contains("may have"));
        assert_eq!(told, matches!((selector, budget), (_, 4) | ("own: p1, tier: front", 2)), "{selector}, {budget}");
    }
}
