//! `ztunnel explain`: where a connection would go and whether it may, from manifests or from a running daemon.

mod ask;

use std::{io, process::ExitCode};

use anyhow::{Context as _, bail};

use crate::{
    config::args::{ExplainArgs, Output},
    control::file::read_once,
    explain::{Explanation, Query, explain as explained, printable, printable_json, text},
};

/// It may not.
const DENIED: u8 = 3;
/// That can't be told.
const UNKNOWN: u8 = 2;

/// Prints the explanation. 0: it may; 3: it may not; 2: that can't be told.
#[must_use]
pub fn explain(args: &ExplainArgs) -> ExitCode {
    let (out, err) = (io::stdout(), io::stderr());
    ExitCode::from(answer(args, &mut out.lock(), &mut err.lock()))
}

fn answer(args: &ExplainArgs, out: &mut impl io::Write, err: &mut impl io::Write) -> u8 {
    match look(args).and_then(|found| Ok((shown(&found, args.output)?, found))) {
        Ok((shown, found)) => {
            // A reader that went away (`| head`) has seen what it wanted; the exit code still tells.
            let _reader_gone = out.write_all(shown.as_bytes()).and_then(|()| out.flush());
            if found.is_allowed() { 0 } else { DENIED }
        }
        Err(error) => {
            let _reader_gone = writeln!(err, "ztunnel: {}", printable(&format!("{error:#}")));
            UNKNOWN
        }
    }
}

fn look(args: &ExplainArgs) -> anyhow::Result<Explanation> {
    // Also before the daemon is asked: it would refuse the same, in the words of its query string.
    let query = Query::parse(&args.from, &args.to, args.port).context("cannot explain that")?;
    match (&args.admin, &args.mesh) {
        (Some(admin), _) => ask::daemon(*admin, &args.from, &args.to, args.port),
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

fn shown(explanation: &Explanation, output: Output) -> anyhow::Result<String> {
    match output {
        Output::Text => Ok(text(explanation)),
        Output::Json => {
            let json = serde_json::to_string_pretty(explanation).context("cannot write it as JSON")?;
            Ok(printable_json(&json) + "\n")
        }
    }
}

#[cfg(test)]
mod tests;
