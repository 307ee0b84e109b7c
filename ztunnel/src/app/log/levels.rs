//! The levels of the log, which can be changed while the process runs.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use log::LevelFilter;
use thiserror::Error;
use tracing_subscriber::{EnvFilter, reload};

/// The directives that can be added to the levels of the start, over the life of the process.
const MOST_TARGETS: usize = 64;

/// The names of levels. Istio's tools write `warning` and `critical` as well.
const LEVELS: [(&str, &str); 8] = [
    ("off", "off"),
    ("critical", "error"),
    ("error", "error"),
    ("warning", "warn"),
    ("warn", "warn"),
    ("info", "info"),
    ("debug", "debug"),
    ("trace", "trace"),
];

/// Reads and changes the levels. Clones share them.
#[derive(Clone)]
pub struct LogLevels(Arc<Shared>);

struct Shared {
    /// The filter of the start.
    start: String,
    now: Mutex<Levels>,
    apply: Apply,
}

type Apply = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// The levels in force: those of the start, or one level for all, and the levels of targets that were set later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Levels {
    base: String,
    targets: BTreeMap<String, &'static str>,
}

/// Why the levels are not changed.
#[derive(Debug, Error)]
pub enum LevelError {
    /// A part is neither a level nor a target with one.
    #[error(
        "{0:?} is no level and no TARGET=LEVEL; levels are off, error, warn, info and debug, for example info or \
         warn,access=debug"
    )]
    Directive(String),
    /// Too many targets have levels of their own.
    #[error("{MOST_TARGETS} targets have levels of their own, which is the limit: reset the levels first")]
    TooMany,
    /// The log does not take the filter.
    #[error("the log does not take these levels: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The log is gone.
    #[error("the levels of the log cannot be changed: {0}")]
    Gone(#[from] reload::Error),
}

impl fmt::Debug for LogLevels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogLevels").field(&self.current()).finish()
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)?;
        self.targets.iter().try_for_each(|(target, level)| write!(f, ",{target}={level}"))
    }
}

impl LogLevels {
    pub(super) fn new(
        start: String,
        apply: impl Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync + 'static,
    ) -> Self {
        let now = Mutex::new(Levels { base: start.clone(), targets: BTreeMap::new() });
        Self(Arc::new(Shared { start, now, apply: Box::new(apply) }))
    }

    /// The filter in force.
    #[must_use]
    pub fn current(&self) -> String {
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner).to_string()
    }

    /// Changes the levels: first back to those of the start if `reset`, then as `wanted` says. A level alone is for all targets.
    ///
    /// # Errors
    /// The levels stay as they are.
    pub fn change(&self, reset: bool, wanted: &str) -> Result<String, LevelError> {
        let mut now = self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if reset { Levels { base: self.0.start.clone(), ..Levels::default() } } else { now.clone() };
        let next = before.with(wanted)?;
        (self.0.apply)(EnvFilter::builder().parse(next.to_string())?)?;
        // Records of the crate `log` pass this limit before they reach the filter.
        log::set_max_level(highest());
        let text = next.to_string();
        *now = next;
        Ok(text)
    }
}

impl Levels {
    fn with(mut self, wanted: &str) -> Result<Self, LevelError> {
        for part in wanted.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let wrong = || LevelError::Directive(part.chars().take(100).collect());
            if let Some(level) = level(part) {
                self = Self { base: level.to_owned(), targets: BTreeMap::new() };
                continue;
            }
            // Istio's tools write a colon.
            let (target, value) = part.rsplit_once(['=', ':']).ok_or_else(wrong)?;
            let target = target.trim_end_matches(':');
            let is_target = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
            let level =
                level(value).filter(|_| !target.is_empty() && target.chars().all(is_target)).ok_or_else(wrong)?;
            self.targets.insert(target.to_owned(), level);
        }
        if self.targets.len() > MOST_TARGETS { Err(LevelError::TooMany) } else { Ok(self) }
    }
}

fn level(text: &str) -> Option<&'static str> {
    LEVELS.iter().find(|(name, _)| text.eq_ignore_ascii_case(name)).map(|(_, level)| *level)
}

/// The most detailed level that the filter passes for any target.
fn highest() -> LevelFilter {
    let now = tracing::level_filters::LevelFilter::current();
    match now.into_level() {
        None => LevelFilter::Off,
        Some(tracing::Level::ERROR) => LevelFilter::Error,
        Some(tracing::Level::WARN) => LevelFilter::Warn,
        Some(tracing::Level::INFO) => LevelFilter::Info,
        Some(tracing::Level::DEBUG) => LevelFilter::Debug,
        Some(tracing::Level::TRACE) => LevelFilter::Trace,
    }
}

#[cfg(test)]
mod tests {
    use super::{LevelError, LogLevels, MOST_TARGETS};

    fn levels() -> LogLevels {
        LogLevels::new("warn,access=info".to_owned(), |_| Ok(()))
    }

    #[test]
    fn a_level_is_for_all_and_a_target_has_its_own() {
        let levels = levels();
        assert_eq!(levels.current(), "warn,access=info");
        for (wanted, expected) in [
            ("ztunnel::pods=debug", "warn,access=info,ztunnel::pods=debug"),
            ("ztunnel::pods=error", "warn,access=info,ztunnel::pods=error"),
            ("access:debug", "warn,access=info,access=debug,ztunnel::pods=error"),
            ("info", "info"),
            ("Warning, ztunnel::flow:critical", "warn,ztunnel::flow=error"),
        ] {
            assert_eq!(levels.change(false, wanted).unwrap(), expected);
            assert_eq!(levels.current(), expected);
        }
        assert_eq!(levels.change(true, "").unwrap(), "warn,access=info");
        assert_eq!(levels.change(true, "debug").unwrap(), "debug");
    }

    #[test]
    fn what_is_no_level_changes_nothing() {
        let levels = levels();
        for wrong in ["loud", "access=loud", "=info", "a b=info", "a=info,[x]=debug", ":info", "\u{1b}=info"] {
            let error = levels.change(false, wrong).unwrap_err();
            assert!(matches!(error, LevelError::Directive(_)), "{wrong}: {error}");
            assert_eq!(levels.current(), "warn,access=info");
        }
    }

    #[test]
    fn the_number_of_targets_is_limited() {
        let levels = levels();
        let many: Vec<String> = (0..MOST_TARGETS).map(|number| format!("t{number}=debug")).collect();
        levels.change(false, &many.join(",")).unwrap();
        assert!(matches!(levels.change(false, "more=debug"), Err(LevelError::TooMany)));
        levels.change(false, "t0=info").unwrap();
        levels.change(false, "info").unwrap();
        levels.change(false, "more=debug").unwrap();
    }
}
