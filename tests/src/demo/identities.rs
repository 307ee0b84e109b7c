//! The log lines of both daemons about one HBONE stream: the identities of the two sides.

use anyhow::{Context, Result, ensure};

use crate::daemon::Daemon;

const FIELDS: [&str; 7] =
    ["direction", "src.addr", "src.identity", "dst.addr", "dst.hbone_addr", "dst.identity", "duration"];

/// The first connection through HBONE of each daemon, one line each.
///
/// # Errors
/// When a daemon has logged none, or a line lacks one of the identities.
pub(super) fn told(daemons: &[Daemon]) -> Result<String> {
    let mut text = String::from("What the two daemons logged of the first request through the tunnel:");
    for daemon in daemons {
        let lines = daemon.access()?;
        let first = lines.iter().find(|line| line.is_tunnelled());
        let first = first.with_context(|| format!("{} logged no tunnel\n{}", daemon.node, daemon.tail()))?;
        for name in ["src.identity", "dst.identity"] {
            ensure!(first.field(name).starts_with("spiffe://"), "{} does not know {name}: {}", daemon.node, first.line);
        }
        let field = |name: &&str| Some(format!("{name}={}", first.line.get(*name)?).replace('"', ""));
        let fields: Vec<String> = FIELDS.iter().filter_map(field).collect();
        text.push_str(&format!("\n  {}: {}", daemon.node, fields.join(" ")));
    }
    Ok(text)
}
