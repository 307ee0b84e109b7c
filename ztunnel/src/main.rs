//! The node daemon and its commands. Everything is in the library.

use std::process::ExitCode;

use clap::Parser as _;
use ztunnel::{
    app::cli,
    config::{Args, Command},
};

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run(args) => cli::run::run(*args),
        Command::Check(args) => return cli::check::check(&args),
        Command::Cleanup(args) => cli::cleanup::cleanup(&args),
        Command::Ca(command) => cli::ca::ca(&command),
        Command::Explain(args) => return cli::explain::explain(&args),
        Command::Analyze(args) => return cli::analyze::analyze(&args),
        Command::Version => {
            println!("ztunnel {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ztunnel: {error:#}");
            ExitCode::FAILURE
        }
    }
}
