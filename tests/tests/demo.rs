//! The demo shows the expected results and leaves nothing behind.
//!
//! The names of the demo are fixed, so this is a single test. It fails while a demo runs or was kept.

use std::path::Path;

use anyhow::{Result, ensure};
use ztunnel_tests::demo::{DemoOptions, run};
use ztunnel_tests::names::{BPF_ROOT, DEMO, FOLDER_ROOT};
use ztunnel_tests::netns::FOLDER;
use ztunnel_tests::settings;

/// All names that begin with the prefix of the demo.
fn left() -> Vec<String> {
    let names = |folder: &str| {
        let entries = std::fs::read_dir(Path::new(folder)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let all = [FOLDER, BPF_ROOT, FOLDER_ROOT].into_iter().flat_map(names);
    all.filter(|name| name.starts_with(DEMO)).collect()
}

#[test]
fn the_demo_runs_is_kept_and_is_cleaned() -> Result<()> {
    let options = DemoOptions { keep: false, clean: false, control_plane: false, ztunnel: settings::daemon_binary()? };
    run(&options)?;
    ensure!(left().is_empty(), "the demo left {:?}", left());
    // With a control plane, so that a control plane is kept and removed as well.
    let kept = run(&DemoOptions { keep: true, control_plane: true, ..options.clone() });
    let second = run(&options);
    let there = left();
    run(&DemoOptions { clean: true, ..options })?;
    kept?;
    ensure!(second.is_err_and(|error| error.to_string().contains("--clean")), "a second demo ran over the kept one");
    ensure!(!there.is_empty(), "the demo was not kept");
    ensure!(left().is_empty(), "the cleaning left {:?}", left());
    Ok(())
}
