//! `ztunnel bug-report`: one archive with the state of the daemon and of this machine, without keys and tokens.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use serde::Serialize;
use tar::{Builder, Header};

use super::{ask, check, output::json, redact::redacted};
use crate::{
    app::admin::{CONFIG_DUMP, LOGGING, METRICS, STATUS},
    config::{commands::Output, live::BugReportArgs, version},
};

/// The largest part of a log that is added, in bytes: its end.
const LARGEST_LOG: u64 = 64 << 20;
/// The folder in the archive.
const FOLDER: &str = "ztunnel-bug-report";

/// The endpoints of a daemon that are read, and the names of their files.
const ENDPOINTS: [(&str, &str); 5] = [
    (STATUS, "status.json"),
    (CONFIG_DUMP, "config_dump.json"),
    (METRICS, "metrics.txt"),
    (LOGGING, "log-levels.txt"),
    ("/healthz/ready", "ready.txt"),
];

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    archive: String,
    files: Vec<String>,
    /// What could not be read.
    errors: Vec<String>,
}

/// A file of the archive.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    text: String,
}

/// Writes the archive, and returns the text of the result.
///
/// # Errors
/// If the archive cannot be written. What cannot be read is told in the archive.
pub(super) fn bug_report(args: &BugReportArgs) -> anyhow::Result<String> {
    let out = args.out.display();
    // It shows which workloads communicate, so only its owner may read it.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.out);
    let file = file.with_context(|| format!("cannot create the archive {out}; --out names another one"))?;
    let (mut entries, mut errors) = of_daemon(args);
    entries.push(Entry { name: "version.txt".to_owned(), text: format!("ztunnel {}\n", version::long()) });
    entries.push(Entry { name: "check.json".to_owned(), text: check::machine(&args.bpf_pin) });
    entries.extend(of_system());
    if let Some(path) = &args.log {
        match log(path) {
            Ok(text) => entries.push(Entry { name: "log.txt".to_owned(), text }),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    if !errors.is_empty() {
        entries.push(Entry { name: "errors.txt".to_owned(), text: errors.join("\n") + "\n" });
    }
    let written = write(io::BufWriter::new(file), &entries);
    written.with_context(|| format!("cannot write the archive {out}"))?;
    let files = entries.into_iter().map(|entry| entry.name).collect();
    let report = Report { archive: out.to_string(), files, errors };
    Ok(match args.output {
        Output::Json => json(&report),
        Output::Text => told(&report),
    })
}

fn told(report: &Report) -> String {
    let mut text = format!(
        "{} has {} files: {}\nKeys and tokens are removed. It still tells names, addresses and identities of the mesh: look at it before \
         you pass it on.\n",
        report.archive,
        report.files.len(),
        report.files.join(", ")
    );
    for error in &report.errors {
        text.push_str(&format!("not read: {}\n", crate::explain::printable(error)));
    }
    text
}

/// What the daemon tells, and the errors.
fn of_daemon(args: &BugReportArgs) -> (Vec<Entry>, Vec<String>) {
    let (mut entries, mut errors) = (Vec::new(), Vec::new());
    for (path, name) in ENDPOINTS {
        // The readiness endpoint answers 503 with the reason.
        match ask::ask(args.admin, hyper::Method::GET, path) {
            Ok(answer) => {
                let text = String::from_utf8_lossy(&answer.body);
                let status = answer.status;
                let head = if status == hyper::StatusCode::OK { String::new() } else { format!("status {status}\n") };
                entries.push(Entry { name: name.to_owned(), text: redacted(&(head + &text)) });
            }
            Err(error) => errors.push(format!("{path}: {error:#}")),
        }
    }
    (entries, errors)
}

/// Facts about the machine. What it does not have is left out.
fn of_system() -> Vec<Entry> {
    let files = [
        ("/proc/version", "kernel.txt"),
        ("/proc/meminfo", "meminfo.txt"),
        ("/proc/pressure/memory", "pressure-memory.txt"),
        ("/proc/pressure/cpu", "pressure-cpu.txt"),
        ("/proc/net/sockstat", "sockstat.txt"),
        ("/etc/os-release", "os-release.txt"),
    ];
    let read = |(path, name): (&str, &str)| Some(Entry { name: name.to_owned(), text: fs::read_to_string(path).ok()? });
    files.into_iter().filter_map(read).collect()
}

/// The end of a log, without secrets.
fn log(path: &Path) -> anyhow::Result<String> {
    let name = path.display();
    let mut text = Vec::new();
    if path == Path::new("-") {
        let read = io::stdin().lock().take(LARGEST_LOG).read_to_end(&mut text);
        read.context("cannot read the log from standard input")?;
    } else {
        let mut file = fs::File::open(path).with_context(|| format!("cannot read the log {name}"))?;
        let length = file.metadata().with_context(|| format!("cannot read the log {name}"))?.len();
        let skipped = length.saturating_sub(LARGEST_LOG);
        io::Seek::seek(&mut file, io::SeekFrom::Start(skipped))
            .with_context(|| format!("cannot read the log {name}"))?;
        file.take(LARGEST_LOG).read_to_end(&mut text).with_context(|| format!("cannot read the log {name}"))?;
    }
    Ok(redacted(&String::from_utf8_lossy(&text)))
}

fn write(to: impl Write, entries: &[Entry]) -> io::Result<()> {
    let mut archive = Builder::new(to);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for Entry { name, text } in entries {
        let mut header = Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        archive.append_data(&mut header, format!("{FOLDER}/{name}"), text.as_bytes())?;
    }
    archive.into_inner()?.flush()
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read as _, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path};

    use serde_json::Value;
    use tar::Archive;

    use super::{FOLDER, bug_report};
    use crate::{
        app::cli::ask::tests::{answering, http},
        config::{commands::Output, defaults, live::BugReportArgs},
    };

    const SECRETS: [&str; 3] = ["MIGHAgEAMBMG", "c2lnbmF0dXJlLW9mLXRoZS10b2tlbg", "hunter2"];

    fn daemon() -> SocketAddr {
        answering(|request| match request.split(' ').nth(1).unwrap() {
            "/status" => http("200 OK", "{\"node\": \"node-a\"}"),
            "/config_dump" => http(
                "200 OK",
                "{\"key\": \"-----BEGIN PRIVATE KEY-----\\nMIGHAgEAMBMG\\n-----END PRIVATE KEY-----\", \"pods\": []}",
            ),
            "/metrics" => http("200 OK", "ztunnel_ready 1\n"),
            "/healthz/ready" => http("503 Service Unavailable", "not ready, pending: mesh\n"),
            _ => String::new(),
        })
    }

    fn args(dir: &Path, admin: SocketAddr, output: Output) -> BugReportArgs {
        BugReportArgs {
            admin,
            out: dir.join("report.tar"),
            log: Some(dir.join("log")),
            bpf_pin: defaults::BPF_PIN.into(),
            output,
        }
    }

    fn files(archive: &Path) -> Vec<(String, String)> {
        let mut archive = Archive::new(fs::File::open(archive).unwrap());
        let read = |entry: std::io::Result<tar::Entry<'_, fs::File>>| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (entry.path().unwrap().strip_prefix(FOLDER).unwrap().display().to_string(), text)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn the_archive_has_everything_but_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let log = "info\tconnection complete\ntoken eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ6dHVubmVsIn0.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg\n\
                   password=hunter2\n";
        fs::write(dir.path().join("log"), log).unwrap();
        let args = args(dir.path(), daemon(), Output::Text);
        let told = bug_report(&args).unwrap();
        let files = files(&args.out);
        let text =
            |name: &str| &files.iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("{name}: {told}")).1;
        for secret in SECRETS {
            assert!(files.iter().all(|(_, text)| !text.contains(secret)), "{secret}");
        }
        assert!(text("config_dump.json").contains("\"key\": \"[removed]\", \"pods\": []"));
        assert!(text("log.txt").contains("connection complete") && text("log.txt").contains("password=[removed]"));
        assert_eq!(text("ready.txt"), "status 503 Service Unavailable\nnot ready, pending: mesh\n");
        assert!(text("version.txt").starts_with("ztunnel 0.") && text("kernel.txt").contains("Linux"));
        assert!(serde_json::from_str::<Value>(text("check.json")).unwrap()["requirements"].is_array());
        assert!(text("errors.txt").starts_with("/logging: cannot ask a daemon"), "{}", text("errors.txt"));
        assert!(told.contains("Keys and tokens are removed.") && told.contains("not read: /logging"), "{told}");
        assert_eq!(fs::metadata(&args.out).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_archive_is_not_replaced_and_a_missing_log_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let args = args(dir.path(), daemon(), Output::Json);
        let json: Value = serde_json::from_str(&bug_report(&args).unwrap()).unwrap();
        assert_eq!(json["schemaVersion"], 1);
        let errors = json["errors"].to_string();
        assert!(errors.contains("cannot read the log"), "{errors}");
        let error = format!("{:#}", bug_report(&args).unwrap_err());
        assert!(error.contains("cannot create the archive") && error.contains("--out"), "{error}");
    }
}
