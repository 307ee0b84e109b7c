//! The requirements of the daemon, and whether they are met.

/// One requirement of the daemon.
#[derive(Clone, Debug)]
pub struct Requirement {
    /// The name of the requirement.
    pub name: &'static str,
    /// Whether it is met.
    pub state: State,
    /// The finding of the probe.
    pub found: String,
    /// The consequence if it is not met, and the remedy.
    pub cost: &'static str,
}

/// How far a requirement is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is met.
    Met,
    /// It is not met. The daemon runs without the feature that needs it.
    Lost,
    /// It is not met, and the daemon can't run.
    Missing,
}

/// The finding of a probe: `Ok` if the requirement is met.
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
