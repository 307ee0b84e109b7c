//! `ztunnel cni`: the plugin that a container runtime starts.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode},
};

use crate::{
    cni::{
        NAME,
        plugin::{self, Call},
    },
    config::cni::PluginArgs,
};

/// Answers the container runtime on standard output.
#[must_use]
pub fn cni(args: &PluginArgs) -> ExitCode {
    if let (Some(root), Some(program)) = (&args.try_root, &args.try_program) {
        let error = try_out(root, program);
        let _nobody_reads = writeln!(io::stderr(), "cannot start {} in {}: {error}", program.display(), root.display());
        return ExitCode::FAILURE;
    }
    let call = Call {
        command: args.command.clone(),
        container: args.container_id.clone(),
        netns: args.netns.clone(),
        args: args.args.clone(),
    };
    let (answer, is_success) = plugin::run(&call, io::stdin().lock());
    let written = io::stdout().lock().write_all(answer.as_bytes());
    if is_success && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The words of the command line with the command that the name of the program stands for.
#[must_use]
pub fn with_command(mut words: Vec<OsString>) -> Vec<OsString> {
    let is_plugin = words.first().is_some_and(|program| Path::new(program).file_name() == Some(NAME.as_ref()));
    if is_plugin {
        words.insert(1, "cni".into());
    }
    words
}

/// Becomes the program, started from that root directory and asked for its versions. Why it could not.
fn try_out(root: &Path, program: &Path) -> io::Error {
    if let Err(error) = nix::unistd::chroot(root).and_then(|()| nix::unistd::chdir("/")) {
        return error.into();
    }
    Command::new(program).env("CNI_COMMAND", "VERSION").arg0(NAME).exec()
}
