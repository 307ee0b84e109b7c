//! The parts of the documents that are generated from the code, as Markdown: commands, flags, annotations, metrics, log fields, close
//! reasons, codes of findings.
//!
//! `cargo xtask docs` writes them into `docs/`; `cargo xtask tidy` fails if a document differs.

mod flags;
mod markdown;
mod metrics;

#[cfg(test)]
pub(super) use self::metrics::{every_metric, every_metric_of_control_plane};

use self::markdown::{code, table};
use crate::{analyze::Code, control::objects::KEYS, flow::record::FIELDS, model::close::CloseReason};

/// All parts: the name that a document uses for the part, and its text.
///
/// # Errors
/// If the metrics can't be encoded.
pub fn parts() -> Result<Vec<(&'static str, String)>, std::fmt::Error> {
    Ok(vec![
        ("analyze-codes", analyze_codes()),
        ("annotations", annotations()),
        ("close-reasons", close_reasons()),
        ("command-list", flags::list()),
        ("commands", flags::commands()),
        ("control-plane-metrics", metrics::of_control_plane()?),
        ("flags", flags::run()),
        ("log-fields", log_fields()),
        ("metrics", metrics::all()?),
    ])
}

fn analyze_codes() -> String {
    let rows = Code::ALL
        .iter()
        .map(|one| [code(one.code()), one.severity().to_string(), one.meaning().to_owned(), one.remedy().to_owned()]);
    table(["code", "severity", "meaning", "remedy"], rows)
}

fn annotations() -> String {
    let rows = KEYS.iter().map(|key| {
        let names: Vec<String> = key.names.iter().map(|name| code(name)).collect();
        [
            format!("{}, {}", key.object, key.kind.name()),
            names.join(", else "),
            key.values.to_owned(),
            key.effect.to_owned(),
        ]
    });
    table(["object", "key", "values", "effect"], rows)
}

fn close_reasons() -> String {
    let rows = CloseReason::ALL.iter().map(|reason| [code(reason.label()), reason.to_string(), code(reason.flags())]);
    table(["reason", "text in `error`, where nothing more is known", "`response_flags`"], rows)
}

fn log_fields() -> String {
    table(["field", "meaning"], FIELDS.map(|(name, meaning)| [code(name), meaning.to_owned()]))
}

#[cfg(test)]
mod tests;
