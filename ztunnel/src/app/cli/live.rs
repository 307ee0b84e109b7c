//! The commands that ask a running daemon, or a control plane.

use std::process::ExitCode;

use super::{
    bug_report::bug_report,
    certs::certs,
    connections::connections,
    log_level::log_level,
    observe::observe,
    output::finish,
    pods::pods,
    policies::policies,
    proxy_status::proxy_status,
    services::services,
    status::status,
    traffic::{edges, stat, who_is_plaintext},
};
use crate::config::live::LiveCommand;

/// Runs a command.
#[must_use]
pub fn run(command: &LiveCommand) -> ExitCode {
    let (output, done) = match command {
        LiveCommand::Status(args) => return status(args),
        LiveCommand::Pods(args) => (args.daemon.output.output(), pods(args)),
        LiveCommand::Services(args) => (args.daemon.output.output(), services(args)),
        LiveCommand::Policies(args) => (args.daemon.output.output(), policies(args)),
        LiveCommand::Certs(args) => (args.daemon.output.output(), certs(args)),
        LiveCommand::Connections(args) => (args.list.daemon.output.output(), connections(args)),
        LiveCommand::Observe(args) => (args.daemon.output.output(), observe(args)),
        LiveCommand::Stat(args) => (args.list.daemon.output.output(), stat(args)),
        LiveCommand::Edges(args) => (args.list.daemon.output.output(), edges(args)),
        LiveCommand::WhoIsPlaintext(args) => (args.list.daemon.output.output(), who_is_plaintext(args)),
        LiveCommand::LogLevel(args) => (args.daemon.output.output(), log_level(args)),
        LiveCommand::ProxyStatus(args) => (args.output.output(), proxy_status(args)),
        LiveCommand::BugReport(args) => (args.output, bug_report(args)),
    };
    finish(output, done)
}
