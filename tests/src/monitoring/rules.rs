//! The rules for Prometheus, and their tests for promtool.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{folder, list, read, text};
use crate::process::{Finished, Launch};

/// The file with the rules.
#[must_use]
pub fn file() -> PathBuf {
    folder().join("rules.yaml")
}

/// The file with the tests of the rules.
#[must_use]
pub fn tests_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring/rules_test.yaml")
}

/// Runs promtool.
///
/// # Errors
/// When it is not installed, or does not end.
pub fn promtool(args: &[&str]) -> Result<Finished> {
    Launch::new("promtool").args(args).finish()
}

/// A YAML file.
///
/// # Errors
/// When it can't be read or parsed.
pub fn yaml(path: &Path) -> Result<Value> {
    serde_saphyr::from_str(&read(path)?).with_context(|| format!("{} is not valid YAML", path.display()))
}

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The name of an alert, or of the metric that is recorded.
    pub name: String,
    /// Whether it is an alert.
    pub is_alert: bool,
    /// The expression.
    pub expression: String,
    /// The whole rule.
    pub value: Value,
}

impl Rule {
    /// All rules of the file.
    ///
    /// # Errors
    /// When the file can't be read, or a rule has no name or no expression.
    pub fn all() -> Result<Vec<Self>> {
        let file = yaml(&file())?;
        let mut rules = Vec::new();
        for rule in list(&file, "groups").flat_map(|group| list(group, "rules")) {
            let is_alert = rule.get("alert").is_some();
            let name = text(rule, if is_alert { "alert" } else { "record" }).to_owned();
            let expression = text(rule, "expr").to_owned();
            ensure!(!name.is_empty() && !expression.is_empty(), "a rule without a name or an expression: {rule}");
            rules.push(Self { name, is_alert, expression, value: rule.clone() });
        }
        ensure!(rules.len() > 10, "there are {} rules only", rules.len());
        Ok(rules)
    }

    /// An annotation of an alert.
    #[must_use]
    pub fn annotation(&self, key: &str) -> &str {
        self.value.get("annotations").map(|all| text(all, key)).unwrap_or_default()
    }

    /// The labels that the texts of an alert name.
    #[must_use]
    pub fn named_labels(&self) -> BTreeSet<String> {
        let texts = ["summary", "description"].map(|key| self.annotation(key)).join(" ");
        let behind = texts.split("$labels.").skip(1);
        behind.map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()).collect()
    }
}
