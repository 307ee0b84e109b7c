mod findings;
mod published;

use std::path::Path;

use clap::Parser as _;

use super::*;
use crate::config::args::{Args, Command};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: demo, labels: {app: p}}\nspec: {nodeName: n, \
                   containers: []}\nstatus: {podIP: 10.0.0.1}\n";

fn parsed(words: &[&str]) -> AnalyzeArgs {
    let line = [&["ztunnel", "analyze"], words].concat();
    let Command::Analyze(args) = Args::try_parse_from(line).unwrap().command else { panic!("another command") };
    args
}

/// The exit code, standard output and standard error.
fn asked(words: &[&str], input: &str) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = answer(&parsed(words), input.as_bytes(), Style::default(), &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// The exit code and standard output for a folder with one file.
fn run(manifests: &str, more: &[&str]) -> (u8, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mesh.yaml"), manifests).unwrap();
    let path = dir.path().to_str().unwrap();
    let (code, out, err) = asked(&[&["--mesh", path], more].concat(), "");
    (code, out + &err)
}

fn service(selector: &str) -> String {
    format!(
        "{POD}---\napiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: demo}}\nspec: {{clusterIP: 10.96.0.9, selector: \
         {{app: {selector}}}, ports: [{{port: 80}}]}}\n"
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
                "mesh.yaml:7: warning[unmatched-selector]: Service demo/s: spec.selector app=q matches no pod: the \
                 service has no endpoints",
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
fn a_terminal_s_width_and_colours_are_used() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mesh.yaml"), service("q")).unwrap();
    let args = parsed(&[dir.path().to_str().unwrap()]);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let style = Style { width: Some(60), colours: true };
    assert_eq!(answer(&args, b"", style, &mut out, &mut err), 0);
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("\u{1b}[1;33mwarning\u{1b}[0m[unmatched-selector]"), "{text:?}");
    let plain = text.replace("\u{1b}[1;33m", "").replace("\u{1b}[1;34m", "").replace("\u{1b}[0m", "");
    assert!(plain.lines().all(|line| line.len() <= 60 || !line.trim().contains(' ')), "{plain}");
}

#[test]
fn nothing_to_analyze_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    for (words, input) in
        [(&["--mesh", path][..], ""), (&[path], ""), (&["-"], "# nothing\n---\n"), (&["/nowhere/at/all"], "")]
    {
        let (code, out, err) = asked(words, input);
        assert_eq!((code, out.as_str()), (2, ""), "{words:?}");
        assert!(err.starts_with("ztunnel: cannot ") && err.contains(words.last().unwrap()), "{err}");
        let (code, out, err) = asked(&[words, &["-o", "json"]].concat(), input);
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, err.as_str(), &json["schemaVersion"]), (2, "", &1.into()));
        assert!(json["error"].as_str().unwrap().starts_with("cannot "), "{json}");
    }
    // Kinds without a meaning for the mesh are manifests as well.
    let (code, out, _) = asked(&["-"], "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}");
    assert_eq!((code, out.as_str()), (0, "0 errors, 0 warnings, 0 infos\n"));
}

#[test]
fn files_folders_and_standard_input_are_read_together() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    write("folder/deep/pod.yaml", POD);
    write("folder/.hidden/broken.yaml", "kind: [");
    let one = write("service.txt", service("q").split("---\n").nth(1).unwrap());
    let folder = dir.path().join("folder").display().to_string();
    let input = "{apiVersion: v1, kind: Service, metadata: {name: other, namespace: demo}, spec: {selector: {app: r}}}";
    let (code, out, err) = asked(&[&folder, &one, "-"], input);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    for place in [
        "service.txt:1: warning[unmatched-selector]: Service demo/s",
        "(standard input):1: warning[unmatched-selector]",
    ] {
        assert!(out.contains(place), "{out}");
    }
    // Without the other input, the only finding of the folder is that its pod is outside the mesh.
    let (_, out, _) = asked(&[&folder], "");
    assert!(out.ends_with("0 errors, 0 warnings, 1 info\n"), "{out}");
    assert!(Args::try_parse_from(["ztunnel", "analyze"]).is_err(), "nothing is given");
}

#[test]
fn json_has_findings_and_counts() {
    let (code, text) = run(&service("q"), &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &json["errors"], &json["warnings"], &json["infos"]), (0, &0.into(), &1.into(), &1.into()));
    assert_eq!((&json["schemaVersion"], &json["suppressed"], &json["objects"]), (&1.into(), &0.into(), &2.into()));
    let expected = serde_json::json!({
        "severity": "warning",
        "code": "unmatched-selector",
        "object": "Service demo/s",
        "file": "mesh.yaml",
        "line": 7,
        "message": "spec.selector app=q matches no pod: the service has no endpoints",
        "remedy": "no pod has app: q; is app: p meant?",
    });
    assert_eq!(json["findings"][0], expected);
}

#[test]
fn findings_are_suppressed_by_code_and_object() {
    let manifests = service("q");
    let lines = |more: &[&str]| run(&manifests, more).1;
    for pattern in ["unmatched-selector", "unmatched-selector=Service/demo/*", "unmatched-selector=*/s"] {
        let text = lines(&["--ignore", pattern]);
        assert!(
            !text.contains("unmatched-selector") && text.ends_with("0 warnings, 1 info (1 suppressed)\n"),
            "{text}"
        );
    }
    let other = lines(&["--ignore", "unmatched-selector=Service/other/*", "--ignore", "empty-mesh"]);
    assert!(other.contains("unmatched-selector") && other.ends_with("1 warning, 0 infos (1 suppressed)\n"), "{other}");
    let wrong = Args::try_parse_from(["ztunnel", "analyze", "m", "--ignore", "unmatched-selectr"]).unwrap_err();
    assert!(wrong.to_string().contains("is unmatched-selector meant?"), "{wrong}");

    let annotated = |codes: &str| {
        manifests.replace(
            "metadata: {name: s,",
            &format!("metadata: {{annotations: {{traffic.ambient.mesh/analyze-ignore: '{codes}'}}, name: s,"),
        )
    };
    for codes in ["unmatched-selector", "no-strict, unmatched-selector", "*"] {
        let (_, text) = run(&annotated(codes), &[]);
        assert!(!text.contains("unmatched-selector") && text.contains("(1 suppressed)"), "{text}");
    }
    let (_, text) = run(&annotated("unmatched-selectr"), &[]);
    assert!(
        text.contains("warning[unknown-code]: Service demo/s") && text.contains("is unmatched-selector meant?"),
        "{text}"
    );
    assert!(text.contains("warning[unmatched-selector]"), "{text}");
}

#[test]
fn the_exit_code_has_a_threshold() {
    let warning = service("q");
    for (fail_on, expected) in [("error", 0), ("warning", 1), ("info", 1), ("never", 0)] {
        assert_eq!(run(&warning, &["--fail-on", fail_on]).0, expected, "{fail_on}");
        let error = if fail_on == "never" { 0 } else { 1 };
        assert_eq!(run("kind: [", &["--fail-on", fail_on]).0, error, "{fail_on}");
    }
    assert_eq!(run(&warning, &["--fail-on", "warning", "--ignore", "unmatched-selector"]).0, 0);
}

#[test]
fn all_codes_are_listed() {
    let (code, out, _) = asked(&["--list-codes"], "");
    assert!(code == 0 && out.contains("unmatched-selector (warning): A selector matches no pod."), "{out}");
    let (_, out, _) = asked(&["--list-codes", "-o", "json"], "");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["codes"].as_array().unwrap().len(), Code::ALL.len());
    assert_eq!(json["codes"][0]["code"], Code::ALL[0].code());
}

#[test]
fn an_error_fails_and_a_folder_that_is_not_there_can_t_be_told() {
    assert_eq!(run("kind: [", &[]).0, 1);
    let (code, out, err) = asked(&["--mesh", "/nowhere/at/all"], "");
    assert!(code == 2 && out.is_empty() && err.contains("/nowhere/at/all"), "{err}");
    assert!(is_stdin(Path::new("-")) && !is_stdin(Path::new("./-")));
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

/// Rendered manifests often contain no namespace, because kubectl sets it.
#[test]
fn objects_without_a_namespace_are_in_the_given_one() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: p}}\nspec: {containers: []}\nstatus: {podIP: 10.0.0.1}\n";
    let policy = |namespace: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a{namespace}}}\nspec: {{selector: \
             {{matchLabels: {{app: p}}}}, rules: [{{from: [{{source: {{namespaces: [shop]}}}}]}}]}}\n"
        )
    };
    let shop =
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n";
    let found = |words: &[&str], input: &str| {
        let (code, out, err) = asked(words, input);
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        out
    };
    for namespace in ["", ", namespace: ''", ", namespace: ~"] {
        let input = format!("{pod}{}{shop}", policy(namespace));
        let told = found(&["-n", "shop", "-"], &input);
        assert!(!told.contains("[empty-mesh]") && told.ends_with("\n0 errors, 0 warnings, 1 info\n"), "{told}");
        assert!(found(&["-"], &input).contains("[empty-mesh]"));
    }
    // A namespace that an object names is kept.
    let input = format!("{pod}{}{shop}", policy(", namespace: other"));
    let told = found(&["--namespace", "shop", "-"], &input);
    assert!(told.contains("[unknown-namespace]: AuthorizationPolicy other/a"), "{told}");
    // The same for pod templates.
    let template = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {template: {metadata: {labels: {app: q}}, \
                    spec: {containers: []}}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: q, namespace: shop}\nspec: \
                    {clusterIP: 10.96.0.9, selector: {app: q}, ports: [{port: 80}]}\n";
    let input = format!("{pod}{template}{shop}");
    assert!(!found(&["-n", "shop", "-"], &input).contains("[unmatched-selector]"));
    assert!(found(&["-"], &input).contains("[unmatched-selector]"));
}

#[test]
fn a_namespace_must_be_one() {
    let error = Args::try_parse_from(["ztunnel", "analyze", "-n", "Shop", "-"]).unwrap_err().to_string();
    assert!(error.contains("is not a Kubernetes name"), "{error}");
}

/// On Kubernetes the node finds the network namespaces of its pods. Only manifests for machines without Kubernetes name them.
#[test]
fn network_namespaces_are_missed_only_where_they_are_named() {
    let pod = |name: &str, rest: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{istio.io/dataplane-mode: ambient}}{rest}}}\n\
             spec: {{nodeName: n, containers: []}}\nstatus: {{podIP: 10.0.0.{}}}\n",
            name.len()
        )
    };
    let of_cluster = pod("a", "");
    assert!(!asked(&["-"], &of_cluster).1.contains("[pod-refused]"));
    let named = pod("bb", ", annotations: {ambient.mesh/netns: /run/netns/bb}");
    assert!(asked(&["-"], &(of_cluster.clone() + &named)).1.contains("[pod-refused]: Pod shop/a"));
    assert!(run(&of_cluster, &[]).1.contains("[pod-refused]: Pod shop/a"));
}
