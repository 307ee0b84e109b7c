//! The commands and their flags.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory as _};

use super::markdown::{code, table};
use crate::config::Args;

/// The flags of `run`, by their groups.
pub(super) fn run() -> String {
    let mut all = Args::command();
    all.build();
    let mut text = String::new();
    if let Some(run) = all.find_subcommand("run") {
        let mut groups: Vec<Option<&str>> = Vec::new();
        for arg in flags(run) {
            if !groups.contains(&arg.get_help_heading()) {
                groups.push(arg.get_help_heading());
            }
        }
        for group in groups {
            if !text.is_empty() {
                text.push('\n');
            }
            if let Some(title) = group {
                // Writing to a string can't fail.
                let _ = write!(text, "**{title}**\n\n");
            }
            text.push_str(&flags_table(flags(run).filter(|arg| arg.get_help_heading() == group)));
        }
    }
    text
}

/// All commands: what each does, and whether it prints JSON.
pub(super) fn list() -> String {
    let mut all = Args::command();
    all.build();
    let mut rows = Vec::new();
    for command in shown(&all) {
        list_rows(command, "ztunnel", &mut rows);
    }
    table(["command", "what it does", "`-o json`"], rows)
}

fn list_rows(command: &Command, above: &str, rows: &mut Vec<[String; 3]>) {
    let name = format!("{above} {}", command.get_name());
    let mut below = shown(command).peekable();
    if below.peek().is_some() {
        for command in below {
            list_rows(command, &name, rows);
        }
        return;
    }
    let about = command.get_about().map(sentence).unwrap_or_default();
    let has_json = flags(command).any(|arg| {
        arg.get_id() == "output" && arg.get_possible_values().iter().any(|value| value.get_name() == "json")
    });
    rows.push([code(&name), about, if has_json { "yes" } else { "" }.to_owned()]);
}

/// All other commands with their flags.
pub(super) fn commands() -> String {
    let mut all = Args::command();
    all.build();
    let mut sections = Vec::new();
    for command in shown(&all).filter(|command| command.get_name() != "run") {
        section(command, "ztunnel", &mut sections);
    }
    sections.join("\n")
}

fn section(command: &Command, above: &str, sections: &mut Vec<String>) {
    let name = format!("{above} {}", command.get_name());
    let mut below = shown(command).peekable();
    if below.peek().is_some() {
        for command in below {
            section(command, &name, sections);
        }
        return;
    }
    let about = command.get_long_about().or(command.get_about()).map(paragraphs).unwrap_or_default();
    let mut text = format!("### `{name}`\n\n{about}\n");
    if flags(command).next().is_some() {
        text.push('\n');
        text.push_str(&flags_table(flags(command)));
    }
    sections.push(text);
}

fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
}

fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    let is_common = |arg: &Arg| matches!(arg.get_id().as_str(), "help" | "version");
    command.get_arguments().filter(move |arg| !arg.is_hide_set() && !is_common(arg))
}

fn flags_table<'a>(flags: impl Iterator<Item = &'a Arg>) -> String {
    table(["flag", "variable", "default", "meaning"], flags.map(row))
}

fn row(arg: &Arg) -> [String; 4] {
    let variable = arg.get_env().map(|name| code(&name.to_string_lossy())).unwrap_or_default();
    let defaults: Vec<String> = arg.get_default_values().iter().map(|value| code(&value.to_string_lossy())).collect();
    let default = match defaults.as_slice() {
        _ if !arg.get_action().takes_values() => "off".to_owned(),
        [] if arg.is_required_set() => "required".to_owned(),
        values => values.join(", "),
    };
    let help = arg.get_long_help().or(arg.get_help()).map(sentence).unwrap_or_default();
    [code(&usage(arg)), variable, default, help]
}

/// The flag as it is written on the command line.
fn usage(arg: &Arg) -> String {
    let short = arg.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    let long = arg.get_long().map(|long| format!("{short}--{long}"));
    if !arg.get_action().takes_values() {
        return long.unwrap_or_default();
    }
    let possible: Vec<_> = arg
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| value.get_name().to_owned())
        .collect();
    let values = if possible.is_empty() {
        let names = arg.get_value_names().map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>());
        names.unwrap_or_else(|| vec![arg.get_id().as_str().to_uppercase()]).join(" ")
    } else {
        possible.join("|")
    };
    match long {
        Some(long) => format!("{long} {values}"),
        None => format!("[{values}]"),
    }
}

/// Paragraphs in a row.
fn paragraphs(text: &impl ToString) -> String {
    text.to_string().split("\n\n").map(|paragraph| sentence(&paragraph)).collect::<Vec<_>>().join(" ")
}

/// A help text as a sentence: clap leaves out the full stop.
fn sentence(text: &impl ToString) -> String {
    let text = text.to_string();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() || text.ends_with(['.', ':', '!', '?']) { text } else { text + "." }
}
