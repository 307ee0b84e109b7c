//! The scrape configurations in the documents.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{document, list, read, text};
use crate::documents::blocks;

/// The page with the configurations.
const PAGE: &str = "monitoring.md";

/// The texts of the configurations.
///
/// # Errors
/// When the page can't be read or has none.
pub fn texts() -> Result<Vec<String>> {
    let page = read(&document(PAGE))?;
    let yaml = blocks(&page).into_iter().filter(|block| block.language == "yaml");
    let texts: Vec<String> = yaml.map(|block| block.text).filter(|text| text.contains("scrape_configs")).collect();
    ensure!(!texts.is_empty(), "docs/{PAGE} has no scrape configuration");
    Ok(texts)
}

/// The configuration for Kubernetes.
///
/// # Errors
/// When the page has none, or it is not valid YAML.
pub fn documented() -> Result<Value> {
    let of_kubernetes = texts()?.into_iter().find(|text| text.contains("kubernetes_sd_configs"));
    let text = of_kubernetes.with_context(|| format!("docs/{PAGE} has no scrape configuration for Kubernetes"))?;
    serde_saphyr::from_str(&text).with_context(|| format!("docs/{PAGE}: {text}"))
}

/// A job of a configuration.
#[must_use]
pub fn job<'a>(configuration: &'a Value, name: &str) -> Option<&'a Value> {
    list(configuration, "scrape_configs").find(|job| text(job, "job_name") == name)
}
