//! Fields of an object that has no type of its own here. A field of another kind than expected counts as absent.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::control::objects::check_name;
use crate::model::labels::Labels;
use crate::model::workload::NamespacedName;

/// The text at a JSON pointer.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

/// The entries of a list.
pub(super) fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The texts of a list.
pub(super) fn texts(value: Option<&Value>) -> Vec<Arc<str>> {
    list(value).iter().filter_map(Value::as_str).map(Arc::from).collect()
}

/// The texts of a map. Booleans and numbers count as texts.
pub(super) fn strings(value: Option<&Value>) -> BTreeMap<String, String> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    let entries = value.and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.clone(), scalar(value)?))).collect()
}

pub(super) fn labels(value: Option<&Value>) -> Labels {
    strings(value).into_iter().collect()
}

/// Namespace and name, if the object has a name.
pub(super) fn name_of(value: &Value, namespace: &Arc<str>) -> Option<NamespacedName> {
    // An object with `generateName` has no name of its own.
    let name = text(value, "/metadata/name").or_else(|| text(value, "/metadata/generateName"))?.trim_end_matches('-');
    let own = text(value, "/metadata/namespace").filter(|own| !own.is_empty());
    let namespace = own.map_or_else(|| Arc::clone(namespace), Arc::from);
    (check_name(name).is_ok() && check_name(&namespace).is_ok()).then(|| NamespacedName::new(namespace, name))
}
