use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use tonic::Status;

use super::{
    AFTER, AGAIN, LONGEST_PAUSE, Ledger, Line, MOST_PODS, OTHER_REASON, PAUSE, PodStanding, SendError, UNKNOWN_CALL,
};
use crate::model::workload::NamespacedName;

fn pod(name: &str, uid: &str, refusal: Option<&str>) -> PodStanding {
    PodStanding { name: NamespacedName::new("demo", name), uid: uid.into(), refusal: refusal.map(Arc::from) }
}

/// The reports of a node over simulated time.
struct Node {
    ledger: Ledger,
    begin: Instant,
}

impl Node {
    fn new() -> Self {
        Self { ledger: Ledger::default(), begin: Instant::now() }
    }

    /// The reports about these pods, `seconds` after the start: `name:reason`, or `name:` for a pod that is enrolled.
    fn reports(&mut self, seconds: u64, pods: &[PodStanding]) -> String {
        let now = self.begin + Duration::from_secs(seconds);
        self.ledger.see(pods.to_vec(), now);
        let due = self.ledger.due(now);
        self.ledger.told(&due, now);
        let texts = due.iter().map(|due| format!("{}:{}", due.name.name, due.refusal.as_deref().unwrap_or_default()));
        texts.collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn a_refusal_that_lasts_is_reported_again_now_and_then_and_its_end_once() {
    let (after, again) = (AFTER.as_secs(), AGAIN.as_secs());
    let mut node = Node::new();
    let refused = [pod("a", "1", Some("why")), pod("b", "2", None)];
    assert_eq!(node.reports(0, &refused), "");
    assert_eq!(node.reports(after - 1, &refused), "");
    assert_eq!(node.reports(after, &refused), "a:why");
    let reports = (after + 1..after + 3 * again + 1).filter(|at| !node.reports(*at, &refused).is_empty());
    assert_eq!(reports.collect::<Vec<_>>(), [1, 2, 3].map(|time| after + time * again));
    let (healed, at) = ([pod("a", "1", None), pod("b", "2", None)], after + 3 * again + 1);
    assert_eq!(node.reports(at, &healed), "");
    assert_eq!(node.reports(at + after, &healed), "a:");
    assert_eq!(node.reports(at + after * 100, &healed), "");
    assert!(node.ledger.0.is_empty(), "nothing is kept of pods that are enrolled");
}

#[test]
fn a_refusal_that_passes_soon_is_not_reported() {
    let mut node = Node::new();
    for seconds in 0..100 {
        let refusal = (seconds % 9 < 8).then_some("not yet");
        assert_eq!(node.reports(seconds, &[pod("a", "1", refusal)]), "");
    }
}

#[test]
fn a_reason_that_changes_each_second_is_reported_each_minute() {
    let mut node = Node::new();
    let count = (0..601).filter(|at| !node.reports(*at, &[pod("a", "1", Some(&format!("{at}")))]).is_empty()).count();
    assert_eq!(count as u64, (600 - AFTER.as_secs()) / OTHER_REASON.as_secs() + 1);
}

#[test]
fn a_successor_of_the_same_name_is_another_pod() {
    let after = AFTER.as_secs();
    let mut node = Node::new();
    node.reports(0, &[pod("a", "", Some("why"))]);
    // Its UID becomes known.
    assert_eq!(node.reports(after, &[pod("a", "1", Some("why"))]), "a:why");
    assert_eq!(node.reports(after + 1, &[pod("a", "2", None)]), "");
    assert_eq!(node.reports(after * 10, &[pod("a", "2", None)]), "", "it was never refused");
    assert_eq!(node.reports(after * 10 + 1, &[]), "");
    assert!(node.ledger.0.is_empty());
}

#[test]
fn a_control_plane_that_fails_is_asked_more_rarely_and_one_that_does_not_know_the_call_hardly() {
    let plane = crate::control::remote::tests::control_plane();
    let mut line = Line { not_before: Instant::now(), pause: PAUSE, told: None };
    let wait = |line: &Line| line.not_before - Instant::now();
    let mut whole = PAUSE;
    for _ in 0..20 {
        line.failed(&plane, &SendError::Refused(Status::unavailable("gone")));
        assert!(wait(&line) > whole.mul_f64(0.7) && wait(&line) < whole.mul_f64(1.3), "{:?}", wait(&line));
        whole = (whole * 2).min(LONGEST_PAUSE);
    }
    line.failed(&plane, &SendError::Refused(Status::unimplemented("no such call")));
    assert!(wait(&line) > UNKNOWN_CALL - PAUSE);
}

#[test]
fn more_pods_than_a_report_has_room_for_come_in_the_next() {
    let mut node = Node::new();
    let pods: Vec<_> = (0..300).map(|number| pod(&format!("p{number:03}"), "u", Some("why"))).collect();
    node.reports(0, &pods);
    let after = AFTER.as_secs();
    let counts = [0, 10, 20, 30].map(|at| node.reports(after + at, &pods).split_whitespace().count());
    assert_eq!(counts, [MOST_PODS, MOST_PODS, 300 - 2 * MOST_PODS, 0]);
}
