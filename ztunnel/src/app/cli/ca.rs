//! `ztunnel ca`: makes, shows and uses the CA of a directory, for people.

use std::{
    fmt::Write as _,
    fs::DirBuilder,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};

use crate::{
    config::args::{CaCommand, CaInitArgs, CaIssueArgs, CaShowArgs},
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

/// A CA that ends within this time is worth a warning: replacing it takes preparation.
const SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Does what the command says.
///
/// # Errors
/// When there is no CA, one too many, or a broken one, or when files can't be written.
pub fn ca(command: &CaCommand) -> anyhow::Result<()> {
    let mut text = String::new();
    let result = answer(command, SystemTime::now(), &mut text);
    // A reader that went away (`| head`) has seen what it wanted; the exit code still tells.
    let _reader_gone = io::stdout().lock().write_all(text.as_bytes());
    result
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
    line(text, &format!("made the CA {subject} in {dir}, valid until {end}"));
    line(text, "Nodes whose workloads shall trust each other need the same directory; ca-key.pem is the secret in it.");
    Ok(())
}

fn show(args: &CaShowArgs, now: SystemTime, text: &mut String) -> anyhow::Result<()> {
    let ca = Authority::read(&args.ca_dir, &TrustDomain::default(), now);
    if let Err(error @ CaError::Absent { .. }) = ca {
        return Err(error.into());
    }
    // What can be read helps to see what is wrong with the rest.
    text.push_str(&report(&args.ca_dir, now));
    let end = ca.with_context(|| format!("the CA in {} can't be used", args.ca_dir.display()))?.not_after();
    line(text, &format!("\nThis CA can be used, until {} ({}).", rfc3339(end), left(end, now)));
    Ok(())
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
            format!("  WARNING: mode {mode:04o}, others than its owner can read it: chmod 600 {}", path.display())
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

/// What is left, in the largest unit of which there are two.
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
    let issued = ca.issue(&args.identity, Duration::from_secs(args.ttl), now)?;
    let [chain, key, roots] = pem(&issued);
    let Some(out) = &args.out else {
        text.extend([chain, key, roots]);
        return Ok(());
    };
    let in_the_way = [files::CHAIN, files::KEY, files::ROOTS].map(|name| out.join(name));
    if let Some(path) = in_the_way.iter().find(|path| path.symlink_metadata().is_ok())
        && !args.force
    {
        bail!("{} is there already: give --force to replace it, or another --out", path.display());
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
    let (names, end) = ([files::CHAIN, files::KEY, files::ROOTS].join(", "), rfc3339(issued.not_after));
    let (identity, serial) = (&issued.identity, &issued.serial);
    line(text, &format!("wrote {names} to {}: {identity}, serial {serial}, valid until {end}", out.display()));
    Ok(())
}

/// Chain, key and roots.
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
