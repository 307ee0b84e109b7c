//! Events on pods (`events.k8s.io/v1`).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::Cluster;
use super::failure::{Failure, Reason};
use super::resource::EVENTS;
use super::secret::FIELD_MANAGER;
use crate::identity::certificate::rfc3339;
use crate::model::workload::NamespacedName;

/// The reporting controller, as `kubectl describe` shows it.
const CONTROLLER: &str = "ambient.mesh/ztunnel";
/// The action that failed or succeeded.
const ACTION: &str = "Enrol";
/// The API server accepts a note of fewer bytes than this.
const NOTE_BYTES: usize = 1024;
/// Bytes of the pod's name in the name of an Event, which may have 253 in all.
const NAME_BYTES: usize = 200;
/// An Event that was written within this time is not written again, whichever replica wrote it.
const RECENT: Duration = Duration::from_secs(240);

/// An Event on a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEvent {
    /// The pod.
    pub pod: NamespacedName,
    /// Its `metadata.uid`.
    pub uid: String,
    /// The node that has reported it.
    pub node: Arc<str>,
    /// The type of the Event: `Warning`, otherwise `Normal`.
    pub is_warning: bool,
    /// The reason, one word for programs.
    pub reason: &'static str,
    /// The text, for people.
    pub note: String,
}

/// The result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventWritten {
    /// The Event is new.
    Created,
    /// The Event existed, and its count has grown by one.
    Counted,
    /// The Event existed and was written a short time ago, or just now by another replica: nothing was written.
    Recent,
    /// The namespace is being deleted, or does not exist any more: nothing was written.
    NoNamespace,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireMetadata {
    resource_version: String,
}

/// An existing Event.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireEvent {
    metadata: WireMetadata,
    event_time: Option<String>,
    series: Option<WireSeries>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireSeries {
    count: u64,
    last_observed_time: String,
}

impl PodEvent {
    /// The name of the Event. It is the same for the same statement about the same pod, so replicas agree on it, also after a restart.
    fn name(&self) -> String {
        let Self { pod, uid, node, is_warning, reason, note } = self;
        let statement = format!("{uid}\n{node}\n{is_warning}\n{reason}\n{note}");
        let sum = digest(&SHA256, statement.as_bytes());
        let sum: String = sum.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let start: String = pod.name.chars().take(NAME_BYTES).collect();
        format!("{}.{sum}", start.trim_end_matches(['-', '.']))
    }

    fn body(&self, now: SystemTime) -> Value {
        let Self { pod, uid, node, is_warning, reason, note } = self;
        json!({
            "apiVersion": EVENTS.api_version("v1"),
            "kind": EVENTS.kind,
            "metadata": {"namespace": &*pod.namespace, "name": self.name()},
            "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": &*pod.namespace, "name": &*pod.name, "uid": uid},
            "type": if *is_warning { "Warning" } else { "Normal" },
            "reason": reason,
            "action": ACTION,
            "note": note,
            "eventTime": micro_time(now),
            "reportingController": CONTROLLER,
            "reportingInstance": node.chars().take(128).collect::<String>(),
        })
    }
}

/// Cuts a text to the length that the API server accepts, and replaces control characters, which must not reach a terminal.
#[must_use]
pub fn event_note(text: &str) -> String {
    let mut note = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if note.len() + c.len_utf8() >= NOTE_BYTES {
            break;
        }
        note.push(c);
    }
    note
}

/// A time in the format of Events: UTC with microseconds. Such texts sort by time.
fn micro_time(time: SystemTime) -> String {
    let micros = time.duration_since(UNIX_EPOCH).unwrap_or_default().subsec_micros();
    format!("{}.{micros:06}Z", rfc3339(time).trim_end_matches('Z'))
}

impl Cluster {
    /// Creates an Event, or increments the count of the existing Event with the same statement.
    ///
    /// # Errors
    /// The API server refuses the Event, or does not answer.
    pub async fn write_event(&self, event: &PodEvent) -> Result<EventWritten, Failure> {
        let now = SystemTime::now();
        let path = EVENTS.path("v1", Some(&event.pod.namespace));
        let request = http::Request::post(format!("{path}?fieldManager={FIELD_MANAGER}"));
        match self.send::<Value>("create", EVENTS, request, "application/json", &event.body(now)).await {
            Ok(_) => return Ok(EventWritten::Created),
            // The Event exists.
            Err(Failure { reason: Reason::Conflict(_), .. }) => {}
            Err(Failure { reason: Reason::NotFound(_), .. }) => return Ok(EventWritten::NoNamespace),
            Err(Failure { reason: Reason::Forbidden(text), .. }) if text.contains("being terminated") => {
                return Ok(EventWritten::NoNamespace);
            }
            Err(failure) => return Err(failure),
        }
        let name = NamespacedName::new(Arc::clone(&event.pod.namespace), event.name());
        // The Event may have expired meanwhile. The next report creates it again.
        let Some(there) = self.object::<WireEvent>(EVENTS, &name).await? else { return Ok(EventWritten::Recent) };
        let last = there.series.as_ref().map(|series| series.last_observed_time.clone()).or(there.event_time);
        if last.is_some_and(|last| last > micro_time(now.checked_sub(RECENT).unwrap_or(UNIX_EPOCH))) {
            return Ok(EventWritten::Recent);
        }
        let count = there.series.map_or(1, |series| series.count).saturating_add(1);
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        let body = json!({
            "metadata": {"resourceVersion": there.metadata.resource_version},
            "series": {"count": count, "lastObservedTime": micro_time(now)},
        });
        let request = http::Request::patch(format!("{path}/{}?fieldManager={FIELD_MANAGER}", name.name));
        match self.send::<Value>("patch", EVENTS, request, "application/merge-patch+json", &body).await {
            Ok(_) => Ok(EventWritten::Counted),
            Err(Failure { reason: Reason::Conflict(_) | Reason::NotFound(_), .. }) => Ok(EventWritten::Recent),
            Err(failure) => Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::{Value, json};

    use super::super::script::{Answer, Script, status};
    use super::*;

    fn event(note: &str) -> PodEvent {
        PodEvent {
            pod: NamespacedName::new("demo", "web-1"),
            uid: "u-1".to_owned(),
            node: "node-1".into(),
            is_warning: true,
            reason: "MeshRefused",
            note: note.to_owned(),
        }
    }

    #[test]
    fn an_event_has_the_same_name_for_the_same_statement_only() {
        let name = event("a").name();
        assert_eq!(name, event("a").name());
        let others = [
            event("b"),
            PodEvent { uid: "u-2".to_owned(), ..event("a") },
            PodEvent { node: "node-2".into(), ..event("a") },
            PodEvent { is_warning: false, ..event("a") },
        ];
        for other in others {
            assert_ne!(other.name(), name, "{other:?}");
        }
        assert!(name.starts_with("web-1.") && name.len() == "web-1.".len() + 16, "{name}");
        let long = PodEvent { pod: NamespacedName::new("demo", format!("{}-b", "a.".repeat(120))), ..event("a") };
        assert!(crate::model::name::check_name(&long.name()).is_ok(), "{}", long.name());
    }

    #[test]
    fn notes_are_short_and_have_no_control_characters() {
        assert_eq!(event_note("a\u{1b}[31m\nb"), "a [31m b");
        let note = event_note(&"é".repeat(5000));
        assert!(note.len() < 1024 && note.len() > 1020, "{}", note.len());
    }

    #[test]
    fn times_sort_as_texts() {
        let at = |micros: u64| micro_time(UNIX_EPOCH + Duration::from_micros(micros));
        assert_eq!(at(1_000_000), "1970-01-01T00:00:01.000000Z");
        assert!(at(1_000_000) < at(1_000_001) && at(1_999_999) < at(2_000_000));
    }

    #[tokio::test]
    async fn an_event_that_is_there_counts_unless_it_was_written_a_short_time_ago() {
        let old = "2020-01-01T00:00:00.000000Z";
        let new = "2999-01-01T00:00:00.000000Z";
        let table = [
            (json!({"eventTime": old}), EventWritten::Counted, Some(2)),
            (
                json!({"eventTime": old, "series": {"count": 7, "lastObservedTime": old}}),
                EventWritten::Counted,
                Some(8),
            ),
            (json!({"eventTime": old, "series": {"count": 7, "lastObservedTime": new}}), EventWritten::Recent, None),
            (json!({"eventTime": new}), EventWritten::Recent, None),
        ];
        for (mut there, expected, count) in table {
            there["metadata"] = json!({"resourceVersion": "9"});
            let script = Script::start(move |asked| match asked.line.split_once(' ').unwrap().0 {
                "POST" => Answer::Whole(409, status(409, "AlreadyExists", "there is one")),
                "GET" => Answer::Whole(200, there.clone()),
                "PATCH" => Answer::Whole(200, json!({})),
                other => panic!("{other}"),
            })
            .await;
            assert_eq!(script.cluster.write_event(&event("a")).await, Ok(expected));
            let patch = script.asked().into_iter().find(|asked| asked.line.starts_with("PATCH"));
            let body = patch.map(|patch| serde_json::from_str::<Value>(&patch.body).unwrap());
            assert_eq!(body.as_ref().and_then(|body| body["series"]["count"].as_u64()), count);
            assert!(body.is_none_or(|body| body["metadata"]["resourceVersion"] == "9"));
        }
    }

    #[tokio::test]
    async fn a_namespace_that_ends_is_not_a_missing_right() {
        for (code, reason, text, is_gone) in [
            (403, "Forbidden", "unable to create new content in namespace demo because it is being terminated", true),
            (404, "NotFound", "namespaces \"demo\" not found", true),
            (403, "Forbidden", "events.events.k8s.io is forbidden", false),
        ] {
            let script = Script::start(move |_| Answer::Whole(code, status(code, reason, text))).await;
            let written = script.cluster.write_event(&event("a")).await;
            assert_eq!(written == Ok(EventWritten::NoNamespace), is_gone, "{written:?}");
            if let Err(failure) = written {
                let text = failure.to_string();
                assert!(
                    text.contains(r#"apiGroups: ["events.k8s.io"], resources: ["events"], verbs: ["create"]"#),
                    "{text}"
                );
            }
        }
    }
}
