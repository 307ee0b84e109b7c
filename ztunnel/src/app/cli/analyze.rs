//! `ztunnel analyze`: finds faults and probable mistakes in manifests.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use serde::Serialize;

use super::output::{Colour, Style, json, print, print_error};
use crate::analyze::{self, Code, Finding, Severity};
use crate::config::commands::{AnalyzeArgs, Output};
use crate::config::defaults;
use crate::control::declared::Collector;
use crate::control::file::{Manifests, Source, read_once, read_sources};
use crate::explain::Page;

/// The exit code if there are no manifests, or they can't be read.
const UNKNOWN: u8 = 2;
/// The name of standard input in messages.
const STDIN: &str = "(standard input)";
/// The largest accepted input, in bytes.
const LARGEST_INPUT: u64 = 256 << 20;

/// Prints the findings. 0: none is as severe as `--fail-on`; 1: at least one is; 2: there are no manifests, or they can't be
/// read.
#[must_use]
pub fn analyze(args: &AnalyzeArgs) -> ExitCode {
    let mut input = Vec::new();
    if args.paths.iter().any(|path| is_stdin(path)) && !args.list_codes {
        let read = io::stdin().lock().take(LARGEST_INPUT + 1).read_to_end(&mut input);
        let fits = read.as_ref().is_ok_and(|count| u64::try_from(*count).is_ok_and(|count| count <= LARGEST_INPUT));
        if !fits {
            let why = read
                .err()
                .map_or_else(|| format!("it is larger than {} MiB", LARGEST_INPUT >> 20), |error| error.to_string());
            let error = format!("cannot read manifests from standard input: {why}");
            print_error(args.output, &error, &mut io::stdout(), &mut io::stderr());
            return ExitCode::from(UNKNOWN);
        }
    }
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    ExitCode::from(answer(args, &input, Style::of_stdout(), &mut out, &mut err))
}

fn answer(args: &AnalyzeArgs, input: &[u8], style: Style, out: &mut impl io::Write, err: &mut impl io::Write) -> u8 {
    if args.list_codes {
        print(out, &codes(args.output, style));
        return 0;
    }
    let analysis = match look(args, input) {
        Ok(analysis) => analysis,
        Err(error) => {
            print_error(args.output, &format!("{error:#}"), out, err);
            return UNKNOWN;
        }
    };
    let text = match args.output {
        Output::Text => analysis.to_text(style),
        Output::Json => json(&analysis),
    };
    print(out, &text);
    u8::from(analysis.findings.iter().any(|finding| args.fail_on.includes(finding.severity)))
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn look(args: &AnalyzeArgs, input: &[u8]) -> anyhow::Result<Analysis> {
    let (snapshot, local, collector) = match (&args.mesh, args.paths.is_empty()) {
        (Some(mesh), true) => {
            let (snapshot, local) = read_once(mesh, args.trust_domain.clone())?;
            let mut collector = Collector::new(defaults::NAMESPACE);
            let files = read_sources(&[Source::Path(mesh.clone())], args.trust_domain.clone(), None)?.files;
            // The daemon reads only the files of the folder itself, not those of subfolders.
            for path in files.iter().map(|file| PathBuf::from(&**file)).filter(|path| path.parent() == Some(mesh)) {
                let name = path.file_name().map(|name| Arc::from(name.to_string_lossy())).unwrap_or_default();
                take(&mut collector, &name, &path);
            }
            (snapshot, local, collector)
        }
        _ => {
            let source = |path: &PathBuf| match is_stdin(path) {
                true => Source::Text { name: STDIN.into(), bytes: input.to_vec() },
                false => Source::Path(path.clone()),
            };
            let sources: Vec<Source> = args.paths.iter().map(source).collect();
            let Manifests { snapshot, local, files } =
                read_sources(&sources, args.trust_domain.clone(), Some(&args.namespace))?;
            let mut collector = Collector::new(args.namespace.as_str());
            for file in &files {
                match &**file {
                    STDIN => collector.take(file, &String::from_utf8_lossy(input)),
                    path => take(&mut collector, file, Path::new(path)),
                }
            }
            (snapshot, local, collector)
        }
    };
    let declared = collector.finish(&args.trust_domain);
    if declared.objects == 0 && !snapshot.is_partial() {
        nothing(args)?;
    }
    let mut findings = analyze::analyze(&snapshot, &local, &declared);
    let is_of_daemon = args.mesh.is_some() && args.paths.is_empty();
    if !is_of_daemon && !local.iter().any(|(_, pod)| pod.netns.is_some()) {
        // On Kubernetes the node finds the network namespaces of its pods.
        findings.retain(|finding| finding.code != Code::PodRefused);
    }
    let suppressed = analyze::suppress(&mut findings, &args.ignore, &declared.ignored);
    Ok(Analysis::new(findings, suppressed, declared.objects))
}

/// Collects the objects of a file. An unreadable file is reported by the reader of the mesh.
fn take(collector: &mut Collector, name: &Arc<str>, path: &Path) {
    if let Ok(bytes) = std::fs::read(path) {
        collector.take(name, &String::from_utf8_lossy(&bytes));
    }
}

/// The error for an input without objects.
fn nothing(args: &AnalyzeArgs) -> anyhow::Result<()> {
    let places: Vec<String> = match (&args.mesh, args.paths.is_empty()) {
        (Some(mesh), true) => vec![mesh.display().to_string()],
        _ => args.paths.iter().map(|path| path.display().to_string()).collect(),
    };
    let places = places.join(", ");
    bail!(
        "cannot analyze {places}: there is no Kubernetes object in it; name files (*.yaml, *.yml, *.json) with apiVersion and kind, \
         or folders that hold some"
    )
}

/// The printed result.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Analysis {
    findings: Vec<Finding>,
    errors: usize,
    warnings: usize,
    infos: usize,
    suppressed: usize,
    objects: usize,
}

impl Analysis {
    fn new(findings: Vec<Finding>, suppressed: usize, objects: usize) -> Self {
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        let (errors, warnings, infos) = (count(Severity::Error), count(Severity::Warning), count(Severity::Info));
        Self { findings, errors, warnings, infos, suppressed, objects }
    }

    /// For each finding a line in the format of compilers and a line with its remedy, and at the end the numbers of findings.
    fn to_text(&self, style: Style) -> String {
        let mut page = Page::new(style.width);
        for finding in &self.findings {
            let (place, rest) = headline(finding);
            let severity = finding.severity.to_string();
            let colour = colour(finding.severity);
            page.painted(0, 4, &format!("{place}{severity}{rest}"), &severity, |word| style.paint(colour, word));
            if let Some(remedy) = &finding.remedy {
                page.line(2, 2, &format!("remedy: {remedy}"));
            }
        }
        if !self.findings.is_empty() {
            page.gap();
        }
        let counts = [(self.errors, "error"), (self.warnings, "warning"), (self.infos, "info")];
        let counts = counts.map(|(count, what)| format!("{count} {what}{}", if count == 1 { "" } else { "s" }));
        let suppressed = match self.suppressed {
            0 => String::new(),
            count => format!(" ({count} suppressed)"),
        };
        page.line(0, 0, &format!("{}{suppressed}", counts.join(", ")));
        page.finish()
    }
}

fn colour(severity: Severity) -> Colour {
    match severity {
        Severity::Error => Colour::Red,
        Severity::Warning => Colour::Yellow,
        Severity::Info => Colour::Blue,
    }
}

/// The text before and after the severity.
fn headline(finding: &Finding) -> (String, String) {
    let Finding { code, object, origin, message, .. } = finding;
    let place = origin.as_ref().map(|origin| format!("{origin}: ")).unwrap_or_default();
    let object = object.as_ref().map(|object| format!("{object}: ")).unwrap_or_default();
    (place, format!("[{code}]: {object}{message}"))
}

/// A code, for JSON output.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CodeInfo {
    code: &'static str,
    severity: Severity,
    meaning: &'static str,
    remedy: &'static str,
}

#[derive(Serialize)]
struct Codes {
    codes: Vec<CodeInfo>,
}

/// All codes.
fn codes(output: Output, style: Style) -> String {
    if output == Output::Json {
        let info = |code: &Code| CodeInfo {
            code: code.code(),
            severity: code.severity(),
            meaning: code.meaning(),
            remedy: code.remedy(),
        };
        return json(&Codes { codes: Code::ALL.iter().map(info).collect() });
    }
    let mut page = Page::new(style.width);
    for code in Code::ALL {
        let severity = code.severity();
        page.line(0, 4, &format!("{code} ({severity}): {}", code.meaning()));
        page.line(2, 2, &format!("remedy: {}", code.remedy()));
    }
    page.finish()
}

#[cfg(test)]
mod tests;
