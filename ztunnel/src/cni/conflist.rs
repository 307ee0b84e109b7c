//! A CNI configuration as text, and the plugin in it. Pure.
//!
//! The entry of the plugin is added behind the last entry and can be removed again. All other bytes of the file stay as they are.

use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;

use super::{NAME, plugin::VERSIONS};

/// Why the plugin cannot join a configuration.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ConflistError {
    /// It cannot be parsed.
    #[error("it is not a list of CNI plugins: {0}")]
    Invalid(String),
    /// It has no plugins.
    #[error(
        "its list of plugins is empty: {NAME} must be behind the plugin that creates the network of the \
         pod"
    )]
    Empty,
    /// A version that hands results on in another form, or that is not known.
    #[error("its cniVersion is {version:?}, and {NAME} supports {}", VERSIONS.join(", "))]
    Version {
        /// The version.
        version: String,
    },
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(rename = "cniVersion", default)]
    version: String,
    #[serde(borrow)]
    plugins: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type", default)]
    kind: String,
}

/// Where a piece stands in a text.
struct Span {
    start: usize,
    end: usize,
}

/// Whether a file is one of the container runtime's CNI configuration, by its name.
#[must_use]
pub fn is_config(name: &str) -> bool {
    [".conflist", ".conf", ".json"].iter().any(|end| name.ends_with(end))
}

/// The configuration with this entry of the plugin, behind all others. An entry that is there as it should be stays where it is.
///
/// # Errors
/// Nothing can be joined.
pub fn join(text: &str, entry: &str) -> Result<String, ConflistError> {
    let without = leave(text)?;
    let list = parse(&without)?;
    if !VERSIONS.contains(&&*list.version) {
        return Err(ConflistError::Version { version: list.version });
    }
    let last = list.plugins.last().ok_or(ConflistError::Empty)?;
    let end = span(&without, last).end;
    let (before, behind) = without.split_at_checked(end).ok_or(ConflistError::Empty)?;
    let joined = format!("{before}, {entry}{behind}");
    let own = parse(text)?.plugins.into_iter().filter(|found| is_own(found)).map(RawValue::get).collect::<Vec<_>>();
    let is_first = parse(text)?.plugins.first().is_some_and(|first| is_own(first));
    Ok(if own == [entry] && !is_first { text.to_owned() } else { joined })
}

/// The configuration without the plugin: byte for byte as before it was [joined](join), unless another program has rewritten it.
///
/// # Errors
/// It cannot be parsed.
pub fn leave(text: &str) -> Result<String, ConflistError> {
    let mut text = text.to_owned();
    loop {
        let list = parse(&text)?;
        let Some(own) = list.plugins.iter().position(|entry| is_own(entry)) else { return Ok(text) };
        let at = |index: usize| list.plugins.get(index).map(|entry| span(&text, entry));
        let Some(entry) = at(own) else { return Ok(text) };
        // The comma before it goes with it, or the one behind it.
        let (start, end) = match own.checked_sub(1).and_then(at) {
            Some(before) => (before.end, entry.end),
            None => (entry.start, at(own + 1).map_or(entry.end, |next| next.start)),
        };
        text = [text.get(..start), text.get(end..)].into_iter().flatten().collect();
    }
}

/// Whether the plugin is in the configuration.
#[must_use]
pub fn has(text: &str) -> bool {
    parse(text).is_ok_and(|list| list.plugins.iter().any(|entry| is_own(entry)))
}

fn parse(text: &str) -> Result<List<'_>, ConflistError> {
    serde_json::from_str(text).map_err(|error| ConflistError::Invalid(error.to_string()))
}

fn is_own(entry: &RawValue) -> bool {
    serde_json::from_str::<Entry>(entry.get()).is_ok_and(|entry| entry.kind == NAME)
}

fn span(text: &str, piece: &RawValue) -> Span {
    // The piece is borrowed from the text.
    let start = (piece.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    Span { start, end: start + piece.get().len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = r#"{"type":"ztunnel-cni","socket":"/s"}"#;
    const BRIDGE: &str = "{\n  \"cniVersion\": \"0.4.0\",\n\t\"name\": \"pods\", \"plugins\": [ {\"type\": \"bridge\", \"x\": [1, {\"plugins\": []}]} ,\n   {\"type\":\"portmap\"}\n ],\"z\":1.50}\n";

    #[test]
    fn what_has_joined_leaves_no_byte_behind() {
        let single = r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#;
        for text in [BRIDGE, single] {
            let joined = join(text, ENTRY).unwrap();
            let value: serde_json::Value = serde_json::from_str(&joined).unwrap();
            assert_eq!(value["plugins"].as_array().unwrap().last().unwrap()["type"], NAME);
            assert!(has(&joined) && !has(text));
            assert_eq!(join(&joined, ENTRY).unwrap(), joined, "it has joined");
            assert_eq!(leave(&joined).unwrap(), text);
            assert_eq!(leave(text).unwrap(), text);
        }
    }

    #[test]
    fn an_old_entry_is_replaced_and_one_before_all_others_is_moved() {
        let old = join(BRIDGE, r#"{"type":"ztunnel-cni","socket":"/old"}"#).unwrap();
        assert_eq!(join(&old, ENTRY).unwrap(), join(BRIDGE, ENTRY).unwrap());
        let first = r#"{"cniVersion":"1.0.0","plugins":[{"type":"ztunnel-cni"}, {"type":"a"}]}"#;
        let only_a = r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#;
        assert_eq!(leave(first).unwrap(), only_a);
        assert_eq!(join(first, ENTRY).unwrap(), join(only_a, ENTRY).unwrap());
        let followed = join(BRIDGE, ENTRY).unwrap().replace(ENTRY, &format!("{ENTRY}, {{\"type\":\"c\"}}"));
        assert_eq!(join(&followed, ENTRY).unwrap(), followed, "another plugin may stand behind it");
        let twice = followed.replace("{\"type\":\"c\"}", ENTRY);
        assert_eq!(join(&twice, ENTRY).unwrap().matches(NAME).count(), 1);
    }

    #[test]
    fn what_cannot_be_joined_is_told_with_the_reason() {
        let refused = |text: &str| join(text, ENTRY).unwrap_err().to_string();
        for text in ["", "{", "[]", r#"{"type":"bridge","cniVersion":"1.0.0"}"#, r#"{"plugins":{}}"#] {
            assert!(refused(text).contains("not a list of CNI plugins"), "{text}: {}", refused(text));
        }
        assert!(refused(r#"{"cniVersion":"0.4.0","plugins":[]}"#).contains("empty"));
        assert!(refused(r#"{"cniVersion":"0.4.0","plugins":[{"type":"ztunnel-cni"}]}"#).contains("empty"));
        assert!(refused(r#"{"cniVersion":"0.2.0","plugins":[{"type":"a"}]}"#).contains("\"0.2.0\""));
        assert!(refused(r#"{"plugins":[{"type":"a"}]}"#).contains("cniVersion"));
        assert_eq!(
            leave("{"),
            Err(ConflistError::Invalid("EOF while parsing an object at line 1 column 1".to_owned()))
        );
    }

    #[test]
    fn temporary_files_are_no_configuration() {
        let found = ["10-a.conflist", "10-a.conf", "a.json", ".10-a.conflist.next", "README", "a.conflist.bak"];
        assert_eq!(found.map(is_config), [true, true, true, false, false, false]);
    }
}
