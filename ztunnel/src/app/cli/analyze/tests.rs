mod findings;

use clap::Parser as _;

use super::*;
use crate::config::args::{Args, Command};

const POD: &str =
    "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: demo, labels: {app: p}}\nspec: {containers: []}\n";

/// Exit code and what is printed of a folder with one file.
fn run(manifests: &str, more: &[&str]) -> (u8, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mesh.yaml"), manifests).unwrap();
    let path = dir.path().to_str().unwrap();
    let line = [&["ztunnel", "analyze", "--mesh", path], more].concat();
    let Command::Analyze(args) = Args::parse_from(line).command else { panic!("another command") };
    let mut text = String::new();
    (answer(&args, &mut text), text)
}

fn service(selector: &str) -> String {
    format!(
        "{POD}---\napiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: demo}}\nspec: {{selector: {{app: \
         {selector}}}, ports: [{{port: 80}}]}}\n"
    )
}

#[test]
fn text_is_like_a_compiler_s() {
    let (code, text) = run(&service("q"), &[]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        (code, lines.as_slice()),
        (
            0,
            [
                "mesh.yaml:6: warning[unmatched-selector]: Service demo/s: spec.selector app=q matches no pod: the service \
                 leads nowhere",
                "  remedy: no pod has app: q; is app: p meant?",
                "info[empty-mesh]: no pod is in the mesh: nothing is enforced, and nothing is encrypted",
                "  remedy: label the namespace, or the pod, istio.io/dataplane-mode: ambient",
                "",
                "0 errors, 1 warning, 1 info",
            ]
            .as_slice()
        )
    );
}

#[test]
fn nothing_found_is_said() {
    assert_eq!(run("", &[]), (0, "0 errors, 0 warnings, 0 infos\n".to_owned()));
}

#[test]
fn json_has_findings_and_counts() {
    let (code, text) = run(&service("q"), &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &json["errors"], &json["warnings"], &json["infos"]), (0, &0.into(), &1.into(), &1.into()));
    let expected = serde_json::json!({
        "severity": "warning",
        "code": "unmatched-selector",
        "object": "Service demo/s",
        "file": "mesh.yaml",
        "line": 6,
        "message": "spec.selector app=q matches no pod: the service leads nowhere",
        "remedy": "no pod has app: q; is app: p meant?",
    });
    assert_eq!(json["findings"][0], expected);
}

#[test]
fn an_error_fails_and_a_folder_that_is_not_there_can_t_be_told() {
    assert_eq!(run("kind: [", &[]).0, 1);
    let Command::Analyze(args) = Args::parse_from(["ztunnel", "analyze", "--mesh", "/nowhere/at/all"]).command else {
        panic!("another command")
    };
    let mut text = String::new();
    assert_eq!((answer(&args, &mut text), text.as_str()), (2, ""));
}

#[test]
fn a_terminal_gets_no_control_characters() {
    for letter in ["\\e[31m", "\\u009b31m", "\\u007f", "\\u202e"] {
        for output in ["text", "json"] {
            let (_, text) = run(&service(&format!("\"x{letter}\"")), &["-o", output]);
            let is_plain = |letter: char| letter == '\n' || !letter.is_control();
            assert!(text.contains("unmatched-selector") && text.chars().all(is_plain), "{letter} {output} {text}");
        }
    }
}
