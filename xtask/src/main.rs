//! The project's own tasks, run as `cargo xtask COMMAND`.
//!
//! Each command first installs missing programs that it needs (see [`setup`]), prints every program that it runs, and
//! exits non-zero with one line that says what failed and what to do.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use ztunnel_tests::bench::plane::PlaneBench;
use ztunnel_tests::bench::{self, BenchOptions};
use ztunnel_tests::demo::{self, DemoOptions};

use crate::build::Profile;
use crate::setup::Needs;
use crate::workspace::Workspace;

mod build;
mod cluster;
mod deny;
mod dist;
mod docs;
mod fuzz;
mod image;
mod instructions;
mod process;
mod setup;
mod test_runs;
mod tidy;
mod workspace;

/// A control plane is measured for at least this long: at first it sends what it has.
const PLANE_SECONDS: u32 = 10;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what the build and the tests need
    ///
    /// Looks for a C tool chain, a compiler and linker for BPF, the programs that the tests run, valgrind, and cargo-deny.
    /// Installs what is missing: Debian packages with apt-get (needs root; no service is started), bpf-linker and cargo-deny with
    /// `cargo install`. Prints a table of what was found, done and not possible, and
    /// the versions that differ from those of the last successful run of .ci/run. Running it again changes nothing.
    Setup {
        /// Change nothing; exit 1 if something is missing
        #[arg(long)]
        check: bool,
        /// Leave out cargo-deny, which takes minutes to compile and is used by `cargo xtask deny` only
        #[arg(long)]
        no_deny: bool,
    },
    /// Build the BPF programs and the daemon that embeds them
    ///
    /// The BPF object is always optimised and lands in target/bpf/ztunnel.bpf.o; ztunnel's build script embeds it. Works
    /// with a rustup nightly that has rust-src, or with Debian's rustc-web: says which one it uses.
    Build {
        /// Optimise the daemon
        #[arg(long)]
        release: bool,
    },
    /// Show capture on this machine: two nodes, five pods, before, with and after the label (needs root)
    Demo {
        /// Leave everything running and print how to enter it
        #[arg(long)]
        keep: bool,
        /// Remove the remains of an earlier `--keep`, and do nothing else
        #[arg(long, conflicts_with = "keep")]
        clean: bool,
        /// Give the manifests and the CA to a control plane; the daemons have neither
        #[arg(long, conflicts_with = "clean")]
        control_plane: bool,
        /// On a Kubernetes of its own, installed by the chart: four services, policies, and the removal (needs Go)
        #[arg(long, conflicts_with_all = ["keep", "clean", "control_plane"])]
        cluster: bool,
    },
    /// Measure the cost of the mesh, compared with the same machine without it (needs root)
    ///
    /// Two nodes, real clients, the daemon as it is shipped. Every figure stands beside one without the mesh, and one of a
    /// mere chain of two copiers, from the same round; medians over the rounds, with their spread.
    Bench {
        /// Only measurements whose name contains one of these, for example `iperf3` or `idle`; "100,000" workloads run only if named;
        /// `control-plane` by itself: a control plane with 500 nodes
        #[arg(value_name = "FILTER")]
        filters: Vec<String>,
        /// How often each figure is measured
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// How long each measurement takes
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
        seconds: u32,
        /// Also write the figures to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Compare with the figures in this file: exit 1 when something is worse by more than noise
        #[arg(long, value_name = "FILE")]
        baseline: Option<PathBuf>,
        /// Only this mode, for example `no mesh` or `mesh`; may be given several times
        #[arg(long = "mode", value_name = "MODE")]
        modes: Vec<String>,
        /// Measure this daemon instead of building a release
        #[arg(long, value_name = "PATH")]
        daemon: Option<PathBuf>,
    },
    /// Count the instructions of policy, routing and HBONE messages, and compare them with the committed figures
    ///
    /// valgrind counts them in a release build, so a busy machine makes no difference. Exits 1 when a scenario has become more
    /// than 15 % longer, and says what to do; tells when one has become shorter.
    Instructions {
        /// Write the counts to ztunnel/benches/instructions.json instead
        #[arg(long)]
        update: bool,
    },
    /// Run tests
    ///
    /// `unit` needs neither root nor the BPF tool chain. `privileged` builds the daemon with its BPF programs and runs the
    /// tests of `tests/` against it on the real kernel: it needs root, and fails without. `cluster` runs the tests that need a real
    /// Kubernetes (see `cargo xtask cluster`); it needs root and Go as well.
    Test {
        #[arg(value_enum, default_value_t = test_runs::Selection::All)]
        what: test_runs::Selection,
        /// Only tests whose name contains this
        filter: Option<String>,
        /// Test this daemon instead of building one (privileged tests, cluster tests)
        #[arg(long, value_name = "PATH")]
        daemon: Option<PathBuf>,
        /// Cluster tests only: where the programs of Kubernetes have not been built, say NOT RUN and exit 0
        #[arg(long)]
        if_possible: bool,
    },
    /// A real Kubernetes on this machine, in namespaces
    ///
    /// `cargo xtask cluster programs` builds what it needs; `up` does the same first.
    Cluster {
        #[command(subcommand)]
        action: cluster::Action,
    },
    /// Fuzz the parsers of what peers send, with libFuzzer and the stable compiler
    ///
    /// Every target of `ztunnel/fuzz`, or one, starts from the committed seeds and from what earlier runs found
    /// (target/fuzz/corpus). An input that breaks a target is named, and the exit code is 1: make it a seed, with its fix.
    Fuzz {
        /// Only this target: the name of a file in ztunnel/fuzz/targets, without .rs
        target: Option<String>,
        /// How long each target runs
        #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
    },
    /// Check the structure: layers, fences, circles of files, lint inheritance, module docs, links, generated documents
    ///
    /// Also lists the longest files and functions; they have no limit.
    Tidy {
        /// Print the table of layers and fences and stop
        #[arg(long)]
        layers: bool,
        /// Do not compare the generated parts of documents with the code, which takes a build of the daemon
        #[arg(long, conflicts_with = "layers")]
        no_docs: bool,
    },
    /// Write the generated parts of the documents in docs/: flags, annotations, metrics, log fields, close reasons
    ///
    /// They stand between `<!-- generated: NAME -->` and `<!-- end -->`. `cargo xtask tidy` fails when they are out of date.
    Docs,
    /// Check licences, bans, sources and advisories of the dependencies with cargo-deny
    Deny {
        /// Fail when the advisory database can't be fetched, instead of saying that it was not checked
        #[arg(long)]
        advisories: bool,
    },
    /// Build one stripped binary for distribution and its sha256 in target/dist/
    Dist,
    /// Make the image of the daemon in target/dist/: an OCI layout in a tar, and a bill of materials in CycloneDX
    ///
    /// No container engine and no registry takes part. The image has the daemon, the shared libraries that it is linked with, and
    /// the bill. The same daemon makes the same image, with the same digest. `cargo xtask cluster load-image` imports it, as `ctr images
    /// import` does.
    Image {
        /// Take this daemon instead of building a release
        #[arg(long, value_name = "PATH")]
        daemon: Option<PathBuf>,
        /// Registry, repository and tag; default: localhost/ztunnel:VERSION
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let workspace = Workspace::locate()?;
    match command {
        Command::Setup { check, no_deny } => {
            let mode = if check { setup::Mode::Check } else { setup::Mode::Install };
            setup::run(Needs { bpf: true, programs: true, deny: !no_deny, valgrind: true }, mode)
        }
        Command::Build { release } => {
            let profile = if release { Profile::Release } else { Profile::Dev };
            let daemon = build::daemon(&workspace, profile)?;
            println!("{}", daemon.display());
            Ok(())
        }
        Command::Demo { keep, clean, control_plane, cluster } => {
            ensure!(workspace::is_root()?, "the demo makes network namespaces and loads BPF programs: run it as root");
            if cluster {
                cluster::programs::ensure(&workspace, false)?;
                let image = image::for_cluster(&workspace, &build::daemon(&workspace, Profile::Release)?)?;
                return ztunnel_tests::cluster::demo::run(&image);
            }
            setup::ensure(Needs { bpf: true, programs: true, ..Needs::default() })?;
            let ztunnel = build::daemon(&workspace, Profile::Release)?;
            demo::run(&DemoOptions { keep, clean, control_plane, ztunnel })
        }
        Command::Bench { filters, rounds, seconds, json, baseline, modes, daemon } => {
            ensure!(
                workspace::is_root()?,
                "the benchmark makes network namespaces and loads BPF programs: run it as root"
            );
            setup::ensure(Needs { bpf: true, programs: true, ..Needs::default() })?;
            if cfg!(debug_assertions) {
                return build::run_optimised(&workspace);
            }
            let ztunnel = match daemon {
                Some(daemon) => daemon,
                None => build::daemon(&workspace, Profile::ReleaseLto)?,
            };
            if filters == ["control-plane"] {
                return bench::plane::run(&PlaneBench {
                    seconds: seconds.max(PLANE_SECONDS),
                    json,
                    ..bench::plane::of(&ztunnel)
                });
            }
            bench::run(&BenchOptions { filters, modes, rounds, seconds, json, baseline, ztunnel })
        }
        Command::Instructions { update } => instructions::run(&workspace, update),
        Command::Cluster { action } => cluster::run(&workspace, action),
        Command::Test { what, filter, daemon, if_possible } => {
            let selected = test_runs::Selected { filter: filter.as_deref(), daemon: daemon.as_deref(), if_possible };
            test_runs::run(&workspace, what, &selected)
        }
        Command::Fuzz { target, seconds } => fuzz::run(&workspace, target.as_deref(), seconds),
        Command::Tidy { layers: true, .. } => {
            print!("{}", tidy::tables());
            Ok(())
        }
        Command::Tidy { layers: false, no_docs } => tidy::run(&workspace, !no_docs),
        Command::Docs => docs::update(&workspace),
        Command::Deny { advisories } => deny::run(&workspace, advisories),
        Command::Dist => dist::run(&workspace),
        Command::Image { daemon, name } => {
            image::run(&workspace, &image::Options { daemon: daemon.as_deref(), name: name.as_deref() })
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
