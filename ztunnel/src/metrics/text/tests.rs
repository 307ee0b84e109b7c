//! Counters keep their type and help in the older format.

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::prometheus;

#[test]
fn a_counter_has_its_type_and_help_under_the_name_of_its_samples() {
    let mut registry = Registry::default();
    registry.register("ztunnel_events", "Events", Counter::<u64>::default());
    registry.register("ztunnel_events_open", "Open events", Gauge::<i64>::default());
    registry.register_with_unit("ztunnel_wait", "Waiting", Unit::Seconds, Gauge::<i64>::default());
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    assert_eq!(
        prometheus(&text),
        "# HELP ztunnel_events_total Events.\n# TYPE ztunnel_events_total counter\nztunnel_events_total 0\n\
         # HELP ztunnel_events_open Open events.\n# TYPE ztunnel_events_open gauge\nztunnel_events_open 0\n\
         # HELP ztunnel_wait_seconds Waiting.\n# TYPE ztunnel_wait_seconds gauge\nztunnel_wait_seconds 0\n# EOF\n"
    );
}

#[test]
fn samples_are_left_as_they_are_whatever_their_labels_hold() {
    let line = "ztunnel_events_total{policy=\"# TYPE ztunnel_events counter\"} 1\n";
    let text = format!("# TYPE ztunnel_events counter\n{line}# EOF\n");
    assert!(prometheus(&text).ends_with(&format!("counter\n{line}# EOF\n")), "{}", prometheus(&text));
    assert_eq!(prometheus(""), "");
}
