//! The status of a policy: one condition that says whether the policy is enforced as written.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::client::Cluster;
use super::failure::Failure;
use super::object::Object;
use super::resource::{AUTHORIZATION_POLICIES, ResourceType};
use super::secret::FIELD_MANAGER;
use super::verdict::verdict;
use crate::identity::certificate::rfc3339;
use crate::model::workload::NamespacedName;

/// The type of the condition. Istio's control plane uses it with the same meaning, and tools look for it.
const CONDITION: &str = "ZtunnelAccepted";
/// The number of conditions of other controllers that are kept. A policy with more of them gets no status.
const MOST_CONDITIONS: usize = 32;

/// A status to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusWrite {
    resource: ResourceType,
    name: NamespacedName,
    api_version: String,
    /// The version of the object for which the status was made. Another version may have another status.
    version: Box<str>,
    conditions: Vec<Value>,
}

impl StatusWrite {
    /// The status to be written for a policy. `None`: the policy already has this status.
    #[must_use]
    pub fn needed(resource: ResourceType, policy: &Object) -> Option<Self> {
        let verdict = verdict(resource, policy);
        let generation = policy.json(&["metadata", "generation"]).unwrap_or_else(|| json!(0));
        let conditions = match policy.json(&["status", "conditions"]) {
            Some(Value::Array(conditions)) => conditions,
            _ => Vec::new(),
        };
        let is_own = |condition: &Value| condition.get("type").is_some_and(|name| name == CONDITION);
        let status = if verdict.is_accepted { "True" } else { "False" };
        let own = conditions.iter().find(|condition| is_own(condition));
        let has = |key: &str, wanted: &Value| own.and_then(|own| own.get(key)) == Some(wanted);
        let wanted = [
            ("status", json!(status)),
            ("reason", json!(verdict.reason)),
            ("message", json!(verdict.message)),
            ("observedGeneration", generation),
        ];
        if wanted.iter().all(|(key, value)| has(key, value)) || conditions.len() > MOST_CONDITIONS {
            return None;
        }
        let since = own.filter(|_| has("status", &json!(status))).and_then(|own| own.get("lastTransitionTime"));
        let since = since.cloned().unwrap_or_else(|| json!(rfc3339(SystemTime::now())));
        let mut written = json!({"type": CONDITION, "lastTransitionTime": since});
        for (key, value) in wanted {
            if let Some(fields) = written.as_object_mut() {
                fields.insert(key.to_owned(), value);
            }
        }
        let mut conditions: Vec<Value> = conditions.into_iter().filter(|condition| !is_own(condition)).collect();
        conditions.push(written);
        let text = |value: Option<Value>| value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
        Some(Self {
            resource,
            name: policy.name.clone(),
            api_version: text(policy.json(&["apiVersion"])),
            version: policy.version.clone(),
            conditions,
        })
    }

    /// The title of the policy.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} {}", self.resource.kind, self.name)
    }
}

impl Cluster {
    /// Writes a status, unless the object has changed meanwhile.
    ///
    /// For the API server the list of conditions is one field. So the conditions of other controllers are written back
    /// unchanged; the version of the object ensures that they have not changed meanwhile.
    ///
    /// # Errors
    /// The API server refused the request, or the request failed.
    pub async fn write_status(&self, write: &StatusWrite) -> Result<(), Failure> {
        let StatusWrite { resource, name, api_version, version, conditions } = write;
        let served = api_version.rsplit('/').next().unwrap_or_default();
        let path = resource.path(served, Some(&name.namespace));
        let path = format!("{path}/{}/status?fieldManager={FIELD_MANAGER}&force=true", name.name);
        let body = json!({
            "apiVersion": api_version,
            "kind": resource.kind,
            "metadata": {"name": &*name.name, "namespace": &*name.namespace, "resourceVersion": version},
            "status": {"conditions": conditions},
        });
        let request = http::Request::patch(path);
        let status = ResourceType { plural: of_status(*resource), ..*resource };
        self.send::<Value>("patch", status, request, "application/apply-patch+yaml", &body).await.map(drop)
    }
}

/// The name of a type's status in RBAC rules.
fn of_status(resource: ResourceType) -> &'static str {
    if resource == AUTHORIZATION_POLICIES { "authorizationpolicies/status" } else { "peerauthentications/status" }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::object::Raw;
    use super::super::resource::PEER_AUTHENTICATIONS;
    use super::*;

    fn policy(spec: &Value, status: &Value) -> Object {
        let metadata = json!({"namespace": "demo", "name": "p", "generation": 3, "resourceVersion": "77"});
        let whole = json!({"metadata": metadata, "spec": spec, "status": status});
        let raw: Raw = serde_json::from_value(whole).unwrap();
        Object::of(raw, "security.istio.io/v1", "AuthorizationPolicy")
    }

    fn own(write: &StatusWrite) -> &Value {
        write.conditions.last().unwrap()
    }

    #[test]
    fn a_policy_is_accepted_or_its_author_reads_why_not() {
        let none = json!({});
        let verdict = |spec: Value| {
            let write = StatusWrite::needed(AUTHORIZATION_POLICIES, &policy(&spec, &none)).unwrap();
            let own = own(&write);
            assert_eq!((&own["type"], &own["observedGeneration"]), (&json!("ZtunnelAccepted"), &json!(3)));
            let text = |key: &str| own[key].as_str().unwrap().to_owned();
            (text("status"), text("reason"), text("message"))
        };
        let (status, reason, _) = verdict(json!({"rules": [{"to": [{"operation": {"ports": ["80"]}}]}]}));
        assert_eq!((status.as_str(), reason.as_str()), ("True", "Accepted"));
        let (status, reason, message) = verdict(json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]}));
        assert_eq!((status.as_str(), reason.as_str()), ("False", "UnsupportedValue"));
        assert!(
            message.contains("spec.rules[0].to[0].operation.methods") && message.contains("never matches"),
            "{message}"
        );
        let bad = json!({"rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/99"]}}]}]});
        let (status, reason, message) = verdict(bad);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "Invalid"));
        assert!(message.contains("ipBlocks") && message.contains("last valid version"), "{message}");
        let long: Vec<Value> =
            (0..200).map(|it| json!({"to": [{"operation": {"paths": [format!("/{it}")]}}]})).collect();
        assert!(verdict(json!({"rules": long})).2.len() <= LONGEST_MESSAGE);
        let strict = policy(&json!({"mtls": {"mode": "STRICT"}}), &none);
        assert_eq!(own(&StatusWrite::needed(PEER_AUTHENTICATIONS, &strict).unwrap())["status"], "True");
    }

    const LONGEST_MESSAGE: usize = 2048 + 3;

    #[test]
    fn what_is_there_is_not_written_again_and_what_others_wrote_stays() {
        let spec = json!({"rules": [{}]});
        let first = StatusWrite::needed(AUTHORIZATION_POLICIES, &policy(&spec, &json!({}))).unwrap();
        let theirs = json!({"type": "WaypointAccepted", "status": "True", "x": [1, "1", null]});
        let status = |own: &Value| json!({"conditions": [theirs, own]});
        // Another replica sees the status that the first one has written, and writes nothing.
        assert_eq!(StatusWrite::needed(AUTHORIZATION_POLICIES, &policy(&spec, &status(own(&first)))), None);
        for (key, other) in [("status", json!("False")), ("reason", json!("X")), ("observedGeneration", json!("3"))] {
            let mut changed = own(&first).clone();
            changed[key] = other;
            changed["lastTransitionTime"] = json!("2026-01-01T00:00:00Z");
            let write = StatusWrite::needed(AUTHORIZATION_POLICIES, &policy(&spec, &status(&changed))).unwrap();
            assert_eq!((&write.conditions[0], write.conditions.len()), (&theirs, 2));
            // The time is that of the last change of the status.
            let is_kept = own(&write)["lastTransitionTime"] == "2026-01-01T00:00:00Z";
            assert_eq!(is_kept, key != "status", "{key}");
        }
        let many: Vec<Value> = (0..40).map(|it| json!({"type": it.to_string()})).collect();
        let crowded = policy(&spec, &json!({"conditions": many}));
        assert_eq!(StatusWrite::needed(AUTHORIZATION_POLICIES, &crowded), None);
    }

    #[test]
    fn the_author_of_a_policy_that_cannot_be_parsed_reads_so_once() {
        let mut spec = json!({});
        for _ in 0..200 {
            spec = json!({"x": spec});
        }
        let parsed = |status: &Value| {
            let metadata = json!({"namespace": "demo", "name": "p", "generation": 3, "resourceVersion": "77"});
            let text = json!({"metadata": metadata, "spec": spec, "status": status}).to_string();
            Object::parse(&text, "security.istio.io/v1", "AuthorizationPolicy").unwrap()
        };
        let write = StatusWrite::needed(AUTHORIZATION_POLICIES, &parsed(&json!({}))).unwrap();
        assert_eq!(
            (own(&write)["reason"].clone(), own(&write)["observedGeneration"].clone()),
            (json!("Invalid"), json!(3))
        );
        let status = json!({"conditions": [own(&write)]});
        assert_eq!(StatusWrite::needed(AUTHORIZATION_POLICIES, &parsed(&status)), None);
    }
}
