//! `ztunnel analyze`: what is wrong, or likely not meant, in a folder of manifests.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use serde::Serialize;

use crate::analyze::{self, Finding, Severity};
use crate::config::args::{AnalyzeArgs, Output};
use crate::control::file::read_once;
use crate::model::cause::causes;

/// Prints the findings. 1: one is an error; 2: the folder can't be read.
#[must_use]
pub fn analyze(args: &AnalyzeArgs) -> ExitCode {
    let mut text = String::new();
    let code = answer(args, &mut text);
    // A reader that went away (`| head`) has seen what it wanted; the exit code still tells.
    let _reader_gone = io::stdout().lock().write_all(text.as_bytes());
    ExitCode::from(code)
}

fn answer(args: &AnalyzeArgs, text: &mut String) -> u8 {
    let (snapshot, local) = match read_once(&args.mesh, args.trust_domain.clone()) {
        Ok(read) => read,
        Err(error) => {
            let _reader_gone = writeln!(io::stderr(), "error: {}", printable(&causes(&error)));
            return 2;
        }
    };
    let result = Analysis::new(analyze::analyze(&snapshot, &local));
    match args.output {
        Output::Text => text.push_str(&result.to_text()),
        Output::Json => {
            text.push_str(&result.to_json());
        }
    }
    u8::from(result.errors > 0)
}

/// What is printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Analysis {
    findings: Vec<Finding>,
    errors: usize,
    warnings: usize,
    infos: usize,
}

impl Analysis {
    fn new(findings: Vec<Finding>) -> Self {
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        let (errors, warnings, infos) = (count(Severity::Error), count(Severity::Warning), count(Severity::Info));
        Self { findings, errors, warnings, infos }
    }

    fn to_json(&self) -> String {
        // What it holds are texts and numbers, which can't fail to be written.
        let json = serde_json::to_string_pretty(self).unwrap_or_default();
        let mut out = String::with_capacity(json.len() + 1);
        for letter in json.chars() {
            // JSON may hold those beyond ASCII as they are, and a terminal would obey them.
            if letter.is_control() && letter != '\n' {
                let _ = write!(out, "\\u{:04x}", u32::from(letter));
            } else {
                out.push(letter);
            }
        }
        out.push('\n');
        out
    }

    /// A line for each finding as compilers write them, and one for its remedy; then how many there are.
    fn to_text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            line(&mut text, &headline(finding));
            if let Some(remedy) = &finding.remedy {
                line(&mut text, &format!("  remedy: {}", printable(remedy)));
            }
        }
        if !self.findings.is_empty() {
            text.push('\n');
        }
        let counts = [(self.errors, "error"), (self.warnings, "warning"), (self.infos, "info")];
        let counts = counts.map(|(count, what)| format!("{count} {what}{}", if count == 1 { "" } else { "s" }));
        line(&mut text, &counts.join(", "));
        text
    }
}

fn headline(finding: &Finding) -> String {
    let mut text = String::new();
    let Finding { severity, code, object, origin, message, .. } = finding;
    if let Some(origin) = origin {
        text.push_str(&format!("{origin}: "));
    }
    text.push_str(&format!("{severity}[{code}]: "));
    if let Some(object) = object {
        text.push_str(&format!("{object}: "));
    }
    text.push_str(message);
    printable(&text)
}

/// A text of manifests as a terminal may show it.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        // Those that change the direction of writing can make one text look like another.
        let is_hidden =
            matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        if letter.is_control() || is_hidden {
            out.extend(letter.escape_default());
        } else {
            out.push(letter);
        }
    }
    out
}

fn line(text: &mut String, line: &str) {
    // Writing to a string can't fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests;
