//! The commands of the documents answer as the documents say.

use std::{fs, path::Path};

use clap::Parser as _;

use super::{Style, answer, folder};
use crate::config::{Args, Command};

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The blocks of YAML of a document that have this text.
fn yaml(document: &str, text: &str) -> Vec<String> {
    let blocks = document.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.filter(|block| block.contains(text)).map(ToOwned::to_owned).collect()
}

#[test]
fn the_first_policy_decides_as_the_page_says() {
    let (install, page) = (document("install.md"), document("policy.md"));
    let (pods, policies) = (yaml(&install, "kind: Pod"), yaml(&page, "kind: AuthorizationPolicy"));
    assert_eq!((pods.len(), policies.len()), (1, 1), "{pods:?} {policies:?}");
    let dry_run = r#", annotations: {istio.io/dry-run: "true"}"#;
    assert_eq!(policies[0].matches(dry_run).count(), 2, "{policies:?}");
    let enforced = policies[0].replace(dry_run, "");
    let strict = yaml(&page, "kind: PeerAuthentication");
    let mut files = vec![("pods.yaml", pods[0].as_str()), ("policies.yaml", enforced.as_str())];
    files.extend(strict.iter().map(|text| ("strict.yaml", text.as_str())));
    let folder = folder(&files);
    let commands: Vec<&str> = page.lines().filter(|line| line.starts_with("ztunnel explain --mesh")).collect();
    assert_eq!(commands.len(), 2, "{commands:?}");
    for command in commands {
        let (words, said) = command.split_once('#').unwrap();
        let words = words.replace("/etc/ztunnel/mesh", &folder.path().display().to_string());
        let Command::Explain(args) = Args::try_parse_from(words.split_whitespace()).unwrap().command else {
            panic!("{command}");
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = answer(&args, Style::default(), &mut out, &mut err);
        let shown = String::from_utf8(out).unwrap();
        let verdict = shown.split(':').next().unwrap();
        assert_eq!(
            format!(" {verdict}, exit code {code}"),
            said,
            "{command}\n{shown}{}",
            String::from_utf8_lossy(&err)
        );
    }
}
