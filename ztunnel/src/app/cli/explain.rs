//! `ztunnel explain`: the destination of a connection and whether it is allowed, from manifests or from a running daemon.

use std::{io, process::ExitCode};

use anyhow::{Context as _, bail};

use super::{
    ask,
    output::{Colour, Style, json, print, print_error},
};
use crate::{
    app::admin::{EXPLAIN, explain::encode},
    config::commands::{ExplainArgs, Output},
    control::file::read_once,
    explain::{Explanation, Query, explain as explained, wrapped},
};

/// The exit code for a connection that is denied or fails.
const DENIED: u8 = 3;
/// The exit code for a question without an answer.
const UNKNOWN: u8 = 2;

/// Prints the explanation. 0: the connection is allowed; 3: it is denied, or fails; 2: the question has no answer.
#[must_use]
pub fn explain(args: &ExplainArgs) -> ExitCode {
    let (out, err) = (io::stdout(), io::stderr());
    ExitCode::from(answer(args, Style::of_stdout(), &mut out.lock(), &mut err.lock()))
}

fn answer(args: &ExplainArgs, style: Style, out: &mut impl io::Write, err: &mut impl io::Write) -> u8 {
    match look(args) {
        Ok(found) => {
            print(out, &shown(&found, args.output, style));
            if found.is_allowed() { 0 } else { DENIED }
        }
        Err(error) => {
            print_error(args.output, &format!("{error:#}"), out, err);
            UNKNOWN
        }
    }
}

fn look(args: &ExplainArgs) -> anyhow::Result<Explanation> {
    // The arguments are also checked before the daemon is asked: its error would name the query string instead of the flags.
    let query = Query::parse(&args.from, &args.to, &args.port).context("cannot explain that")?;
    match (&args.admin, &args.mesh) {
        (Some(admin), _) => ask::json(*admin, &format!("{EXPLAIN}?{}", encode(&args.from, &args.to, &args.port))),
        (None, Some(mesh)) => {
            let (snapshot, local) = read_once(mesh, args.trust_domain.clone())?;
            let folder = mesh.display();
            if let (0, Some(problem)) = (snapshot.version(), snapshot.problems().first()) {
                bail!("cannot read the mesh folder {folder}: {problem}");
            }
            explained(&snapshot, &local, &query)
                .with_context(|| format!("cannot explain that by the manifests in {folder}"))
        }
        (None, None) => bail!("give --mesh DIR for manifests, or --admin ADDR for a running daemon"),
    }
}

fn shown(explanation: &Explanation, output: Output, style: Style) -> String {
    let colour = if explanation.is_allowed() { Colour::Green } else { Colour::Red };
    match output {
        Output::Text => wrapped(explanation, style.width, |verdict| style.paint(colour, verdict)),
        Output::Json => json(explanation),
    }
}

#[cfg(test)]
mod tests;
