//! The output of commands: JSON for programs, with a schema version, and text for people, in the width of the terminal.

use std::{
    fmt::Display,
    io::{self, IsTerminal as _, Write},
    process::ExitCode,
};

use serde::Serialize;

use crate::{
    config::{self, commands::Output},
    explain::{printable, printable_json},
};

/// The schema version of `-o json`. Within a version, fields are only added.
pub const SCHEMA_VERSION: u32 = 1;

/// A result with the version of its schema in front.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versioned<'a, T> {
    schema_version: u32,
    #[serde(flatten)]
    result: &'a T,
}

/// An error in place of a result.
#[derive(Serialize)]
struct Failure {
    error: String,
}

/// A result as JSON, without control sequences for terminals.
pub(super) fn json(result: &impl Serialize) -> String {
    let versioned = Versioned { schema_version: SCHEMA_VERSION, result };
    // Results contain texts, numbers and maps with texts as keys, so the conversion can't fail.
    let text = serde_json::to_string_pretty(&versioned).unwrap_or_default();
    printable_json(&text) + "\n"
}

/// An error as JSON.
fn failure(error: &impl Display) -> String {
    json(&Failure { error: error.to_string() })
}

/// Prints a result. A reader that has closed the pipe (`| head`) is no error; the exit code is not affected.
pub(super) fn print(out: &mut impl Write, text: &str) {
    let _reader_gone = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints an error: text to standard error, and JSON to standard output, where programs expect it.
pub(super) fn print_error(output: Output, error: &impl Display, out: &mut impl Write, err: &mut impl Write) {
    match output {
        Output::Text => print(err, &format!("ztunnel: {}\n", printable(&error.to_string()))),
        Output::Json => print(out, &failure(error)),
    }
}

/// Prints the result or the error of a command.
#[must_use]
pub fn finish(output: Output, done: anyhow::Result<String>) -> ExitCode {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    match done {
        Ok(text) => {
            print(&mut out, &text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_error(output, &format!("{error:#}"), &mut out, &mut err);
            ExitCode::FAILURE
        }
    }
}

/// Prints the error of invalid arguments: as JSON if the arguments ask for it.
#[must_use]
pub fn wrong_arguments(error: &clap::Error, arguments: &[String]) -> ExitCode {
    if error.use_stderr() && wants_json(arguments) {
        let text = error.render().to_string();
        print(&mut io::stdout().lock(), &failure(&text.trim().trim_start_matches("error: ")));
    } else {
        let _reader_gone = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn wants_json(arguments: &[String]) -> bool {
    let pairs = arguments.windows(2).any(|pair| matches!(pair, [flag, value] if is_output(flag) && value == "json"));
    pairs || arguments.iter().any(|word| matches!(word.as_str(), "-ojson" | "-o=json" | "--output=json"))
}

fn is_output(flag: &str) -> bool {
    matches!(flag, "-o" | "--output")
}

/// The layout of text.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Style {
    /// The number of columns. `None`: lines are not wrapped, because the output is no terminal.
    pub(super) width: Option<usize>,
    /// Whether words may be coloured.
    pub(super) colours: bool,
}

impl Style {
    /// The style of standard output.
    pub(super) fn of_stdout() -> Self {
        let out = io::stdout();
        let is_terminal = out.is_terminal();
        let width = terminal_size::terminal_size_of(&out).filter(|_| is_terminal);
        Self {
            width: width.map(|(columns, _)| usize::from(columns.0).max(NARROWEST)),
            colours: is_terminal && config::colours::are_wanted(),
        }
    }

    /// A word in a colour, if colours are allowed.
    pub(super) fn paint(self, colour: Colour, word: &str) -> String {
        let code = match colour {
            Colour::Red => "1;31",
            Colour::Yellow => "1;33",
            Colour::Green => "1;32",
            Colour::Blue => "1;34",
        };
        if self.colours { format!("\u{1b}[{code}m{word}\u{1b}[0m") } else { word.to_owned() }
    }
}

/// The smallest width in columns; a narrower terminal counts as this wide.
const NARROWEST: usize = 40;

/// Colours of words.
#[derive(Debug, Clone, Copy)]
pub(super) enum Colour {
    Red,
    Yellow,
    Green,
    Blue,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Colour, Style, failure, json as shown, wants_json};

    #[test]
    fn a_schema_version_stands_in_front() {
        let text = shown(&json!({"a": "b\u{1b}"}));
        assert!(text.starts_with("{\n  \"schemaVersion\": 1,\n") && text.ends_with("}\n"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!({"schemaVersion": 1, "a": "b\u{1b}"}));
        let error: Value = serde_json::from_str(&failure(&"it \u{9b} failed")).unwrap();
        assert_eq!(error, json!({"schemaVersion": 1, "error": "it \u{9b} failed"}));
    }

    #[test]
    fn json_is_asked_for_in_several_ways() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for yes in
            ["explain -o json", "analyze --output=json", "check -ojson", "ca show -o=json", "version --output json"]
        {
            assert!(wants_json(&words(yes)), "{yes}");
        }
        for no in ["explain -o text", "analyze json", "--output"] {
            assert!(!wants_json(&words(no)), "{no}");
        }
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        assert_eq!(Style::default().paint(Colour::Red, "error"), "error");
        let style = Style { colours: true, ..Style::default() };
        assert_eq!(style.paint(Colour::Red, "error"), "\u{1b}[1;31merror\u{1b}[0m");
    }
}
