//! The origin of an object of the mesh, from any source.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::workload::NamespacedName;

/// The place of an object in its source, for messages.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A manifest.
    File {
        /// The file's name relative to the mesh folder, or the folder's path when the folder itself is meant.
        file: Arc<str>,
        /// Line in that file, counted from 1.
        line: Option<u64>,
    },
    /// An object of a Kubernetes API server.
    Object {
        /// Its kind.
        kind: &'static str,
        /// Namespace and name; the namespace is empty for an object without one.
        name: NamespacedName,
    },
    /// A resource of an xDS server.
    Resource {
        /// Its name.
        name: Arc<str>,
    },
}

impl Origin {
    /// A line of a file.
    pub fn line_of(file: impl Into<Arc<str>>, line: u64) -> Self {
        Self::File { file: file.into(), line: Some(line) }
    }

    /// A file as a whole.
    pub fn file(file: impl Into<Arc<str>>) -> Self {
        Self::File { file: file.into(), line: None }
    }

    /// The line in its file, counted from 1.
    #[must_use]
    pub const fn line(&self) -> Option<u64> {
        match self {
            Self::File { line, .. } => *line,
            Self::Object { .. } | Self::Resource { .. } => None,
        }
    }

    /// The keys for JSON.
    pub fn keys(origin: Option<&Self>) -> OriginKeys<'_> {
        match origin {
            Some(Self::File { file, line }) => OriginKeys { file: Some(file), line: *line, origin: None },
            Some(other) => OriginKeys { file: None, line: None, origin: Some(other.to_string()) },
            None => OriginKeys { file: None, line: None, origin: None },
        }
    }
}

/// The text for people: `file:line`, `Kind namespace/name`, or the name of the resource.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line: None } => f.write_str(file),
            Self::File { file, line: Some(line) } => write!(f, "{file}:{line}"),
            Self::Object { kind, name } if name.namespace.is_empty() => write!(f, "{kind} {}", name.name),
            Self::Object { kind, name } => write!(f, "{kind} {name}"),
            Self::Resource { name } => f.write_str(name),
        }
    }
}

/// The keys of an [`Origin`] in a JSON object: `file` and `line`. They are null if the origin is not a file; then `origin` has
/// its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OriginKeys<'a> {
    file: Option<&'a str>,
    line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{NamespacedName, Origin};

    #[test]
    fn every_origin_has_a_text_and_keys() {
        let object =
            |namespace: &str, name: &str| Origin::Object { kind: "Node", name: NamespacedName::new(namespace, name) };
        let cases = [
            (Origin::line_of("a.yaml", 3), "a.yaml:3", json!({"file": "a.yaml", "line": 3})),
            (Origin::file("/mesh"), "/mesh", json!({"file": "/mesh", "line": null})),
            (object("", "n"), "Node n", json!({"file": null, "line": null, "origin": "Node n"})),
            (object("demo", "n"), "Node demo/n", json!({"file": null, "line": null, "origin": "Node demo/n"})),
            (
                Origin::Resource { name: "c//Pod/demo/p".into() },
                "c//Pod/demo/p",
                json!({"file": null, "line": null, "origin": "c//Pod/demo/p"}),
            ),
        ];
        for (origin, text, keys) in cases {
            assert_eq!(
                (origin.to_string().as_str(), serde_json::to_value(Origin::keys(Some(&origin))).unwrap()),
                (text, keys)
            );
        }
        assert_eq!(serde_json::to_value(Origin::keys(None)).unwrap(), json!({"file": null, "line": null}));
        assert_eq!((Origin::line_of("f", 1).line(), object("a", "b").line()), (Some(1), None));
    }

    #[test]
    fn files_come_in_the_order_of_their_names_and_lines() {
        let ordered = [Origin::file("a"), Origin::line_of("a", 2), Origin::line_of("a", 10), Origin::file("b")];
        assert!(ordered.is_sorted());
    }
}
