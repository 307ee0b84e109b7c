//! Which policies a text may hold that makes no sense.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::document::{self, Content};
use crate::control::objects::{Kind, check_name};

/// Words without which a text holds no policy, nor anything that says whom policies protect.
const TRACES: [&str; 3] = ["AuthorizationPolicy", "PeerAuthentication", "rootNamespace"];
/// Escapes behind which such a word may stand in another spelling: of a character, or of a line's end.
const ESCAPES: [&str; 5] = ["\\x", "\\u", "\\U", "\\\n", "\\\r"];

/// Where the policies of a text may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoliciesIn {
    /// In any namespace, the root namespace among them.
    Anywhere,
    /// In these; there may be none.
    Namespaces(BTreeSet<Arc<str>>),
}

/// Where the policies of a text may be: told by the headers of its documents, or else, when one of them can't be read, by
/// single words.
#[must_use]
pub fn policies_in(text: &str) -> PoliciesIn {
    let traced = TRACES.iter().chain(&ESCAPES).any(|trace| text.contains(trace));
    let nowhere = PoliciesIn::Namespaces(BTreeSet::new());
    by_headers(text).unwrap_or(if traced { PoliciesIn::Anywhere } else { nowhere })
}

fn by_headers(text: &str) -> Option<PoliciesIn> {
    let mut namespaces = BTreeSet::new();
    for document in document::split(text) {
        for (content, namespace) in document.kinds()? {
            let namespace = namespace.filter(|namespace| !namespace.is_empty());
            let namespace = namespace.as_deref().unwrap_or("default");
            let Content::Object(kind) = content else { continue };
            match kind {
                // It tells which namespace is the root.
                Kind::Mesh if text.contains("rootNamespace") => return Some(PoliciesIn::Anywhere),
                Kind::Authorization | Kind::PeerAuthentication if check_name(namespace).is_err() => {
                    return Some(PoliciesIn::Anywhere);
                }
                Kind::Authorization | Kind::PeerAuthentication => drop(namespaces.insert(namespace.into())),
                _ => {}
            }
        }
    }
    Some(PoliciesIn::Namespaces(namespaces))
}
