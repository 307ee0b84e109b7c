//! `ztunnel ca`: creates, shows and uses the CA in a directory.

use std::{
    fmt::Write as _,
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};

use serde::Serialize;

use super::output::{json, print, print_error};
use crate::{
    config::commands::{CaCommand, CaInitArgs, CaIssueArgs, CaShowArgs, Output},
    identity::{
        Credentials,
        certificate::{self, Certificate, key_to_pem, rfc3339, to_pem},
        disk, files,
        local_ca::{
            CaError,
            authority::Authority,
            create::{self, NewCa},
            layout,
        },
    },
    model::{cause::causes, identity::TrustDomain},
};

/// A warning is printed if the CA expires within this time: replacing it takes preparation.
const SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Runs the command and prints the result. It fails if the CA is missing, exists already or is invalid, or if files can't be
/// written.
#[must_use]
pub fn ca(command: &CaCommand) -> ExitCode {
    let mut text = String::new();
    let result = answer(command, SystemTime::now(), &mut text);
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    print(&mut out, &text);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The description of the authority already contains the fault.
        Err(_) if command.output() == Output::Json && !text.is_empty() => ExitCode::FAILURE,
        Err(error) => {
            print_error(command.output(), &format!("{error:#}"), &mut out, &mut err);
            ExitCode::FAILURE
        }
    }
}

fn answer(command: &CaCommand, now: SystemTime, text: &mut String) -> anyhow::Result<()> {
    match command {
        CaCommand::Init(args) => init(args, now, text),
        CaCommand::Show(args) => show(args, now, text),
        CaCommand::Issue(args) => issue(args, now, text),
    }
}

fn init(args: &CaInitArgs, now: SystemTime, text: &mut String) -> anyhow::Result<()> {
    let ttl = Duration::from_secs(u64::from(args.ttl_days) * 24 * 60 * 60);
    create::init(&args.ca_dir, &NewCa { trust_domain: args.trust_domain.clone(), ttl })?;
    let made = Authority::read(&args.ca_dir, &args.trust_domain, now)?;
    let (subject, dir, end) = (&made.certificate.subject, args.ca_dir.display(), rfc3339(made.not_after()));
    if args.output == Output::Json {
        text.push_str(&json(&Made { directory: dir.to_string(), subject: subject.clone(), not_after: end }));
        return Ok(());
    }
    line(text, &format!("made the CA {subject} in {dir}, valid until {end}"));
    line(text, "Nodes whose workloads trust each other need the same directory; keep ca-key.pem in it secret.");
    Ok(())
}

fn show(args: &CaShowArgs, now: SystemTime, text: &mut String) -> anyhow::Result<()> {
    let ca = Authority::read(&args.ca_dir, &TrustDomain::default(), now);
    if let Err(error @ CaError::Absent { .. }) = ca {
        return Err(error.into());
    }
    if args.output == Output::Json {
        let shown = Shown::of(&args.ca_dir, now, ca.as_ref());
        text.push_str(&json(&shown));
        return ca.map(drop).with_context(|| format!("the CA in {} can't be used", args.ca_dir.display()));
    }
    // The readable files help to find the fault of the others, so the report comes before the error.
    text.push_str(&report(&args.ca_dir, now));
    let end = ca.with_context(|| format!("the CA in {} can't be used", args.ca_dir.display()))?.not_after();
    line(text, &format!("\nThis CA can be used, until {} ({}).", rfc3339(end), left(end, now)));
    Ok(())
}

/// A new authority, for JSON output.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    directory: String,
    subject: String,
    not_after: String,
}

/// An issued certificate, for JSON output. It contains the PEM texts if no files were written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Issued {
    identity: String,
    serial: String,
    not_after: String,
    directory: Option<String>,
    cert_chain: Option<String>,
    key: Option<String>,
    root_cert: Option<String>,
}

/// An authority, for JSON output.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    directory: String,
    usable: bool,
    /// The expiry of the authority.
    not_after: Option<String>,
    /// Why the authority can't be used.
    error: Option<String>,
    files: Vec<ShownFile>,
    key: ShownKey,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownFile {
    name: &'static str,
    error: Option<String>,
    certificates: Vec<ShownCertificate>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownCertificate {
    subject: String,
    issuer: String,
    serial: String,
    not_before: String,
    not_after: String,
    key_type: String,
    sha256: String,
    is_ca: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownKey {
    name: &'static str,
    /// The permissions in octal, such as `0600`.
    mode: Option<String>,
    error: Option<String>,
}

impl Shown {
    fn of(dir: &Path, now: SystemTime, ca: Result<&Authority, &CaError>) -> Self {
        let file = |name: &'static str| match certificate::read_certificates(&dir.join(name)) {
            Ok(found) => {
                ShownFile { name, error: None, certificates: found.iter().map(ShownCertificate::of).collect() }
            }
            Err(error) => ShownFile { name, error: Some(causes(&error)), certificates: Vec::new() },
        };
        let mode = layout::key_mode(dir);
        Self {
            directory: dir.display().to_string(),
            usable: ca.is_ok_and(|ca| ca.not_after() > now),
            not_after: ca.ok().map(|ca| rfc3339(ca.not_after())),
            error: ca.err().map(|error| causes(error)),
            files: [layout::CERTIFICATE, layout::CHAIN, layout::ROOTS].map(file).into(),
            key: ShownKey {
                name: layout::KEY,
                mode: mode.as_ref().ok().map(|mode| format!("{mode:04o}")),
                error: mode.err().map(|error| error.to_string()),
            },
        }
    }
}

impl ShownCertificate {
    fn of(certificate: &Certificate) -> Self {
        Self {
            subject: certificate.subject.clone(),
            issuer: certificate.issuer.clone(),
            serial: certificate.serial.clone(),
            not_before: rfc3339(certificate.not_before),
            not_after: rfc3339(certificate.not_after),
            key_type: certificate.key_type.to_string(),
            sha256: certificate.fingerprint(),
            is_ca: certificate.is_ca,
        }
    }
}

/// All files, as far as they can be read.
fn report(dir: &Path, now: SystemTime) -> String {
    let mut text = format!("CA in {}\n", dir.display());
    let mut shown: Vec<(String, Certificate)> = Vec::new();
    for name in [layout::CERTIFICATE, layout::CHAIN, layout::ROOTS] {
        let path = dir.join(name);
        let found = match certificate::read_certificates(&path) {
            Ok(found) => found,
            Err(error) => {
                line(&mut text, &format!("\n{name}\n  ERROR: {}", causes(&error)));
                continue;
            }
        };
        let count = found.len();
        for (index, certificate) in found.into_iter().enumerate() {
            let title = if count == 1 { name.to_owned() } else { format!("{name}, {} of {count}", index + 1) };
            match shown.iter().find(|(_, known)| *known == certificate) {
                Some((known, _)) => line(&mut text, &format!("\n{title}\n  the same as {known}")),
                None => {
                    line(&mut text, &format!("\n{title}\n{}", describe(&certificate, now)));
                    shown.push((title, certificate));
                }
            }
        }
    }
    line(&mut text, &format!("\n{}", layout::KEY));
    let key = match layout::key_mode(dir) {
        Err(error) => format!("  ERROR: {error}"),
        Ok(mode) if mode & 0o077 == 0 => "  only its owner can read it".to_owned(),
        Ok(mode) => {
            let path = dir.join(layout::KEY);
            format!(
                "  WARNING: mode {mode:04o}, users other than its owner can read it: run chmod 600 {}",
                path.display()
            )
        }
    };
    line(&mut text, &key);
    text
}

fn describe(certificate: &Certificate, now: SystemTime) -> String {
    let issuer = if certificate.is_self_issued() { "itself" } else { &certificate.issuer };
    let purpose = if certificate.is_ca { "" } else { "\n  WARNING      may not sign certificates" };
    let end = certificate.not_after;
    let warning = match end.duration_since(now) {
        Ok(rest) if rest > SOON => "",
        Ok(_) => "\n  WARNING      it ends soon",
        Err(_) => "\n  WARNING      it has expired",
    };
    format!(
        "  subject      {}\n  issuer       {issuer}\n  serial       {}\n  valid        {} to {} ({})\n  key          {}\n  \
         SHA-256      {}{purpose}{warning}",
        certificate.subject,
        certificate.serial,
        rfc3339(certificate.not_before),
        rfc3339(end),
        left(end, now),
        certificate.key_type,
        certificate.fingerprint(),
    )
}

/// The remaining time, in the largest unit of which at least two remain.
fn left(end: SystemTime, now: SystemTime) -> String {
    let Ok(rest) = end.duration_since(now) else {
        return "expired".to_owned();
    };
    let seconds = rest.as_secs();
    match [(86_400, "days"), (3_600, "hours"), (60, "minutes")].into_iter().find(|(unit, _)| seconds >= 2 * unit) {
        Some((unit, name)) => format!("{} {name} left", seconds / unit),
        None => format!("{seconds} seconds left"),
    }
}

fn issue(args: &CaIssueArgs, now: SystemTime, text: &mut String) -> anyhow::Result<()> {
    let ca = Authority::read(&args.ca_dir, &args.identity.trust_domain, now)?;
    let issued = ca.issue(&args.identity, args.ttl.duration(), now)?;
    let [chain, key, roots] = pem(&issued);
    let told = |directory: Option<String>, pem: Option<[String; 3]>| {
        let [cert_chain, key, root_cert] = pem.map_or_else(Default::default, |pem| pem.map(Some));
        json(&Issued {
            identity: issued.identity.to_string(),
            serial: issued.serial.clone(),
            not_after: rfc3339(issued.not_after),
            directory,
            cert_chain,
            key,
            root_cert,
        })
    };
    let Some(out) = &args.out else {
        if args.output == Output::Json {
            text.push_str(&told(None, Some([chain, key, roots])));
            return Ok(());
        }
        text.extend([chain, key, roots]);
        return Ok(());
    };
    let in_the_way = [files::CHAIN, files::KEY, files::ROOTS].map(|name| out.join(name));
    if let Some(path) = in_the_way.iter().find(|path| path.symlink_metadata().is_ok())
        && !args.force
    {
        bail!("{} exists: give --force to replace it, or another --out", path.display());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(out)
        .with_context(|| format!("cannot make the directory {}", out.display()))?;
    for (name, content, mode) in [(files::ROOTS, roots, 0o644), (files::CHAIN, chain, 0o644), (files::KEY, key, 0o600)]
    {
        disk::write(out, name, content.as_bytes(), mode)
            .with_context(|| format!("cannot write {}", out.join(name).display()))?;
    }
    if args.output == Output::Json {
        text.push_str(&told(Some(out.display().to_string()), None));
        return Ok(());
    }
    let (names, end) = ([files::CHAIN, files::KEY, files::ROOTS].join(", "), rfc3339(issued.not_after));
    let (identity, serial) = (&issued.identity, &issued.serial);
    line(text, &format!("wrote {names} to {}: {identity}, serial {serial}, valid until {end}", out.display()));
    Ok(())
}

/// Chain, key and roots, each as PEM.
fn pem(issued: &Credentials) -> [String; 3] {
    let bundle = |ders: &[rustls_pki_types::CertificateDer<'_>]| ders.iter().map(to_pem).collect::<String>();
    [bundle(&issued.chain), key_to_pem(&issued.key), bundle(&issued.roots)]
}

fn line(text: &mut String, line: &str) {
    // Writing to a string can't fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests;
