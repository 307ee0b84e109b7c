//! A daemon beside the one that has the node: one that has handed over, or one that is about to take over.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::last_lines;
use crate::process::Process;
use crate::wait;

/// It is killed when it is dropped.
#[derive(Debug)]
pub struct Former {
    pub(super) process: Process,
    pub(super) output: PathBuf,
}

impl Former {
    /// Waits until it has ended, with exit code 0.
    ///
    /// # Errors
    /// When it does not end in time, or with another code.
    pub fn exited(&mut self, patience: Duration) -> Result<()> {
        let status = self.process.ended_within(patience).with_context(|| self.tail())?;
        ensure!(status.success(), "it ended with {status}\n{}", self.tail());
        Ok(())
    }

    /// Waits until it has ended, with another exit code than 0.
    ///
    /// # Errors
    /// When it does not end in time, or with 0.
    pub fn failed(&mut self, patience: Duration) -> Result<()> {
        let status = self.process.ended_within(patience).with_context(|| self.tail())?;
        ensure!(!status.success(), "it ended with {status}\n{}", self.tail());
        Ok(())
    }

    /// Whether it is still there.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// Kills it on the spot.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// What it has logged so far, and written to standard error.
    #[must_use]
    pub fn said(&self) -> String {
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        read(&self.output) + &read(&self.output.with_added_extension("err"))
    }

    /// Waits until it has said something.
    ///
    /// # Errors
    /// When it does not in time, or ends before.
    pub fn says(&mut self, what: &str) -> Result<()> {
        let said = wait::until_true(&format!("{what:?} in the log"), wait::PATIENCE, || {
            let ended = self.process.ended()?;
            if self.said().contains(what) {
                return Ok(true);
            }
            match ended {
                Some(status) => bail!("it ended with {status}"),
                None => Ok(false),
            }
        });
        said.with_context(|| self.tail())
    }

    pub(super) fn took_over(&mut self) -> Result<()> {
        self.says("ztunnel is running")?;
        ensure!(self.said().contains("took over from the old daemon"), "it started alone\n{}", self.tail());
        Ok(())
    }

    /// The end of its log, for messages.
    #[must_use]
    pub fn tail(&self) -> String {
        let (log, errors) = (last_lines(&self.output, 40), last_lines(&self.output.with_added_extension("err"), 20));
        format!("--- the end of {} ---\n{log}\n{errors}", self.output.display())
    }
}
