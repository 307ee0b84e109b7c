//! Reads, creates and applies single Secrets and ConfigMaps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::client::Cluster;
use super::failure::{Failure, Reason};
use super::object::Object;
use super::resource::{CONFIG_MAPS, ResourceType, SECRETS};
use crate::model::workload::NamespacedName;

/// How long the answer of the API server may take.
const WITHIN: Duration = Duration::from_secs(10);
/// The field manager of applied objects.
pub(super) const FIELD_MANAGER: &str = "ztunnel-control-plane";
/// The label of objects that this program has created.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "ztunnel");

/// The data of a Secret, by key.
pub type SecretData = BTreeMap<String, Vec<u8>>;

/// The parts of a ConfigMap that are read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigMapState {
    /// The data, by key.
    pub data: BTreeMap<String, String>,
    /// This program has created the ConfigMap, and may replace its data.
    pub is_ours: bool,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: WireMetadata,
    #[serde(rename = "type", default, skip_serializing_if = "String::is_empty")]
    secret_type: String,
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
}

#[derive(Serialize, Deserialize, Default)]
struct WireMetadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

impl Wire {
    fn new(resource: ResourceType, name: &NamespacedName, data: BTreeMap<String, String>) -> Self {
        let (key, value) = MANAGED_BY;
        let metadata = WireMetadata {
            name: name.name.to_string(),
            namespace: name.namespace.to_string(),
            labels: Some([(key.to_owned(), value.to_owned())].into()),
        };
        let (api_version, kind) = ("v1".to_owned(), resource.kind.to_owned());
        Self { api_version, kind, metadata, secret_type: String::new(), data: Some(data) }
    }

    fn secret(self) -> Result<SecretData, Reason> {
        let decode = |(key, text): (String, String)| match STANDARD.decode(text.trim()) {
            Ok(bytes) => Ok((key, bytes)),
            Err(error) => Err(Reason::Answer(format!("data.{key}: {error}"))),
        };
        self.data.unwrap_or_default().into_iter().map(decode).collect()
    }

    fn config_map(self) -> ConfigMapState {
        let (key, value) = MANAGED_BY;
        let labels = self.metadata.labels.unwrap_or_default();
        ConfigMapState {
            data: self.data.unwrap_or_default(),
            is_ours: labels.get(key).is_some_and(|text| text == value),
        }
    }
}

impl Cluster {
    /// Reads a Secret. `None`: it does not exist.
    ///
    /// # Errors
    /// The request failed.
    pub async fn secret(&self, name: &NamespacedName) -> Result<Option<SecretData>, Failure> {
        let Some(wire) = self.object::<Wire>(SECRETS, name).await? else { return Ok(None) };
        wire.secret().map(Some).map_err(|reason| self.failure("get", SECRETS, reason))
    }

    /// Creates a Secret. `false`: a Secret of this name exists already.
    ///
    /// # Errors
    /// The API server refused the request, or the request failed.
    pub async fn create_secret(&self, name: &NamespacedName, data: &SecretData) -> Result<bool, Failure> {
        let data = data.iter().map(|(key, bytes)| (key.clone(), STANDARD.encode(bytes))).collect();
        let wire = Wire { secret_type: "Opaque".to_owned(), ..Wire::new(SECRETS, name, data) };
        let request = http::Request::post(SECRETS.path("v1", Some(&name.namespace)));
        match self.send::<Wire>("create", SECRETS, request, "application/json", &wire).await {
            Ok(_) => Ok(true),
            Err(Failure { reason: Reason::Conflict(_), .. }) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Reads a ConfigMap. `None`: it does not exist.
    ///
    /// # Errors
    /// The request failed.
    pub async fn config_map(&self, name: &NamespacedName) -> Result<Option<ConfigMapState>, Failure> {
        Ok(self.object::<Wire>(CONFIG_MAPS, name).await?.map(Wire::config_map))
    }

    /// Creates a ConfigMap with this data, or replaces its data.
    ///
    /// # Errors
    /// The API server refused the request, or the request failed.
    pub async fn apply_config_map(&self, name: &NamespacedName, data: BTreeMap<String, String>) -> Result<(), Failure> {
        let path = CONFIG_MAPS.path("v1", Some(&name.namespace));
        let request = http::Request::patch(format!("{path}/{}?fieldManager={FIELD_MANAGER}&force=true", name.name));
        let wire = Wire::new(CONFIG_MAPS, name, data);
        self.send::<Wire>("patch", CONFIG_MAPS, request, "application/apply-patch+yaml", &wire).await.map(drop)
    }

    fn failure(&self, verb: &'static str, resource: ResourceType, reason: Reason) -> Failure {
        Failure { verb, resource, server: Arc::clone(&self.server), reason }
    }

    pub(super) async fn object<T: DeserializeOwned>(
        &self,
        resource: ResourceType,
        name: &NamespacedName,
    ) -> Result<Option<T>, Failure> {
        let path = resource.path("v1", Some(&name.namespace));
        let request = http::Request::get(format!("{path}/{}", name.name));
        match self.send::<T>("get", resource, request, "application/json", &()).await {
            Ok(object) => Ok(Some(object)),
            Err(Failure { reason: Reason::NotFound(_), .. }) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Sends a request. There is no body if it is `()`.
    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        verb: &'static str,
        resource: ResourceType,
        request: http::request::Builder,
        content_type: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Failure> {
        let failed = |reason| self.failure(verb, resource, reason);
        let body = serde_json::to_vec(body).map_err(|error| failed(Reason::Answer(error.to_string())))?;
        let request = request
            .header(http::header::CONTENT_TYPE, content_type)
            .body(if body == b"null" { Vec::new() } else { body })
            .map_err(|error| failed(Reason::Refused(error.to_string())))?;
        let answer = timeout(WITHIN, self.client.request::<T>(request)).await;
        answer.map_err(|_| failed(Reason::Silent))?.map_err(|error| failed(Reason::of(&error)))
    }
}

impl Object {
    /// The data of a Secret; `None`: it can't be read.
    #[must_use]
    pub fn as_secret(&self) -> Option<SecretData> {
        self.read::<Wire>().ok()?.secret().ok()
    }

    /// The state of a ConfigMap; `None`: it can't be read.
    #[must_use]
    pub fn as_config_map(&self) -> Option<ConfigMapState> {
        self.read::<Wire>().ok().map(Wire::config_map)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::script::{Answer, Script, status};
    use super::{ConfigMapState, NamespacedName, SecretData};

    #[tokio::test]
    async fn a_secret_is_made_once_and_read_by_the_others() {
        let script = Script::start(|asked| match asked.line.as_str() {
            "GET /api/v1/namespaces/ns/secrets/none" => Answer::Whole(404, status(404, "NotFound", "no")),
            "GET /api/v1/namespaces/ns/secrets/one" => Answer::Whole(200, json!({"data": {"key": "AQI="}})),
            "GET /api/v1/namespaces/ns/secrets/odd" => Answer::Whole(200, json!({"data": {"key": "?"}})),
            "POST /api/v1/namespaces/ns/secrets" => Answer::Whole(409, status(409, "AlreadyExists", "there is one")),
            other => panic!("{other}"),
        })
        .await;
        let name = |name: &str| NamespacedName::new("ns", name);
        let data = SecretData::from([("key".to_owned(), vec![1, 2])]);
        assert_eq!(script.cluster.secret(&name("none")).await, Ok(None));
        assert_eq!(script.cluster.secret(&name("one")).await, Ok(Some(data.clone())));
        assert!(script.cluster.secret(&name("odd")).await.unwrap_err().to_string().contains("data.key"));
        assert_eq!(script.cluster.create_secret(&name("one"), &data).await, Ok(false));
    }

    #[tokio::test]
    async fn a_config_map_of_others_is_known_as_theirs() {
        let script = Script::start(|asked| match asked.line.as_str() {
            "GET /api/v1/namespaces/ns/configmaps/theirs" => Answer::Whole(200, json!({"metadata": {"labels": null}})),
            "GET /api/v1/namespaces/ns/configmaps/ours" => Answer::Whole(
                200,
                json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "ztunnel"}}, "data": {"a": "b"}}),
            ),
            "PATCH /api/v1/namespaces/ns/configmaps/ours?fieldManager=ztunnel-control-plane&force=true" => {
                Answer::Whole(403, status(403, "Forbidden", "no"))
            }
            other => panic!("{other}"),
        })
        .await;
        let name = |name: &str| NamespacedName::new("ns", name);
        let data = [("a".to_owned(), "b".to_owned())];
        assert_eq!(script.cluster.config_map(&name("theirs")).await, Ok(Some(ConfigMapState::default())));
        let ours = ConfigMapState { data: data.clone().into(), is_ours: true };
        assert_eq!(script.cluster.config_map(&name("ours")).await, Ok(Some(ours)));
        let error = script.cluster.apply_config_map(&name("ours"), data.into()).await.unwrap_err().to_string();
        assert!(error.contains("resources: [\"configmaps\"], verbs: [\"patch\"]"), "{error}");
    }
}
