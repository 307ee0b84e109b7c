//! Finds or installs the programs that the build and the tests need, and reports what was found, installed and not
//! possible.
//!
//! Everything is detected: the BPF tool chain, its LLVM version, and the missing packages. Nothing is configured on the
//! machine: no mount, no sysctl, no service.

use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};

use self::apt::Apt;
use crate::{process, workspace};

mod apt;
pub(crate) mod bpf;
mod linker;
mod versions;

/// The parts of the set-up that a command needs. A C tool chain is always needed.
#[derive(Clone, Copy, Default)]
pub(crate) struct Needs {
    /// A compiler and a linker for BPF.
    pub(crate) bpf: bool,
    /// The programs that privileged tests and the demo run in pods and nodes.
    pub(crate) programs: bool,
    /// cargo-deny.
    pub(crate) deny: bool,
    /// valgrind, which counts instructions.
    pub(crate) valgrind: bool,
}

/// Whether missing things are installed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Only look.
    Check,
    /// Install what is missing.
    Install,
}

/// A program, its Debian package, and the part that needs the program.
#[derive(Clone, Copy)]
struct Program {
    name: &'static str,
    package: &'static str,
    user: &'static str,
}

impl Program {
    const fn of_tests(name: &'static str, package: &'static str) -> Self {
        Self { name, package, user: "tests, demo" }
    }
}

const PROGRAMS: [Program; 12] = [
    Program::of_tests("curl", "curl"),
    Program::of_tests("ip", "iproute2"),
    Program::of_tests("iperf3", "iperf3"),
    Program::of_tests("nft", "nftables"),
    Program::of_tests("nginx", "nginx-light"),
    Program::of_tests("openssl", "openssl"),
    Program::of_tests("prometheus", "prometheus"),
    Program::of_tests("promtool", "prometheus"),
    Program::of_tests("python3", "python3"),
    Program::of_tests("redis-server", "redis-server"),
    Program::of_tests("tcpdump", "tcpdump"),
    Program::of_tests("wrk", "wrk"),
];

const COUNTERS: [Program; 1] = [Program { name: "valgrind", package: "valgrind", user: "instruction counts" }];

/// One line of the table.
struct Row {
    requirement: String,
    found: String,
    action: String,
    outcome: Outcome,
}

enum Outcome {
    Met,
    Missing,
    Failed(String),
}

impl Row {
    fn met(requirement: impl Into<String>, found: impl Into<String>) -> Self {
        Self { requirement: requirement.into(), found: found.into(), action: "-".into(), outcome: Outcome::Met }
    }

    fn missing(requirement: impl Into<String>, found: impl Into<String>, action: impl Into<String>) -> Self {
        let (requirement, found, action) = (requirement.into(), found.into(), action.into());
        Self { requirement, found, action, outcome: Outcome::Missing }
    }

    /// The row after an attempt to install: the program that was found, or the reason why it is still missing.
    fn attempted(self, attempt: Result<String>) -> Self {
        match attempt {
            Ok(found) => Self { found, outcome: Outcome::Met, ..self },
            Err(error) => Self { outcome: Outcome::Failed(format!("{error:#}")), ..self },
        }
    }

    fn is_met(&self) -> bool {
        matches!(self.outcome, Outcome::Met)
    }
}

/// Runs the set-up and prints its table. An error if something is still missing in the end.
pub(crate) fn run(needs: Needs, mode: Mode) -> Result<()> {
    let rows = rows(needs, mode);
    println!("{}", table(&rows));
    print!("\n{}", versions::report(&workspace::manifest_folder().join(".."))?);
    verdict(&rows, mode)
}

/// Called first by other commands: silent if nothing is missing, or else the same as `cargo xtask setup` for these
/// needs.
pub(crate) fn ensure(needs: Needs) -> Result<()> {
    if rows(needs, Mode::Check).iter().all(Row::is_met) {
        return Ok(());
    }
    println!("Something that this command needs is missing: setting it up first.");
    run(needs, Mode::Install)
}

fn rows(needs: Needs, mode: Mode) -> Vec<Row> {
    let mut apt = Apt::new();
    let mut rows = vec![c_compiler(&mut apt, mode)];
    if needs.bpf {
        rows.extend(bpf::rows(&mut apt, mode));
    }
    rows.extend(programs(&mut apt, mode, needs));
    if needs.deny {
        rows.push(cargo_deny(mode));
    }
    rows
}

fn c_compiler(apt: &mut Apt, mode: Mode) -> Row {
    let requirement = "C and C++ tool chain (linking)";
    let find =
        || Some(format!("{}, {}", process::find_program("cc")?.display(), process::find_program("c++")?.display()));
    if let Some(found) = find() {
        return Row::met(requirement, found);
    }
    let row = Row::missing(requirement, "-", "apt-get install build-essential");
    if mode == Mode::Check {
        return row;
    }
    let attempt = apt.install(&["build-essential"]);
    row.attempted(attempt.and_then(|()| find().context("build-essential is installed but brought no cc and c++")))
}

/// All missing programs are installed in one call: apt-get takes longer to start than to unpack them.
fn programs(apt: &mut Apt, mode: Mode, needs: Needs) -> Vec<Row> {
    let wanted = |needed: bool, programs: &'static [Program]| if needed { programs } else { &[] };
    let all = [wanted(needs.programs, &PROGRAMS), wanted(needs.valgrind, &COUNTERS)].concat();
    let missing: Vec<&str> = all
        .iter()
        .filter(|program| process::find_program(program.name).is_none())
        .map(|program| program.package)
        .collect();
    let attempt = if mode == Mode::Install && !missing.is_empty() { apt.install(&missing) } else { Ok(()) };
    let failure = attempt.err().map(|error| format!("{error:#}"));
    let row = |Program { name, package, user }| {
        let requirement = format!("{name} ({user})");
        let found = process::find_program(name).map(|path| path.display().to_string());
        if !missing.contains(&package) {
            return Row::met(requirement, found.unwrap_or_default());
        }
        let row = Row::missing(requirement, "-", format!("apt-get install {package}"));
        match (mode, found) {
            (Mode::Check, _) => row,
            (Mode::Install, Some(found)) => row.attempted(Ok(found)),
            (Mode::Install, None) => {
                let reason = failure
                    .clone()
                    .unwrap_or_else(|| format!("{package} is installed, but there is no program `{name}`"));
                row.attempted(Err(anyhow::Error::msg(reason)))
            }
        }
    };
    all.into_iter().map(row).collect()
}

fn cargo_deny(mode: Mode) -> Row {
    let requirement = "cargo-deny (dependency policy)";
    let find = || {
        let program = process::find_program("cargo-deny")?;
        process::stdout_of(std::process::Command::new(program).arg("--version"))
    };
    if let Some(found) = find() {
        return Row::met(requirement, found);
    }
    let row = Row::missing(requirement, "-", "cargo install cargo-deny --locked (minutes)");
    if mode == Mode::Check {
        return row;
    }
    let mut install = bpf::cargo_install();
    install.args(["cargo-deny", "--locked", "--force"]);
    // Its release profile uses fat LTO, which doubles the build time of a tool that runs for a second.
    install.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    let attempt = process::run_keeping_tail(&mut install);
    row.attempted(attempt.and_then(|()| find().context("cargo-deny is installed but does not run")))
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["REQUIREMENT", "FOUND", "ACTION", "RESULT"]);
    for row in rows {
        let result = match &row.outcome {
            Outcome::Met if row.action == "-" => "ok",
            Outcome::Met => "installed",
            Outcome::Missing => "MISSING",
            Outcome::Failed(_) => "FAILED",
        };
        table.add_row([&row.requirement, &row.found, &row.action, result]);
    }
    table
}

fn verdict(rows: &[Row], mode: Mode) -> Result<()> {
    let unmet: Vec<&Row> = rows.iter().filter(|row| !row.is_met()).collect();
    if unmet.is_empty() {
        return Ok(());
    }
    // If one apt-get call was to install several programs, their rows fail for one reason, which is reported once.
    let mut reasons: Vec<&str> = Vec::new();
    for row in &unmet {
        if let Outcome::Failed(reason) = &row.outcome
            && !reasons.contains(&reason.as_str())
        {
            reasons.push(reason);
        }
    }
    for reason in reasons {
        eprintln!("\n{reason}");
    }
    let names = unmet.iter().map(|row| row.requirement.as_str()).collect::<Vec<_>>().join(", ");
    match mode {
        Mode::Check => bail!("missing: {names}; `cargo xtask setup` installs what it can"),
        Mode::Install => bail!("could not be set up: {names}"),
    }
}

#[cfg(test)]
mod tests;
