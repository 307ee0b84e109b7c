//! The node daemon and its commands. The library has the code.

use std::process::ExitCode;

use clap::Parser as _;
use ztunnel::{
    app::cli,
    config::{Args, Command, commands::Output},
};

fn main() -> ExitCode {
    let words = cli::cni::with_command(std::env::args_os().collect());
    let args = match Args::try_parse_from(&words) {
        Ok(args) => args,
        Err(error) => {
            let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
            return cli::output::wrong_arguments(&error, &words);
        }
    };
    let (output, done) = match args.command {
        Command::Run(args) => (Output::Text, cli::run::run(*args).map(|()| String::new())),
        Command::ControlPlane(args) => (Output::Text, cli::control_plane::control_plane(*args).map(|()| String::new())),
        Command::Check(args) => return cli::check::check(&args),
        Command::Cleanup(args) => (args.output, cli::cleanup::cleanup(&args)),
        Command::Cni(args) => return cli::cni::cni(&args),
        Command::Ready(args) => (args.output, cli::ready::ready(&args)),
        Command::Ca(command) => return cli::ca::ca(&command),
        Command::Explain(args) => return cli::explain::explain(&args),
        Command::Analyze(args) => return cli::analyze::analyze(&args),
        Command::Live(command) => return cli::live::run(&command),
        Command::Version(args) => (args.output, cli::version::version(&args)),
        Command::Completions { shell } => (Output::Text, cli::version::completions(shell)),
        Command::Man { dir } => (Output::Text, cli::version::man(&dir)),
    };
    cli::output::finish(output, done)
}
