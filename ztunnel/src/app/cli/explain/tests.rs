mod agreement;
mod documents;
mod explained;
mod hosts;
mod outside;
mod workload_entries;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    path::Path,
    thread::{self, JoinHandle},
};

use clap::Parser as _;

use super::{super::output::Style, answer};
use crate::{
    config::{Args, Command, commands::ExplainArgs},
    explain::Explanation,
};

fn args(words: &[&str]) -> ExplainArgs {
    let words = ["ztunnel", "explain", "--port=80"].iter().chain(words);
    match Args::try_parse_from(words).unwrap().command {
        Command::Explain(args) => args,
        other => panic!("{other:?}"),
    }
}

/// The exit code, standard output and standard error.
fn run(words: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = answer(&args(words), Style::default(), &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

const MESH: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: demo, name: a, annotations: {ambient.mesh/netns: /n}}, spec: {serviceAccountName: a, containers: []}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: demo, name: b, annotations: {ambient.mesh/netns: /n}}, spec: {containers: []}, status: {podIP: 10.0.0.2}}
";

const DENY: &str =
    "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: demo, name: all}, spec: {}}";

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn mesh(dir: &Path) -> String {
    format!("--mesh={}", dir.display())
}

#[test]
fn the_exit_code_tells_the_verdict() {
    let open = folder(&[("mesh.yaml", MESH)]);
    let (code, out, err) = run(&[&mesh(open.path()), "--from=demo/a", "--to=demo/b"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.starts_with("ALLOWED: demo/a -> demo/b, port 80\n"), "{out}");

    let closed = folder(&[("mesh.yaml", MESH), ("policy.yaml", DENY)]);
    let (code, out, err) = run(&[&mesh(closed.path()), "--from=demo/a", "--to=demo/b", "-o", "json"]);
    assert_eq!((code, err.as_str()), (3, ""), "{out}");
    let explanation: Explanation = serde_json::from_str(&out).unwrap();
    assert!(!explanation.is_allowed() && explanation.reason == "no ALLOW policy matched: demo/all", "{out}");

    for (from, to, said) in [
        ("demo/c", "demo/b", "the mesh has no Pod demo/c; namespace demo has a, b"),
        ("demo/a", "demo/c", "the mesh has no Pod or Service demo/c"),
        ("a\u{1b}[2J", "demo/b", "from: \"a\\u{1b}[2J\" is not a client"),
    ] {
        let (code, out, err) = run(&[&mesh(open.path()), &format!("--from={from}"), &format!("--to={to}")]);
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert!(err.starts_with("ztunnel: ") && err.contains(said) && !err.contains('\u{1b}'), "{err}");
    }
    let (code, _, err) = run(&["--mesh=/nowhere/at all", "--from=demo/a", "--to=demo/b"]);
    assert!(code == 2 && err.contains("correct --mesh"), "{err}");
}

#[test]
fn what_could_never_be_read_is_told_and_keeps_out() {
    let broken = folder(&[("mesh.yaml", MESH), ("policy.yaml", &DENY.replace("spec: {}", "spec: {rulez: []}"))]);
    let (code, out, _) = run(&[&mesh(broken.path()), "--from=demo/a", "--to=demo/b"]);
    assert_eq!(code, 3, "{out}");
    // Only the policy is missing: all addresses are known.
    assert!(!out.contains("the mesh is PARTIAL") && out.contains("policy.yaml"), "{out}");
    assert!(out.contains("repair"), "{out}");
    let broken = folder(&[("mesh.yaml", MESH), ("more.yaml", "kind: [")]);
    let (code, out, _) = run(&[&mesh(broken.path()), "--from=demo/a", "--to=10.9.9.9"]);
    assert!(code == 3 && out.contains("the mesh is PARTIAL") && out.contains("more.yaml"), "{code} {out}");
}

#[test]
fn a_reader_that_went_away_changes_nothing() {
    struct Gone;
    impl std::io::Write for Gone {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let open = folder(&[("mesh.yaml", MESH)]);
    let words = [&*mesh(open.path()), "--from=demo/a", "--to=demo/b"];
    assert_eq!(answer(&args(&words), Style::default(), &mut Gone, &mut Gone), 0);
    let words = [&*mesh(open.path()), "--from=demo/a", "--to=demo/x"];
    assert_eq!(answer(&args(&words), Style::default(), &mut Gone, &mut Gone), 2);
}

/// Answers one request with these bytes, and returns the first line of the request.
fn server(answer: String) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let served = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
        while !request.ends_with(b"\r\n\r\n") {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0);
            request.extend_from_slice(&buffer[..count]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(request).unwrap().lines().next().unwrap().to_owned()
    });
    (address, served)
}

/// Checks the exit code and the output of the command for an answer.
fn check(answer: String, code: u8, said: &str) {
    let (address, served) = server(answer);
    let identity = "--from=spiffe://cluster.local/ns/demo/sa/a";
    let (got, out, err) = run(&[&format!("--admin={address}"), identity, "--to=service:demo/b"]);
    let request = served.join().unwrap();
    assert_eq!(request, "GET /explain?from=spiffe://cluster.local/ns/demo/sa/a&to=service:demo/b&port=80 HTTP/1.1");
    assert_eq!(got, code, "{out}{err}");
    assert!(out.contains(said) || err.contains(said), "{out}{err}");
    assert!(!(out + &err).contains('\u{1b}'));
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn a_daemon_is_asked_and_what_is_none_is_told() {
    let closed = folder(&[("mesh.yaml", MESH), ("policy.yaml", DENY)]);
    let (_, json, _) = run(&[&mesh(closed.path()), "--from=demo/a", "--to=demo/b", "-o=json"]);
    check(http("200 OK", &json), 3, "DENIED: demo/a -> demo/b, port 80");
    check(format!("HTTP/1.0 200 OK\r\n\r\n{json}"), 3, "no ALLOW policy matched: demo/all");
    check(http("200 OK", &json.replace("demo/b", "demo/\\u001b[2J")), 3, "demo/\\u{1b}[2J");
    check(http("200 OK", "{}"), 2, "has another shape");
    check(http("400 Bad Request", "to: the mesh has no Service demo/b\u{1b}[2J\n"), 2, "no Service demo/b\\u{1b}[2J");
    check(http("404 Not Found", "no"), 2, "give the address of --admin");
    check("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), 2, "does not answer in HTTP");
    check(String::new(), 2, "does not answer in HTTP");
    check("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{".to_owned(), 2, "the answer can't be read");
}

#[test]
fn where_no_daemon_is_it_says_what_to_do() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (code, out, err) = run(&[&format!("--admin={address}"), "--from=demo/a", "--to=demo/b"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains(&format!("cannot ask a daemon at {address}: is one running there?")), "{err}");
    assert!(err.contains("refused"), "{err}");
}
