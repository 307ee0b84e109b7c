mod orders;

use std::{collections::BTreeMap, sync::Arc};

use tokio::time::Instant;

use super::{LONGEST_NAME, MOST_NAMES, Request, Response, Session, SessionError, Wants};
use crate::plane::{
    catalogue::{
        Catalogue, Change, Kind, Resource,
        tests::{gone, resource, set},
    },
    session::version_of,
};

const ADDRESS: Kind = Kind::Address;
const POLICY: Kind = Kind::Authorization;

fn ask(subscribe: &[&str], unsubscribe: &[&str], known: &[(&str, &str)]) -> Request {
    Request {
        subscribe: subscribe.iter().map(|name| (*name).to_owned()).collect(),
        unsubscribe: unsubscribe.iter().map(|name| (*name).to_owned()).collect(),
        known: known.iter().map(|(name, text)| ((*name).to_owned(), version(text))).collect(),
        ..Request::default()
    }
}

/// The version of a resource with the content `text`.
fn version(text: &str) -> String {
    version_of(resource(text, &[], &[]).content)
}

fn ack(nonce: &str) -> Request {
    Request { nonce: nonce.to_owned(), ..Request::default() }
}

/// A stream. Its due responses are shown as text: `+text …  -name …`.
struct Stream {
    session: Session,
    last: BTreeMap<Kind, String>,
}

impl Stream {
    fn new() -> Self {
        Self { session: Session::default(), last: BTreeMap::new() }
    }

    fn of(requests: &[(Kind, Request)]) -> Self {
        let mut stream = Self::new();
        for (kind, request) in requests {
            stream.session.request(*kind, request.clone()).unwrap();
        }
        stream
    }

    fn due(&mut self, catalogue: &Catalogue) -> Option<String> {
        let response = self.session.next(catalogue, Instant::now()).unwrap()?;
        self.last.insert(response.kind, response.nonce.clone());
        Some(shown(&response))
    }

    fn ack(&mut self, kind: Kind) {
        let answer = self.session.request(kind, ack(&self.last[&kind])).unwrap().unwrap();
        assert_eq!((answer.kind, answer.error), (kind, None));
    }
}

fn shown(response: &Response) -> String {
    let mut parts: Vec<String> = response.resources.iter().map(|bytes| format!("+{}", str(bytes))).collect();
    parts.extend(response.removed.iter().map(|name| format!("-{name}")));
    parts.sort();
    format!("{}: {}", response.kind, parts.join(" "))
}

fn str(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn catalogue(changes: Vec<Change>) -> Catalogue {
    let mut catalogue = Catalogue::default();
    catalogue.apply(changes, true);
    catalogue
}

#[test]
fn who_asks_for_everything_gets_all_and_then_what_changes_in_its_latest_state() {
    let mut mesh = catalogue(vec![set(ADDRESS, "a", "a1"), set(ADDRESS, "b", "b1")]);
    let mut stream = Stream::of(&[(ADDRESS, ask(&[], &[], &[]))]);
    assert_eq!(stream.session.wants(ADDRESS), Some(Wants::Everything));
    assert!(stream.session.expects_everything());
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +a1 +b1");
    assert!(!stream.session.expects_everything());
    // At most one response is unanswered at a time.
    for text in ["a2", "a3", "a4"] {
        mesh.apply(vec![set(ADDRESS, "a", text)], true);
        assert_eq!(stream.due(&mesh), None);
    }
    mesh.apply(vec![gone(ADDRESS, "b"), set(ADDRESS, "c", "c1")], true);
    stream.ack(ADDRESS);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +a4 +c1 -b");
    stream.ack(ADDRESS);
    assert_eq!(stream.due(&mesh), None);
    assert_eq!(stream.session.unanswered(), None);
}

/// A node that had the workloads before the setting that only they may be connected to would also connect to other
/// destinations.
#[test]
fn settings_come_before_all_else_and_only_to_those_who_ask() {
    const SETTINGS: Kind = Kind::Settings;
    let mut mesh = Catalogue::default();
    mesh.apply(vec![set(ADDRESS, "a", "a1"), set(SETTINGS, "mesh", "s1")], false);
    let all = || ask(&[], &[], &[]);
    let mut stream = Stream::of(&[(ADDRESS, all()), (SETTINGS, all()), (POLICY, all())]);
    assert_eq!(stream.due(&mesh), None);
    mesh.apply(vec![], true);
    assert_eq!(stream.due(&mesh).unwrap(), "Settings: +s1");
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: ");
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +a1");
    [SETTINGS, POLICY, ADDRESS].into_iter().for_each(|kind| stream.ack(kind));
    mesh.apply(vec![set(ADDRESS, "a", "a2"), set(SETTINGS, "mesh", "s2")], true);
    assert_eq!(stream.due(&mesh).unwrap(), "Settings: +s2");
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +a2");
    // Until the node answers, there is no further response.
    mesh.apply(vec![set(SETTINGS, "mesh", "s3")], true);
    assert_eq!(stream.due(&mesh), None);
    stream.ack(SETTINGS);
    assert_eq!(stream.due(&mesh).unwrap(), "Settings: +s3");
    // A node that already has the settings gets an empty response. Istio's ztunnel does not ask for them.
    let mut again = Stream::of(&[(SETTINGS, ask(&[], &[], &[("mesh", "s3")]))]);
    assert_eq!(again.due(&mesh).unwrap(), "Settings: ");
    let mut other = Stream::of(&[(ADDRESS, all())]);
    assert_eq!(other.due(&mesh).unwrap(), "Address: +a2");
    assert_eq!(other.due(&mesh), None);
}

#[test]
fn nobody_is_answered_before_there_is_a_mesh_and_an_empty_mesh_is_an_answer() {
    let mut mesh = Catalogue::default();
    mesh.apply(vec![set(ADDRESS, "a", "a1")], false);
    let mut stream = Stream::of(&[(ADDRESS, ask(&[], &[], &[])), (POLICY, ask(&[], &[], &[]))]);
    assert_eq!(stream.due(&mesh), None);
    mesh.apply(vec![], true);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: ");
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +a1");
    assert_eq!(stream.due(&mesh), None);
}

#[test]
fn who_comes_back_gets_what_differs_and_hears_what_is_gone() {
    let mesh = catalogue(vec![set(ADDRESS, "a", "a1"), set(ADDRESS, "b", "b2"), set(ADDRESS, "c", "c1")]);
    let known = [("a", "a1"), ("b", "b1"), ("gone", "g1")];
    let mut stream = Stream::of(&[(ADDRESS, ask(&[], &[], &known))]);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +b2 +c1 -gone");
    // When all versions are the same, there is a response, and it is empty.
    let known = [("a", "a1"), ("b", "b2"), ("c", "c1")];
    let mut stream = Stream::of(&[(ADDRESS, ask(&["*"], &[], &known))]);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: ");
    // A version that this program did not write is ignored.
    let mut request = ask(&[], &[], &[]);
    request.known.insert("a".to_owned(), "0x".to_owned());
    assert_eq!(Stream::of(&[(ADDRESS, request)]).due(&mesh).unwrap(), "Address: +a1 +b2 +c1");
}

#[test]
fn who_asks_by_name_gets_what_belongs_to_it_and_nothing_else() {
    let put = |name: &str, text: &str, aliases: &[&str], services: &[&str]| Change {
        kind: ADDRESS,
        name: name.into(),
        resource: Some(resource(text, aliases, services)),
    };
    let mut mesh = catalogue(vec![
        put("ns/svc", "svc", &["/10.96.0.1"], &[]),
        put("pod-1", "p1", &["/10.0.0.1"], &["ns/svc"]),
        put("pod-2", "p2", &["/10.0.0.2"], &[]),
    ]);
    let mut stream = Stream::of(&[(ADDRESS, ask(&["*"], &["*"], &[]))]);
    assert_eq!(stream.session.wants(ADDRESS), Some(Wants::Names(0)));
    assert_eq!(stream.due(&mesh), None);
    let on = |stream: &mut Stream, name: &str| {
        stream.session.request(ADDRESS, ask(&[name], &[], &[])).unwrap();
    };
    on(&mut stream, "/10.96.0.1");
    on(&mut stream, "/10.0.0.77");
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +p1 +svc -/10.0.0.77");
    stream.ack(ADDRESS);
    // One workload becomes an endpoint of the service. The other one was not asked for.
    mesh.apply(vec![put("pod-3", "p3", &["/10.0.0.3"], &["ns/svc"]), put("pod-4", "p4", &[], &["ns/other"])], true);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +p3");
    stream.ack(ADDRESS);
    // An address that was asked for in vain belongs to a pod now.
    mesh.apply(vec![put("pod-7", "p7", &["/10.0.0.77"], &[]), gone(ADDRESS, "pod-2"), gone(ADDRESS, "pod-1")], true);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +p7 -pod-1");
    stream.ack(ADDRESS);
    // A service and a workload behind it appear together.
    on(&mut stream, "ns/new");
    assert_eq!(stream.due(&mesh).unwrap(), "Address: -ns/new");
    stream.ack(ADDRESS);
    mesh.apply(vec![put("pod-8", "p8", &[], &["ns/new"]), put("ns/new", "new", &[], &[])], true);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +new +p8");
    stream.ack(ADDRESS);
    // The names are no longer wanted.
    stream.session.request(ADDRESS, ask(&[], &["ns/new", "pod-8"], &[])).unwrap();
    mesh.apply(vec![put("pod-8", "p8 again", &[], &["ns/new"])], true);
    assert_eq!(stream.due(&mesh), None);
}

#[test]
fn who_comes_back_with_names_is_answered_for_those_that_differ() {
    let mesh = catalogue(vec![set(ADDRESS, "a", "a1"), set(ADDRESS, "b", "b2"), set(ADDRESS, "c", "c1")]);
    let mut request = ask(&["*"], &["*"], &[("a", "a1"), ("b", "b1"), ("gone", "g")]);
    request.known.insert("/10.0.0.1".to_owned(), String::new());
    let mut stream = Stream::of(&[(ADDRESS, request)]);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +b2 -/10.0.0.1 -gone");
    stream.ack(ADDRESS);
    assert_eq!(stream.due(&mesh), None);
}

#[test]
fn a_node_that_cannot_use_a_response_is_noted_and_goes_on() {
    let mut mesh = catalogue(vec![set(ADDRESS, "a", "a1")]);
    let mut stream = Stream::of(&[(ADDRESS, ask(&[], &[], &[]))]);
    stream.due(&mesh).unwrap();
    let nack = Request { error: Some("a: broken".to_owned()), ..ack(&stream.last[&ADDRESS]) };
    // An answer to another response does not count.
    assert_eq!(stream.session.request(ADDRESS, ack("77")).unwrap(), None);
    assert_eq!(stream.session.request(ADDRESS, ack("")).unwrap(), None);
    assert!(stream.session.unanswered().is_some());
    let answer = stream.session.request(ADDRESS, nack.clone()).unwrap().unwrap();
    assert_eq!((answer.version, answer.error.as_deref()), (1, Some("a: broken")));
    // A nonce counts only once.
    assert_eq!(stream.session.request(ADDRESS, nack).unwrap(), None);
    assert_eq!(stream.due(&mesh), None);
    mesh.apply(vec![set(ADDRESS, "a", "a2")], true);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +a2");
}

#[test]
fn requests_beyond_all_bounds_are_refused() {
    let mut session = Session::default();
    session.request(ADDRESS, ask(&["*"], &["*"], &[])).unwrap();
    let long = "n".repeat(LONGEST_NAME + 1);
    assert_eq!(session.request(ADDRESS, ask(&[&long], &[], &[])), Err(SessionError::LongName(LONGEST_NAME + 1)));
    let many: Vec<String> = (0..=MOST_NAMES).map(|number| number.to_string()).collect();
    let request = Request { subscribe: many, ..Request::default() };
    assert_eq!(session.request(ADDRESS, request.clone()), Err(SessionError::TooManyNames));
    assert_eq!(Session::default().request(ADDRESS, request), Err(SessionError::TooManyNames));
}

#[test]
fn a_name_that_is_asked_for_many_times_counts_and_is_answered_once() {
    let mesh = catalogue(vec![set(ADDRESS, "a", "a1")]);
    let subscribe = ["a", "b"].iter().map(|name| (*name).to_owned()).cycle().take(2 * MOST_NAMES + 2).collect();
    let mut stream = Stream::new();
    stream.session.request(ADDRESS, Request { subscribe, ..Request::default() }).unwrap();
    assert_eq!(stream.session.wants(ADDRESS), Some(Wants::Names(2)));
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +a1 -b");
}

/// A node asks for single addresses. A service with a block around one of them concerns it also when the service comes later.
#[test]
fn a_service_whose_block_comes_around_an_address_that_was_asked_for_is_sent() {
    let service = |text: &str, block: &str| {
        let ranges = [("net".into(), block.parse().unwrap())].into();
        let resource = Resource { ranges, ..resource(text, &[], &[]) };
        vec![Change { kind: ADDRESS, name: "s".into(), resource: Some(resource) }]
    };
    let mut mesh = catalogue(vec![set(ADDRESS, "a", "a1")]);
    let names = ["net/10.96.0.1", "net/10.96.0.9", "other/10.97.0.1", "net/fd00::1", "no address"];
    let mut stream = Stream::of(&[(ADDRESS, ask(&names, &["net/10.96.0.9"], &[]))]);
    let removed = stream.due(&mesh).unwrap();
    assert_eq!(removed, "Address: -net/10.96.0.1 -net/10.96.0.9 -net/fd00::1 -no address -other/10.97.0.1");
    stream.ack(ADDRESS);
    stream.session.request(ADDRESS, ask(&[], &["net/10.96.0.9"], &[])).unwrap();
    for block in ["10.96.0.8/29", "10.97.0.0/16", "fd01::/16"] {
        mesh.apply(service(block, block), true);
        assert_eq!(stream.due(&mesh), None, "{block}");
    }
    mesh.apply(service("s4", "10.96.0.0/16"), true);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +s4");
}

#[test]
fn who_misses_removals_that_are_forgotten_is_told_to_begin_anew() {
    let mut mesh = catalogue(vec![set(ADDRESS, "a", "a1")]);
    let mut stream = Stream::of(&[(ADDRESS, ask(&[], &[], &[]))]);
    stream.due(&mesh).unwrap();
    stream.ack(ADDRESS);
    for number in 0..10_000 {
        let name = number.to_string();
        mesh.apply(vec![set(ADDRESS, &name, "x")], true);
        mesh.apply(vec![gone(ADDRESS, &name)], true);
    }
    assert_eq!(stream.session.next(&mesh, Instant::now()).unwrap_err(), SessionError::Behind(ADDRESS));
    // A stream that has answered everything goes on.
    let mut stream = Stream::of(&[(ADDRESS, ask(&[], &[], &[]))]);
    stream.due(&mesh).unwrap();
    stream.ack(ADDRESS);
    assert_eq!(stream.due(&mesh), None);
    let name: Arc<str> = "a".into();
    mesh.apply(vec![gone(ADDRESS, &name)], true);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: -a");
}
