//! Splits a text into its documents.

use serde_json::Value;

use crate::control::yaml;

/// A document of a text.
#[derive(Debug)]
pub(super) struct Document<'a> {
    /// The line of the text where its content begins, from 1.
    pub(super) line: u64,
    pub(super) text: &'a str,
}

/// Splits a text at the document markers.
pub(super) fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut position, mut line_of_content) = (0, 0, None);
    let mut finish = |from: usize, to: usize, line: Option<u64>| {
        if let (Some(line), Some(text)) = (line, text.get(from..to)) {
            documents.push(Document { line, text });
        }
    };
    for (line, whole) in (1u64..).zip(text.split_inclusive('\n')) {
        let rest =
            whole.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if rest.is_some() {
            finish(start, position, line_of_content.take());
            start = position;
        }
        let content = rest.unwrap_or(whole).trim().trim_start_matches('\u{feff}');
        let is_empty = content.is_empty() || content.starts_with(['#', '%']) || content == "...";
        if !is_empty && line_of_content.is_none() {
            line_of_content = Some(line);
        }
        position += whole.len();
    }
    finish(start, text.len(), line_of_content);
    documents
}

impl Document<'_> {
    /// The values of the document: one value, or several JSON objects in a row. Empty when it can't be read.
    pub(super) fn values(&self) -> Vec<Value> {
        let text =
            self.text.strip_prefix("---").unwrap_or(self.text).trim_start_matches(['\u{feff}', ' ', '\n', '\r', '\t']);
        if text.starts_with(['{', '[']) {
            let values: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(text).into_iter().collect();
            if let Ok(values) = values {
                return values;
            }
        }
        yaml::read_lenient::<Option<Value>>(self.text).ok().flatten().into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::documents;

    #[test]
    fn documents_begin_where_their_content_does() {
        let table: [(&str, &[(u64, usize)]); 7] = [
            ("", &[]),
            ("# nothing\n---\n---\n", &[]),
            ("a: 1\n", &[(1, 1)]),
            ("# c\n---\n# d\n\na: 1\n---\nb: 2\n...\n", &[(5, 1), (7, 1)]),
            ("--- {a: 1}\n--- # Source: x\nb: 2", &[(1, 1), (3, 1)]),
            ("{\"a\": 1}{\"a\": 2}\n{\"a\": 3}\n", &[(1, 3)]),
            ("a: [\n---\nb: 1\n", &[(1, 0), (3, 1)]),
        ];
        for (text, expected) in table {
            let found: Vec<_> =
                documents(text).iter().map(|document| (document.line, document.values().len())).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }
}
