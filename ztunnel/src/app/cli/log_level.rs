//! `ztunnel log-level`: shows or changes the levels of the daemon's log while it runs.

use anyhow::Context as _;
use hyper::Method;
use serde::Serialize;

use super::{
    ask::{ask, check},
    output::json,
};
use crate::{
    app::admin::{LOGGING, explain::encoded, logging::CURRENT},
    config::live::{LogLevelArgs, View},
};

#[derive(Debug, Serialize)]
struct Levels<'a> {
    levels: &'a str,
}

/// The text of the command.
///
/// # Errors
/// If no daemon answers, or the levels are none.
pub(super) fn log_level(args: &LogLevelArgs) -> anyhow::Result<String> {
    let mut parameters = Vec::new();
    parameters.extend(args.reset.then(|| "reset".to_owned()));
    parameters.extend(args.levels.as_ref().map(|levels| format!("level={}", encoded(levels))));
    let (method, path) = match parameters.is_empty() {
        true => (Method::GET, LOGGING.to_owned()),
        false => (Method::POST, format!("{LOGGING}?{}", parameters.join("&"))),
    };
    let admin = args.daemon.admin;
    let answer = ask(admin, method, &path)?;
    check(admin, &path, &answer)?;
    let text = String::from_utf8_lossy(&answer.body);
    let levels = text.trim().strip_prefix(CURRENT);
    let levels = levels.with_context(|| format!("the answer of {admin} tells no levels: {}", answer.excerpt()))?;
    Ok(match args.daemon.output {
        View::Json => json(&Levels { levels }),
        View::Table | View::Wide => format!("{}\n", crate::explain::printable(levels)),
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde_json::{Value, json};

    use super::log_level;
    use crate::{
        app::cli::ask::tests::{answering, http},
        config::live::{DaemonArgs, LogLevelArgs, View},
    };

    fn args(admin: SocketAddr, output: View, levels: Option<&str>, reset: bool) -> LogLevelArgs {
        LogLevelArgs { daemon: DaemonArgs { admin, output }, levels: levels.map(str::to_owned), reset }
    }

    #[test]
    fn levels_are_shown_changed_and_reset() {
        let admin = answering(|request| match request {
            "GET /logging HTTP/1.1" => http("200 OK", "current log level is info\n"),
            "POST /logging?level=access%3Ddebug HTTP/1.1" => http("200 OK", "current log level is info,access=debug\n"),
            "POST /logging?reset HTTP/1.1" => http("200 OK", "current log level is warn\n"),
            "POST /logging?reset&level=debug HTTP/1.1" => http("400 Bad Request", "no level\n"),
            _ => http("200 OK", "something\n"),
        });
        assert_eq!(log_level(&args(admin, View::Table, None, false)).unwrap(), "info\n");
        assert_eq!(log_level(&args(admin, View::Table, Some("access=debug"), false)).unwrap(), "info,access=debug\n");
        let text = log_level(&args(admin, View::Json, None, true)).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!({"schemaVersion": 1, "levels": "warn"}));
        let error = format!("{:#}", log_level(&args(admin, View::Table, Some("debug"), true)).unwrap_err());
        assert!(error.contains("cannot answer /logging: no level"), "{error}");
        let error = format!("{:#}", log_level(&args(admin, View::Table, Some("x"), false)).unwrap_err());
        assert!(error.contains("tells no levels: something"), "{error}");
    }
}
