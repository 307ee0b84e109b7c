//! The dashboards for Grafana: their panels, variables and expressions.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{folder, list, read, text};

/// A dashboard.
#[derive(Debug)]
pub struct Dashboard {
    /// The name of its file, without the ending.
    pub name: String,
    /// The whole dashboard.
    pub value: Value,
}

/// An expression of a panel.
#[derive(Debug, Clone)]
pub struct Query {
    /// The title of the panel.
    pub panel: String,
    /// The expression, with variables.
    pub expression: String,
    /// How a series is named.
    pub legend: String,
}

/// An expression behind a variable.
#[derive(Debug, PartialEq, Eq)]
pub struct Values {
    /// The name of the variable.
    pub variable: String,
    /// An expression whose results have the values in the label.
    pub expression: String,
    /// The label.
    pub label: String,
}

impl Dashboard {
    /// All dashboards.
    ///
    /// # Errors
    /// When one can't be read or is not JSON.
    pub fn all() -> Result<Vec<Self>> {
        let folder = folder().join("dashboards");
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json")).map(str::to_owned);
            let name = name.with_context(|| format!("{} is no dashboard", path.display()))?;
            let value = serde_json::from_str(&read(&path)?).with_context(|| format!("{name} is not JSON"))?;
            all.push(Self { name, value });
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// Its panels, without rows.
    pub fn panels(&self) -> impl Iterator<Item = &Value> {
        list(&self.value, "panels").filter(|panel| text(panel, "type") != "row")
    }

    /// Its variables.
    pub fn variables(&self) -> impl Iterator<Item = &Value> {
        self.value.get("templating").into_iter().flat_map(|all| list(all, "list"))
    }

    /// The names of its variables.
    #[must_use]
    pub fn variable_names(&self) -> BTreeSet<&str> {
        self.variables().map(|variable| text(variable, "name")).collect()
    }

    /// The expressions of its panels.
    #[must_use]
    pub fn queries(&self) -> Vec<Query> {
        let mut queries = Vec::new();
        for panel in self.panels() {
            for target in list(panel, "targets") {
                queries.push(Query {
                    panel: text(panel, "title").to_owned(),
                    expression: text(target, "expr").to_owned(),
                    legend: text(target, "legendFormat").to_owned(),
                });
            }
        }
        queries
    }

    /// The expressions behind its variables.
    ///
    /// # Errors
    /// When a variable is written in a way that is not known here.
    pub fn values(&self) -> Result<Vec<Values>> {
        let queried = self.variables().filter(|variable| text(variable, "type") == "query");
        queried.map(|variable| values(text(variable, "name"), text(variable, "definition"))).collect()
    }
}

/// Reads `label_values(METRIC, LABEL)`, or `query_result(EXPRESSION)` whose results are grouped by one label.
fn values(variable: &str, definition: &str) -> Result<Values> {
    let variable = variable.to_owned();
    let inside = |function: &str| definition.strip_prefix(function)?.strip_prefix('(')?.strip_suffix(')');
    if let Some((metric, label)) = inside("label_values").and_then(|inside| inside.rsplit_once(", ")) {
        let expression = format!("group by ({label}) ({metric})");
        return Ok(Values { variable, expression, label: label.to_owned() });
    }
    let expression = inside("query_result").with_context(|| format!("{variable}: {definition}"))?;
    let by = super::promql::uses(expression)?.by;
    let mut by = by.iter();
    let (Some(label), None) = (by.next(), by.next()) else { anyhow::bail!("{variable}: not grouped by one label") };
    Ok(Values { variable, expression: expression.to_owned(), label: label.clone() })
}

/// The expression with the variables in it set: those of the dashboard to everything, the interval to this one.
#[must_use]
pub fn filled(expression: &str, variables: &BTreeSet<&str>, interval: &str) -> String {
    let mut text = expression.replace("$__rate_interval", interval);
    // Longer names first, since a name may begin with another one.
    let mut names: Vec<&&str> = variables.iter().collect();
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    for name in names {
        text = text.replace(&format!("${name}"), ".*");
    }
    text
}

/// The labels in the name of a series, `{{label}}`.
#[must_use]
pub fn legend_labels(legend: &str) -> Vec<String> {
    legend.split("{{").skip(1).filter_map(|rest| Some(rest.split_once("}}")?.0.trim().to_owned())).collect()
}

/// Checks that the panels do not overlap and are within the 24 columns of Grafana.
///
/// # Errors
/// Names the panel.
pub fn check_places(dashboard: &Dashboard) -> Result<()> {
    let mut taken = BTreeSet::new();
    for panel in list(&dashboard.value, "panels") {
        let title = text(panel, "title");
        let number = |key: &str| panel.pointer(&format!("/gridPos/{key}")).and_then(Value::as_u64);
        let (Some(x), Some(y), Some(w), Some(h)) = (number("x"), number("y"), number("w"), number("h")) else {
            anyhow::bail!("{title} has no place");
        };
        ensure!(w > 0 && h > 0 && x + w <= 24, "{title} is wider than the dashboard");
        for cell in (y..y + h).flat_map(|row| (x..x + w).map(move |column| (row, column))) {
            ensure!(taken.insert(cell), "{title} overlaps another panel");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in() {
        let filled = filled("a{b=~\"$node\", c=~\"$nodes\"}[$__rate_interval]", &["node", "nodes"].into(), "5m");
        assert_eq!(filled, "a{b=~\".*\", c=~\".*\"}[5m]");
        assert_eq!(legend_labels("{{a}} to {{ b }}, {c}"), ["a", "b"]);
    }

    #[test]
    fn the_values_of_a_variable_come_from_an_expression() -> Result<()> {
        let label = values("v", "label_values(a{b=\"x, y\"}, c)")?;
        assert_eq!((label.expression.as_str(), label.label.as_str()), ("group by (c) (a{b=\"x, y\"})", "c"));
        let result = values("v", "query_result(sum by (c) (a))")?;
        assert_eq!((result.expression.as_str(), result.label.as_str()), ("sum by (c) (a)", "c"));
        for broken in ["metrics(a)", "query_result(a)", "label_values(c)"] {
            assert!(values("v", broken).is_err(), "{broken}");
        }
        Ok(())
    }
}
