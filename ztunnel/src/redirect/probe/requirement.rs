//! What the daemon needs, and whether it is there.

/// One thing that the daemon needs.
#[derive(Clone, Debug)]
pub struct Requirement {
    /// What it is.
    pub name: &'static str,
    /// Whether it is there.
    pub state: State,
    /// What the probe saw.
    pub found: String,
    /// What is lost without it, and the remedy.
    pub cost: &'static str,
}

/// How far a requirement is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is there.
    Met,
    /// It is not; the daemon runs without what the requirement names.
    Lost,
    /// It is not, and the daemon can't run.
    Missing,
}

/// What a probe saw, good or bad.
pub(super) type Found = Result<String, String>;

impl Requirement {
    pub(super) fn must(name: &'static str, found: Found, cost: &'static str) -> Self {
        Self::new(name, State::Missing, found, cost)
    }

    pub(super) fn should(name: &'static str, found: Found, cost: &'static str) -> Self {
        Self::new(name, State::Lost, found, cost)
    }

    fn new(name: &'static str, without: State, found: Found, cost: &'static str) -> Self {
        match found {
            Ok(found) => Self { name, state: State::Met, found, cost },
            Err(found) => Self { name, state: without, found, cost },
        }
    }
}
