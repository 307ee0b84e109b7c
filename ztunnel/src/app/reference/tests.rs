//! The reference is complete.

use std::{collections::BTreeSet, fs, path::Path};

use super::{markdown::table, metrics, parts};

fn part(name: &str) -> String {
    parts().unwrap().into_iter().find(|(other, _)| *other == name).unwrap().1
}

#[test]
fn every_part_is_a_table_that_stands_on_its_own() {
    for (name, text) in parts().unwrap() {
        assert!(text.contains("|---|"), "{name}: {text}");
        assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "{name}: {text:?}");
        // A bar in a cell would split the cell and shift the others.
        for rows in text.split("\n\n").map(str::trim).filter(|block| block.starts_with('|')) {
            let bars = |line: &str| line.replace("\\|", "").matches('|').count();
            let counts: BTreeSet<usize> = rows.lines().map(bars).collect();
            assert_eq!(counts.len(), 1, "{name}: {rows}");
        }
    }
}

#[test]
fn a_cell_keeps_its_bars_and_its_line() {
    assert_eq!(table(["a", "b"], [["x|y".to_owned(), "1\n2".to_owned()]]), "| a | b |\n|---|---|\n| x\\|y | 1 2 |\n");
}

#[test]
fn a_flag_has_its_variable_its_default_and_its_help() {
    let flags = part("flags");
    let line = |flag: &str| flags.lines().find(|line| line.starts_with(&format!("| `{flag}"))).unwrap().to_owned();
    assert!(line("--node ").contains("| `ZTUNNEL_NODE` | required | "), "{}", line("--node "));
    assert!(line("--bpf-log").contains("| `ZTUNNEL_BPF_LOG` | off | "), "{}", line("--bpf-log"));
    assert!(line("--max-pods ").contains("| `512` | "), "{}", line("--max-pods "));
    assert!(line("--log-format ").starts_with("| `--log-format text\\|json` |"), "{}", line("--log-format "));
    assert!(flags.lines().filter(|line| line.starts_with("| `")).all(|line| line.ends_with(". |")), "{flags}");
    let commands = part("commands");
    for command in ["check", "cleanup", "explain", "analyze", "ca init", "ca show", "ca issue", "version"] {
        assert!(commands.contains(&format!("### `ztunnel {command}`\n")), "{command}: {commands}");
    }
    assert!(!commands.contains("ztunnel run`"));
    let list = part("command-list");
    for (command, json) in [("run", ""), ("ready", "yes"), ("cni", ""), ("ca issue", "yes"), ("analyze", "yes")] {
        let row = list.lines().find(|line| line.starts_with(&format!("| `ztunnel {command}` |"))).unwrap();
        assert_eq!(row.ends_with("| yes |"), json == "yes", "{row}");
    }
}

#[test]
fn a_metric_has_its_type_its_unit_its_labels_and_its_help() {
    let text = "# HELP a_seconds How long it took.\n# TYPE a_seconds histogram\n\
                a_seconds_sum{way=\"in\"} 1.0\na_seconds_bucket{le=\"1\",way=\"in\"} 1\n\
                # HELP b Things.\n# TYPE b counter\nb_total{one=\"\",two=\"a,b=\"} 1\n# EOF\n";
    assert_eq!(
        metrics::of(text),
        "| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n\
         | `a_seconds` | histogram | seconds | `way` | How long it took. |\n\
         | `b_total` | counter | | `one`, `two` | Things. |\n"
    );
}

/// The names of metrics in quotes in a source file.
fn registered(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let is_name = |text: &&str| {
        ["ztunnel_", "istio_", "process_"].iter().any(|start| text.starts_with(start))
            && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    code.split('"').filter(is_name).map(ToOwned::to_owned).collect()
}

#[test]
fn every_metric_of_the_control_plane_is_in_its_table() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = ["plane/metrics.rs", "app/control_plane/exposition.rs"];
    let names: BTreeSet<String> = files.iter().flat_map(|file| registered(&source.join(file))).collect();
    assert!(names.len() > 14, "the scan finds metrics: {names:?}");
    let table = part("control-plane-metrics");
    for name in names {
        let has = |name: &str| table.contains(&format!("| `{name}` |"));
        let remedy = "have reference/metrics.rs make a series of it";
        assert!(has(&name) || has(&format!("{name}_total")), "{name} is not in the table: {remedy}");
    }
}

#[test]
fn every_metric_that_is_registered_is_in_the_table() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(source.join("metrics")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(registered(&path));
        }
    }
    assert!(names.len() > 36, "the scan finds metrics: {names:?}");
    let table = part("metrics");
    for name in names {
        let has = |name: &str| table.contains(&format!("| `{name}` |"));
        let remedy = "have reference/metrics.rs make a series of it";
        assert!(has(&name) || has(&format!("{name}_total")), "{name} is not in the table: {remedy}");
    }
    assert!(table.lines().filter(|line| line.starts_with("| `")).all(|line| line.ends_with(". |")), "{table}");
}

#[test]
fn the_document_about_faults_has_every_close_reason() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/troubleshooting.md");
    let text = fs::read_to_string(path).unwrap();
    for reason in crate::model::close::CloseReason::ALL {
        let label = reason.label();
        assert!(text.contains(&format!("`{label}`")), "docs/troubleshooting.md does not say what to do about {label}");
    }
}
