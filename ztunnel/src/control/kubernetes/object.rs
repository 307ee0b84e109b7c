//! An object from the API server: a tree of its fields. A caller reads the fields that it needs.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::control::yaml::{MappingEntry, Node, NodeDeserializer, Value};
use crate::model::workload::NamespacedName;

/// An object of an API server.
#[derive(Debug, Clone)]
pub struct Object {
    /// Namespace and name. The namespace is empty for an object without one.
    pub name: NamespacedName,
    /// The UID, which differs from the UID of another object with the same name.
    pub uid: Arc<str>,
    pub(super) version: Box<str>,
    tree: Node<'static>,
    /// Why the object can't be parsed. Then the tree has the name only.
    fault: Option<Unreadable>,
}

/// Why an object can't be read as a type.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}{message}", field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default())]
pub struct Unreadable {
    /// The field, such as `spec.rules[0].from`.
    pub field: Option<String>,
    /// The fault of the field.
    pub message: String,
}

impl Object {
    /// Reads the fields of the type `T`. The messages of errors are this program's own, with the path of the field.
    ///
    /// # Errors
    /// A field is missing or has another type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Unreadable> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        T::deserialize(NodeDeserializer::new(&self.tree)).map_err(|fault| {
            let error = fault.into_error(&self.tree);
            Unreadable { field: error.field.map(|field| field.to_string()), message: error.message }
        })
    }

    /// The fault of an object that can't be parsed.
    pub(super) fn fault(&self) -> Option<&Unreadable> {
        self.fault.as_ref()
    }

    /// All fields.
    pub(super) fn tree_mut(&mut self) -> &mut Node<'static> {
        &mut self.tree
    }

    /// The field with this path, as JSON. `None`: it is missing or null.
    #[must_use]
    pub fn json(&self, path: &[&str]) -> Option<serde_json::Value> {
        let found = path.iter().try_fold(&self.tree, |node, key| node.get(key))?;
        Some(json(found)).filter(|value| !value.is_null())
    }

    /// Parses an object. If it can't be parsed, for example because it is nested too deeply, it has the name, the UID, the version and
    /// the status of the object, and can't be read as any type.
    ///
    /// # Errors
    /// The text is not an object with a name.
    pub(super) fn parse(text: &str, api_version: &str, kind: &str) -> Result<Self, serde_json::Error> {
        let fault = match serde_json::from_str::<Raw>(text) {
            Ok(raw) => {
                let object = Self::of(raw, api_version, kind);
                return match object.name.name.is_empty() {
                    true => Err(serde::de::Error::custom("an object has no name")),
                    false => Ok(object),
                };
            }
            Err(error) => error,
        };
        // The other fields are skipped without recursion, at any depth.
        let head: Head<'_> = serde_json::from_str(text)?;
        let status = head.status.and_then(|status| serde_json::from_str::<Raw>(status.get()).ok());
        let mut metadata = Vec::new();
        let HeadMetadata { namespace, name, uid, resource_version, generation } = head.metadata;
        for (key, value) in [("namespace", namespace), ("uid", uid), ("resourceVersion", resource_version)] {
            metadata.extend(value.map(|value| entry(key.to_owned(), Value::Text(Cow::Owned(value)))));
        }
        metadata.push(entry("name".to_owned(), Value::Text(Cow::Owned(name))));
        metadata.extend(generation.map(|generation| entry("generation".to_owned(), plain(generation.to_string()))));
        let mut fields = vec![entry("metadata".to_owned(), Value::Map(metadata))];
        fields.extend(status.map(|status| entry("status".to_owned(), status.0.value)));
        let mut object = Self::of(Raw(node(Value::Map(fields))), api_version, kind);
        object.fault = Some(Unreadable {
            field: None,
            message: format!(
                "the object cannot be parsed: {fault}; correct the field there, or write fewer levels of nested fields"
            ),
        });
        Ok(object)
    }

    /// An object from a tree. Adds `apiVersion` and `kind` if they are missing, as in the items of a list.
    pub(super) fn of(tree: Raw, api_version: &str, kind: &str) -> Self {
        let mut tree = tree.0;
        let text = |key: &str| {
            tree.get("metadata").and_then(|metadata| metadata.get(key)).and_then(Node::text).unwrap_or_default()
        };
        let name = NamespacedName::new(text("namespace"), text("name"));
        let (uid, version) = (text("uid").into(), text("resourceVersion").into());
        if let Value::Map(entries) = &mut tree.value {
            for (key, value) in [("apiVersion", api_version), ("kind", kind)] {
                if !entries.iter().any(|entry| entry.key == key) {
                    entries.push(entry(key.to_owned(), Value::Text(Cow::Owned(value.to_owned()))));
                }
            }
        }
        Self { name, uid, version, tree, fault: None }
    }
}

/// Converts a tree of values back to JSON.
fn json(node: &Node<'_>) -> serde_json::Value {
    match &node.value {
        _ if node.is_null() => serde_json::Value::Null,
        Value::Text(text) => text.as_ref().into(),
        Value::Plain(text) => serde_json::from_str(text).unwrap_or_else(|_| text.as_ref().into()),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => {
            let fields = entries.iter().map(|entry| (entry.key.clone().into_owned(), json(&entry.value)));
            serde_json::Value::Object(fields.collect())
        }
    }
}

/// JSON as a tree of values. `managedFields`, often half of an object, are left out.
#[derive(Debug, Clone)]
pub(super) struct Raw(Node<'static>);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ObjectPart::Object.deserialize(deserializer).map(Self)
    }
}

/// The fields that are read of an object that can't be parsed.
#[derive(Deserialize)]
struct Head<'a> {
    metadata: HeadMetadata,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMetadata {
    namespace: Option<String>,
    name: String,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
}

/// The position of a value in an object.
#[derive(Clone, Copy)]
enum ObjectPart {
    /// The value is the object.
    Object,
    /// The value is the object's `metadata`.
    Metadata,
    /// The value is another field.
    Elsewhere,
}

impl<'de> DeserializeSeed<'de> for ObjectPart {
    type Value = Node<'static>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self).map(node)
    }
}

fn node(value: Value<'static>) -> Node<'static> {
    Node { place: (1, 1), value }
}

fn entry(key: String, value: Value<'static>) -> MappingEntry<'static> {
    MappingEntry { key: Cow::Owned(key), place: (1, 1), value: node(value) }
}

fn plain(text: impl Into<String>) -> Value<'static> {
    Value::Plain(Cow::Owned(text.into()))
}

impl<'de> Visitor<'de> for ObjectPart {
    type Value = Value<'static>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(plain(if value { "true" } else { "false" }))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(plain(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(plain(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(plain(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Value::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Self::Value, E> {
        Ok(Value::Text(Cow::Owned(value)))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(plain(""))
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(plain(""))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(Self::Elsewhere)? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let place = match (self, key.as_str()) {
                (Self::Metadata, "managedFields") => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                (Self::Object, "metadata") => Self::Metadata,
                _ => Self::Elsewhere,
            };
            let value = map.next_value_seed(place)?;
            entries.push(MappingEntry { key: Cow::Owned(key), place: (1, 1), value });
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde::Deserialize;
    use serde_json::json;

    use super::{Object, Raw};

    fn object(value: &serde_json::Value) -> Object {
        Object::of(serde_json::from_str::<Raw>(&value.to_string()).unwrap(), "v1", "Pod")
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase")]
    struct Slim {
        kind: String,
        spec: SlimSpec,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase")]
    struct SlimSpec {
        node_name: String,
        priority: i64,
        host_network: Option<bool>,
        gone: Option<String>,
    }

    #[test]
    fn an_object_is_read_as_a_slim_type_and_as_a_whole_one() {
        let object = object(&json!({
            "metadata": {
                "name": "p", "namespace": "demo", "uid": "u", "resourceVersion": "7",
                "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:metadata": {}}}],
                "labels": {"managedFields": "a label", "metadata": "another"}
            },
            "spec": {"nodeName": "true", "priority": -3, "hostNetwork": true, "gone": null, "containers": []}
        }));
        assert_eq!((object.name.to_string().as_str(), &*object.uid, &*object.version), ("demo/p", "u", "7"));
        let spec = SlimSpec { node_name: "true".into(), priority: -3, host_network: Some(true), gone: None };
        assert_eq!(object.read(), Ok(Slim { kind: "Pod".into(), spec }));
        let whole: Pod = object.read().unwrap();
        assert_eq!(whole.spec.unwrap().node_name.as_deref(), Some("true"));
        assert_eq!(whole.metadata.managed_fields, None);
        assert_eq!(whole.metadata.labels.unwrap().get("managedFields").unwrap(), "a label");
    }

    #[test]
    fn an_object_that_is_nested_too_deeply_has_a_name_and_a_status_and_can_not_be_read() {
        let mut spec = json!({});
        for _ in 0..200 {
            spec = json!({"x": [spec]});
        }
        let metadata = json!({"name": "p", "namespace": "demo", "uid": "u", "resourceVersion": "7", "generation": 3});
        let whole = json!({"metadata": metadata, "spec": spec, "status": {"conditions": [1]}});
        let object = Object::parse(&whole.to_string(), "v1", "Pod").unwrap();
        assert_eq!((object.name.to_string().as_str(), &*object.uid, &*object.version), ("demo/p", "u", "7"));
        assert_eq!(object.json(&["metadata", "generation"]), Some(json!(3)));
        assert_eq!(object.json(&["status", "conditions"]), Some(json!([1])));
        assert!(object.read::<Slim>().unwrap_err().message.starts_with("the object cannot be parsed: recursion limit"));
        // A status of the same depth is left out.
        let whole = json!({"metadata": metadata, "status": spec});
        assert_eq!(Object::parse(&whole.to_string(), "v1", "Pod").unwrap().json(&["status"]), None);
        for unnamed in ["[1]", "{}", "{\"metadata\": {}}", "null"] {
            assert!(Object::parse(unnamed, "v1", "Pod").is_err(), "{unnamed}");
        }
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_field() {
        let wrong = object(&json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "priority": "high"}}));
        let error = wrong.read::<Slim>().unwrap_err();
        assert_eq!(error.field.as_deref(), Some("spec.priority"), "{error}");
        assert!(error.to_string().starts_with("spec.priority: "), "{error}");
        // An API server never sends this value.
        assert_eq!(object(&json!([1])).name.to_string(), "/");
    }
}
