use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, SystemTime},
};

use clap::Parser as _;

use super::{answer, left, report, show};
use crate::{
    config::{
        Args, Command,
        commands::{CaCommand, CaShowArgs, Output},
    },
    identity::{files::CertFiles, local_ca::layout, source::CertSource as _},
    lifecycle::tasks::TaskCount,
};

/// The output of the command, or its error.
fn run(words: &[&str]) -> Result<String, String> {
    let args = Args::try_parse_from(["ztunnel", "ca"].iter().chain(words)).map_err(|error| error.to_string())?;
    let Command::Ca(command) = args.command else { panic!("{words:?}") };
    let mut text = String::new();
    answer(&command, SystemTime::now(), &mut text).map_err(|error| format!("{error:#}"))?;
    Ok(text)
}

fn made(parent: &Path) -> String {
    let dir = parent.join("ca").display().to_string();
    run(&["init", "--ca-dir", &dir, "--trust-domain", "example.org", "--ttl-days", "100"]).unwrap();
    dir
}

#[test]
fn a_ca_is_made_once_and_shown() {
    let parent = tempfile::tempdir().unwrap();
    let dir = made(parent.path());
    assert!(run(&["init", "--ca-dir", &dir]).unwrap_err().contains("there is a CA in"));
    let text = run(&["show", "--ca-dir", &dir]).unwrap();
    for said in [
        "O=example.org",
        "itself",
        "serial",
        "(99 days left)",
        "EC P-256",
        "the same as ca-cert.pem",
        "only its owner",
        "This CA can be used, until 2",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let print = text.lines().find_map(|line| line.trim().strip_prefix("SHA-256")).unwrap();
    assert_eq!(print.trim().split(':').count(), 32, "{print}");
    assert!(!text.contains("WARNING"), "{text}");
}

#[test]
fn what_is_wrong_is_shown_beside_what_is_right() {
    let parent = tempfile::tempdir().unwrap();
    let missing = parent.path().join("none").display().to_string();
    assert!(run(&["show", "--ca-dir", &missing]).unwrap_err().contains("ztunnel ca init"));
    let dir = made(parent.path());
    let (path, now) = (Path::new(&dir), SystemTime::now());
    fs::write(path.join(layout::ROOTS), "nothing").unwrap();
    fs::set_permissions(path.join(layout::KEY), fs::Permissions::from_mode(0o644)).unwrap();
    let error = run(&["show", "--ca-dir", &dir]).unwrap_err();
    assert!(error.contains("can't be used") && error.contains("root-cert.pem holds no certificate"), "{error}");
    let text = report(path, now + Duration::from_secs(99 * 86_400));
    for said in ["O=example.org", "ERROR: ", "it ends soon", "mode 0644", "chmod 600"] {
        assert!(text.contains(said), "{said}: {text}");
    }
    fs::remove_file(path.join(layout::KEY)).unwrap();
    let text = report(path, now);
    assert!(text.contains("ERROR: No such file") && !text.contains("only its owner"), "{text}");
    let dir = made(&parent.path().join("another"));
    let path = Path::new(&dir);
    let (args, mut text) = (CaShowArgs { ca_dir: path.to_owned(), output: Output::Text }, String::new());
    let late = show(&args, now + Duration::from_secs(101 * 86_400), &mut text).unwrap_err();
    assert!(format!("{late:#}").contains("ca-cert.pem can't be used: it has expired at"), "{late:#}");
    assert!(text.contains("(expired)"), "{text}");
}

#[tokio::test]
async fn what_is_issued_is_what_cert_dir_takes() {
    let parent = tempfile::tempdir().unwrap();
    let dir = made(parent.path());
    let out = parent.path().join("out");
    let name = out.display().to_string();
    let id = "spiffe://example.org/ns/default/sa/web";
    let issue = ["issue", "--ca-dir", &dir, "--identity", id, "--ttl", "600", "--out", &name];
    run(&issue).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&out), mode(&out.join("key.pem"))), (0o700, 0o600));
    let source = CertFiles::open(out.clone(), TaskCount::default());
    let first = source.issue(&id.parse().unwrap()).await.unwrap();
    let rest = first.not_after.duration_since(SystemTime::now()).unwrap().as_secs();
    assert!((500..=600).contains(&rest), "{rest}");
    let before = fs::read(out.join("key.pem")).unwrap();
    assert!(run(&issue).unwrap_err().contains("--force"));
    assert_eq!(fs::read(out.join("key.pem")).unwrap(), before);
    run(&[&issue[..], &["--force"]].concat()).unwrap();
    assert_ne!(source.issue(&id.parse().unwrap()).await.unwrap().serial, first.serial);
    let text = run(&["issue", "--ca-dir", &dir, "--identity", id]).unwrap();
    assert_eq!(text.matches("-----BEGIN CERTIFICATE-----").count(), 2, "the leaf and the root");
    assert_eq!(text.matches("-----BEGIN PRIVATE KEY-----").count(), 1);
    let none = parent.path().join("none").display().to_string();
    assert!(run(&["issue", "--ca-dir", &none, "--identity", id]).unwrap_err().contains("ztunnel ca init"));
    assert!(!Path::new(&none).exists());
}

#[test]
fn flags_that_make_no_sense_are_refused() {
    for words in [
        vec!["init"],
        vec!["init", "--ca-dir", "d", "--ttl-days", "0"],
        vec!["init", "--ca-dir", "d", "--trust-domain", "UPPER"],
        vec!["issue", "--ca-dir", "d", "--identity", "https://a/ns/b/sa/c"],
        vec!["issue", "--ca-dir", "d", "--identity", "spiffe://a/ns/b/sa/c", "--ttl", "0"],
        vec!["issue", "--ca-dir", "d", "--identity", "spiffe://a/ns/b/sa/c", "--force"],
    ] {
        let parsed = Args::try_parse_from(["ztunnel", "ca"].iter().chain(&words));
        assert!(parsed.is_err(), "{words:?}");
    }
    let shown = Args::try_parse_from(["ztunnel", "ca", "show", "--ca-dir", "d"]).unwrap();
    assert!(matches!(shown.command, Command::Ca(CaCommand::Show(_))));
}

#[test]
fn what_is_left_is_told_in_a_fitting_unit() {
    let now = SystemTime::now();
    for (seconds, said) in [
        (0, "0 seconds left"),
        (119, "119 seconds left"),
        (120, "2 minutes left"),
        (7_200, "2 hours left"),
        (172_799, "47 hours left"),
        (172_800, "2 days left"),
    ] {
        assert_eq!(left(now + Duration::from_secs(seconds), now), said);
    }
    assert_eq!(left(now - Duration::from_secs(1), now), "expired");
}
