//! The owner of a token, by TokenReview.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::client::Cluster;
use super::failure::{Failure, Reason};
use super::resource::ResourceType;
use crate::model::name::check_name;
use crate::model::workload::NamespacedName;

/// Reviews of tokens.
pub const TOKEN_REVIEWS: ResourceType =
    ResourceType { group: "authentication.k8s.io", versions: &["v1"], kind: "TokenReview", plural: "tokenreviews" };

/// How long the answer of the API server may take.
const WITHIN: Duration = Duration::from_secs(10);

/// The keys of `user.extra` for the token of a pod.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// A service account, authenticated by a token that is bound to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodToken {
    /// The service account.
    pub account: NamespacedName,
    /// The pod, in the namespace of the service account.
    pub pod: NamespacedName,
    /// The UID of the pod.
    pub uid: Arc<str>,
    /// The node of the pod.
    pub node: Arc<str>,
}

/// The result of a review.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Review {
    /// The token belongs to a pod.
    Pod(PodToken),
    /// The token is not accepted, for this reason.
    Refused(String),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    api_version: &'static str,
    kind: &'static str,
    spec: Spec<'a>,
}

#[derive(Serialize)]
struct Spec<'a> {
    token: &'a str,
    audiences: &'a [String],
}

#[derive(Deserialize, Default)]
struct Answer {
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize, Default)]
struct Status {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    user: User,
    #[serde(default)]
    audiences: Vec<String>,
    #[serde(default)]
    error: String,
}

#[derive(Deserialize, Default)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
}

impl Cluster {
    /// Reviews a token, which must be for one of the audiences.
    ///
    /// # Errors
    /// The request failed.
    pub async fn review(&self, token: &str, audiences: &[String]) -> Result<Review, Failure> {
        let failed =
            |reason| Failure { verb: "create", resource: TOKEN_REVIEWS, server: Arc::clone(&self.server), reason };
        let question = Question {
            api_version: "authentication.k8s.io/v1",
            kind: TOKEN_REVIEWS.kind,
            spec: Spec { token, audiences },
        };
        let body = serde_json::to_vec(&question).map_err(|error| failed(Reason::Answer(error.to_string())))?;
        let request = http::Request::post(TOKEN_REVIEWS.path("v1", None))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| failed(Reason::Refused(error.to_string())))?;
        let answer = timeout(WITHIN, self.client.request::<Answer>(request)).await;
        let answer = answer.map_err(|_| failed(Reason::Silent))?.map_err(|error| failed(Reason::of(&error)))?;
        Ok(said(&answer.status, audiences))
    }
}

fn said(status: &Status, audiences: &[String]) -> Review {
    let refused = |why: &str| Review::Refused(why.to_owned());
    if !status.authenticated {
        return match status.error.as_str() {
            "" => refused("the Kubernetes API does not know the token"),
            why => Review::Refused(why.chars().take(256).map(|c| if c.is_control() { ' ' } else { c }).collect()),
        };
    }
    // An API server that does not check audiences names none.
    if !status.audiences.iter().any(|audience| audiences.contains(audience)) {
        return refused("the token is for another audience");
    }
    let account = status.user.username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account else {
        return refused(
            "the token does not belong to a service \
         account",
        );
    };
    let extra = |key: &str| match status.user.extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.as_str()),
        _ => None,
    };
    let (Some(pod), Some(uid)) = (extra(POD_NAME), extra(POD_UID)) else {
        return refused("the token is not bound to a pod: use a projected serviceAccountToken volume");
    };
    let Some(node) = extra(NODE_NAME) else {
        return refused("the token does not say on which node its pod runs: Kubernetes 1.30 or newer is needed");
    };
    if [namespace, account, pod, node].into_iter().any(|name| check_name(name).is_err()) {
        return refused("the token has an invalid name of a node, pod or service account");
    }
    Review::Pod(PodToken {
        account: NamespacedName::new(namespace, account),
        pod: NamespacedName::new(namespace, pod),
        uid: uid.into(),
        node: node.into(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::script::{Answer, Script, status};
    use super::{NamespacedName, PodToken, Review};

    async fn reviewed(code: u16, body: Value) -> Result<Review, String> {
        let script = Script::start(move |asked| {
            assert_eq!(asked.line, "POST /apis/authentication.k8s.io/v1/tokenreviews");
            Answer::Whole(code, body.clone())
        })
        .await;
        let audiences = ["istio-ca".to_owned(), "ztunnel".to_owned()];
        script.cluster.review("token", &audiences).await.map_err(|failure| failure.to_string())
    }

    fn answer(audience: &str, username: &str, extra: &Value) -> Value {
        let user = json!({"username": username, "extra": extra});
        json!({"status": {"authenticated": true, "audiences": [audience], "user": user}})
    }

    #[tokio::test]
    async fn a_token_counts_only_for_its_audience_and_with_its_pod_and_node() {
        let extra = |drop: &str| {
            let mut extra = json!({
                "authentication.kubernetes.io/pod-name": ["zt-1"],
                "authentication.kubernetes.io/pod-uid": ["u"],
                "authentication.kubernetes.io/node-name": ["n1"],
            });
            extra.as_object_mut().unwrap().remove(&format!("authentication.kubernetes.io/{drop}"));
            extra
        };
        let account = "system:serviceaccount:istio-system:ztunnel";
        let good = PodToken {
            account: NamespacedName::new("istio-system", "ztunnel"),
            pod: NamespacedName::new("istio-system", "zt-1"),
            uid: "u".into(),
            node: "n1".into(),
        };
        assert_eq!(reviewed(201, answer("ztunnel", account, &extra(""))).await, Ok(Review::Pod(good)));
        let table = [
            (answer("api", account, &extra("")), "another audience"),
            (answer("ztunnel", "admin", &extra("")), "not belong to a service account"),
            (answer("ztunnel", "system:serviceaccount:a/b:c", &extra("")), "invalid name"),
            (answer("ztunnel", account, &extra("pod-name")), "not bound to a pod"),
            (answer("ztunnel", account, &extra("pod-uid")), "not bound to a pod"),
            (answer("ztunnel", account, &extra("node-name")), "on which node"),
            (json!({"status": {"authenticated": false, "error": "invalid bearer token"}}), "invalid bearer token"),
            (json!({"status": {}}), "does not know the token"),
            (json!({}), "does not know the token"),
        ];
        for (body, expected) in table {
            let Ok(Review::Refused(why)) = reviewed(201, body.clone()).await else { panic!("{body}") };
            assert!(why.contains(expected), "{why}");
        }
    }

    #[tokio::test]
    async fn a_missing_right_is_named() {
        let error = reviewed(403, status(403, "Forbidden", "tokenreviews is forbidden")).await.unwrap_err();
        assert!(
            error
                .contains("apiGroups: [\"authentication.k8s.io\"], resources: [\"tokenreviews\"], verbs: [\"create\"]"),
            "{error}"
        );
    }
}
