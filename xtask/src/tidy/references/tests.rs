use super::*;

/// The paths that a file of module `net::netns` names, in order, as text.
fn named(text: &str) -> Vec<String> {
    let module = ["net".to_owned(), "netns".to_owned()];
    let show = |reference: Reference| match reference.target {
        Target::Own(path) => format!("own {}", path.join("::")).trim_end().to_owned(),
        Target::Other(path) => path.join("::"),
        Target::Method(name) => format!(".{name}"),
    };
    of(&syn::parse_file(text).unwrap(), &module, false).into_iter().map(show).collect()
}

#[test]
fn use_trees_are_flattened() {
    assert_eq!(named("use crate::{flow::Table, net::{self, dial}};"), ["own flow::Table", "own net", "own net::dial"]);
    assert_eq!(named("use crate::flow::*; use crate as c;"), ["own flow", "own"]);
    assert_eq!(named("pub use ::aya::Ebpf as E; use rustls;"), ["aya::Ebpf", "rustls"]);
}

#[test]
fn relative_paths_are_resolved() {
    assert_eq!(named("use super::dial; use super::super::flow::Table;"), ["own net::dial", "own flow::Table"]);
    assert_eq!(named("mod kube; fn f() { kube::watch() }"), ["own net::netns::kube::watch"]);
    assert_eq!(named("mod inner { use super::super::dial; }"), ["own net::dial"]);
    assert_eq!(named("use ztunnel::flow;"), ["own flow"]);
}

#[test]
fn code_attributes_and_macros_are_seen() {
    assert_eq!(named("fn f(x: crate::flow::A) -> impl crate::tls::B {}"), ["own flow::A", "own tls::B"]);
    assert_eq!(named("#[tokio::main] fn f() {}"), ["tokio::main"]);
    assert_eq!(named("fn f() { p!(\"{}\", a, crate::flow::X, b) }"), ["own flow::X"]);
    assert_eq!(named("m! { use crate::{flow::X, tls}; h2::client() }"), ["own flow::X", "own tls", "h2::client"]);
    assert_eq!(named("macro_rules! m { () => { $crate::flow::X } }"), ["own flow::X"]);
    assert_eq!(named("#[derive(a::B)] struct S;"), ["a::B"]);
    assert_eq!(named("fn f() { started.elapsed(); }"), [".elapsed"]);
}

#[test]
fn text_and_visibility_name_nothing() {
    assert!(named("/// [`crate::flow`]\nfn f() { \"crate::flow\"; }").is_empty());
    assert!(named("pub(in crate::net) struct S;").is_empty());
    assert!(named("fn f(x: T, y: &str) { if a::<b>() {} m!(a: b) }").is_empty());
}

#[test]
fn lines_and_test_code_are_known() {
    let text = "use a::b;\n#[cfg(test)]\nmod tests {\n    use c::d;\n}\n#[test]\nfn t() {\n    e::f();\n}\n";
    let facts: Vec<_> = of(&syn::parse_file(text).unwrap(), &[], false).iter().map(|r| (r.line, r.is_test)).collect();
    assert_eq!(facts, [(1, false), (4, true), (8, true)]);
}

#[test]
fn a_condition_that_only_mentions_test_is_not_a_test() {
    let is_test = |text: &str| match syn::parse_file(text).unwrap().items.first() {
        Some(item) => is_test_only(attributes(item)),
        None => panic!("no item"),
    };
    assert!(is_test("#[cfg(all(test, unix))] mod a;"));
    assert!(!is_test("#[cfg(not(test))] mod a;"));
    assert!(!is_test("#[cfg(any(test, unix))] mod a;"));
}
