//! Fences: each third-party engine, and each dangerous call, is used in one place of the node program only.

use std::fmt::Write as _;

use proc_macro2::{Ident, TokenStream, TokenTree};

use super::Violation;
use super::layers::layer_of;
use super::references::{Reference, Target};
use super::tree::{Place, Source};

/// Crates that only some folders may name. A `*` at the end stands for any text.
struct Fence {
    crates: &'static [&'static str],
    folders: &'static [&'static str],
}

const FENCES: [Fence; 9] = [
    Fence { crates: &["aya", "aya_*", "rtnetlink", "netlink_*"], folders: &["redirect"] },
    Fence { crates: &["rustls", "tokio_rustls"], folders: &["tls"] },
    Fence { crates: &["x509_parser"], folders: &["identity"] },
    Fence { crates: &["h2"], folders: &["hbone", "plane"] },
    Fence { crates: &["prost", "prost_*"], folders: &["istio", "control", "plane"] },
    Fence { crates: &["tonic", "tonic_*"], folders: &["istio", "control"] },
    Fence { crates: &["kube", "kube_*", "k8s_openapi", "granit_parser"], folders: &["control"] },
    Fence { crates: &["hickory_*"], folders: &["dns"] },
    Fence { crates: &["hyper", "hyper_util", "http_body_util"], folders: &["control", "app"] },
];

/// The highest layer that has no clock and no random numbers of its own and gets both as arguments.
const PURE_UP_TO: usize = 2;

pub(super) fn table() -> String {
    let mut text = String::from("Fences of ztunnel/src: named in one place only.\n");
    let mut line = |what: &str, place: &str| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "  {place:<17} {what}");
    };
    for fence in &FENCES {
        let folders: Vec<String> = fence.folders.iter().map(|folder| format!("{folder}/")).collect();
        line(&fence.crates.join(", "), &folders.join(", "));
    }
    line("setns", "net/netns.rs");
    line("std::env::var, var_os, vars, vars_os", "config/, main.rs");
    line("Instant::now, SystemTime::now, elapsed(), rng(): there or above, tests excepted", "L3");
    text
}

pub(super) fn check(source: &Source, place: &Place, references: &[Reference]) -> Vec<Violation> {
    let violation = |line, why| Violation { file: source.path.clone(), line, why };
    let mut violations = Vec::new();
    for reference in references {
        let rules = [engine(place, reference), environment(source, place, reference), clock(place, reference)];
        violations.extend(rules.into_iter().flatten().map(|why| violation(reference.line, why)));
    }
    if !place.module.starts_with(&["net".to_owned(), "netns".to_owned()]) {
        let text: TokenStream = source.text.parse().unwrap_or_default();
        let why = "`setns` stands in net/netns.rs only, whose guard restores the namespace or aborts";
        idents(text, &mut |ident| {
            if ident == "setns" {
                violations.push(violation(ident.span().start().line, why.to_owned()));
            }
        });
    }
    violations
}

fn engine(place: &Place, reference: &Reference) -> Option<String> {
    let Target::Other(path) = &reference.target else {
        return None;
    };
    let name = path.first()?;
    let is_named = |pattern: &&str| pattern.strip_suffix('*').map_or(name == pattern, |start| name.starts_with(start));
    let fence = FENCES.iter().find(|fence| fence.crates.iter().any(is_named))?;
    let here = place.folder().unwrap_or("main.rs or lib.rs");
    let folders = fence.folders.join("/, ");
    (!fence.folders.contains(&here)).then(|| format!("fence: only {folders}/ uses the crate `{name}`, not {here}"))
}

fn environment(source: &Source, place: &Place, reference: &Reference) -> Option<String> {
    let Target::Other(path) = &reference.target else {
        return None;
    };
    let [.., module, item] = path.as_slice() else {
        return None;
    };
    let is_read = module == "env" && item.starts_with("var");
    let is_allowed = place.folder() == Some("config") || source.path.ends_with("src/main.rs");
    (is_read && !is_allowed).then(|| format!("`env::{item}`: the environment is read once, by config"))
}

fn clock(place: &Place, reference: &Reference) -> Option<String> {
    let layer = layer_of(place.folder()?)?;
    if layer > PURE_UP_TO || reference.is_test {
        return None;
    }
    let what = match &reference.target {
        Target::Other(path) => {
            let names: Vec<&str> = path.iter().map(String::as_str).collect();
            let is_impure =
                matches!(names.as_slice(), [.., "Instant" | "SystemTime", "now"] | [_, .., "rng" | "thread_rng"]);
            is_impure.then(|| names.join("::"))?
        }
        Target::Method(name) if name == "elapsed" => "elapsed()".to_owned(),
        Target::Method(_) | Target::Name(_) | Target::Own(_) => return None,
    };
    Some(format!("`{what}`: in layers 0 to {PURE_UP_TO} time and randomness are arguments"))
}

fn idents(tokens: TokenStream, found: &mut impl FnMut(&Ident)) {
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => found(&ident),
            TokenTree::Group(group) => idents(group.stream(), found),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}
