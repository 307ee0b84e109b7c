//! What documents have that programs read: blocks of code.

use anyhow::Result;
use serde_json::Value;

/// A block of code between two fences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The line of its first fence, from 1.
    pub line: usize,
    /// What the fence names, for example `yaml`; empty if it names nothing.
    pub language: String,
    /// The text, without the indentation of the fence.
    pub text: String,
}

/// The blocks of code of a Markdown text.
#[must_use]
pub fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, Block)> = None;
    for (number, line) in (1..).zip(markdown.lines()) {
        let indentation = line.len() - line.trim_start().len();
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                let block = Block { line: number, language: language.trim().to_owned(), text: String::new() };
                open = Some((indentation, block));
            }
            (Some(_), Some(_)) => blocks.extend(open.take().map(|(_, block)| block)),
            (None, Some((outer, block))) => {
                let outer = indentation.min(*outer);
                block.text.push_str(line.get(outer..).unwrap_or_default());
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

/// The documents of a YAML text.
///
/// # Errors
/// When it can't be parsed.
pub fn yaml(text: &str) -> Result<Vec<Value>> {
    Ok(serde_saphyr::from_multiple(text)?)
}

#[cfg(test)]
mod tests {
    use super::{Block, blocks, yaml};

    #[test]
    fn a_block_has_its_line_its_language_and_its_text() {
        let text = "a\n```yaml\nb:\n  c: 1\n```\n- d\n  ```\n  e\n    f\n\n  ```\n`g`\n```h\nnot closed\n";
        let block = |line, language: &str, text: &str| Block { line, language: language.into(), text: text.into() };
        assert_eq!(blocks(text), [block(2, "yaml", "b:\n  c: 1\n"), block(7, "", "e\n  f\n\n")]);
    }

    #[test]
    fn yaml_that_cannot_be_parsed_is_an_error() {
        assert_eq!(yaml("a: {b: 1}\n---\n[c]\n").unwrap().len(), 2);
        assert!(yaml("a: {b: 1\nc: 2\n").is_err());
    }
}
