//! Settings in the environment; they are read only here in this crate.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// The daemon under test, from `ZTUNNEL_BIN`.
///
/// # Errors
/// When the variable is unset or names no file: a privileged test that does not run must not pass.
pub fn daemon_binary() -> Result<PathBuf> {
    let path = variable("ZTUNNEL_BIN").context(
        "ZTUNNEL_BIN is not set: run `cargo xtask test privileged`, or set it to the path of a built ztunnel",
    )?;
    let path = PathBuf::from(path);
    ensure!(
        path.is_file(),
        "ZTUNNEL_BIN names {}, which is not a file: build it with `cargo xtask build`",
        path.display()
    );
    Ok(path)
}

/// The image of the daemon under test, from `ZTUNNEL_IMAGE`.
///
/// # Errors
/// When the variable is unset or names no file.
pub fn daemon_image() -> Result<PathBuf> {
    let path = variable("ZTUNNEL_IMAGE").context(
        "ZTUNNEL_IMAGE is not set: run `cargo xtask test cluster`, or set it to the path of an image that `cargo xtask image` made",
    )?;
    let path = PathBuf::from(path);
    ensure!(
        path.is_file(),
        "ZTUNNEL_IMAGE names {}, which is not a file: make it with `cargo xtask image`",
        path.display()
    );
    Ok(path)
}

/// The folder for the programs of the cluster tests: `ztunnel-cluster` in `XDG_CACHE_HOME`, else in `~/.cache`.
///
/// # Errors
/// When the user has neither a cache folder nor a home.
pub fn cluster_cache() -> Result<PathBuf> {
    let cache = variable("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")));
    Ok(cache
        .context("no XDG_CACHE_HOME and no home: set one, so that there is a cache folder")?
        .join("ztunnel-cluster"))
}

/// How long the soak tests run: `ZT_SOAK_SECS`, else 30 s.
#[must_use]
pub fn soak() -> Duration {
    Duration::from_secs(number("ZT_SOAK_SECS", 30))
}

/// How often the enrolment test enrols and releases: `ZT_ENROL_ROUNDS`, else 100.
#[must_use]
pub fn enrol_rounds() -> u64 {
    number("ZT_ENROL_ROUNDS", 100)
}

/// How many connections the leak test opens and closes in turn: `ZT_TURNS`, else 10,000.
#[must_use]
pub fn turns() -> u64 {
    number("ZT_TURNS", 10_000)
}

/// How long certificates are rotated under load: `ZT_ROTATION_SECS`, else 10 s.
#[must_use]
pub fn rotation() -> Duration {
    Duration::from_secs(number("ZT_ROTATION_SECS", 10))
}

fn number(name: &str, default: u64) -> u64 {
    variable(name).and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[expect(clippy::disallowed_methods, reason = "this module is this crate's one reader of the environment")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}
