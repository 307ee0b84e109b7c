use super::*;

/// The paths with at least two names in a file of module `net::netns`, in order, as text.
fn named(text: &str) -> Vec<String> {
    let module = ["net".to_owned(), "netns".to_owned()];
    let show = |reference: Reference| match reference.target {
        Target::Own(path) => Some(format!("own {}", path.join("::")).trim_end().to_owned()),
        Target::Other(path) => Some(path.join("::")),
        Target::Method(name) => Some(format!(".{name}")),
        Target::Name(_) => None,
    };
    of(&syn::parse_file(text).unwrap(), &module, false).into_iter().filter_map(show).collect()
}

/// The single names, in order.
fn short(text: &str) -> Vec<String> {
    let name = |reference: Reference| if let Target::Name(name) = reference.target { Some(name) } else { None };
    of(&syn::parse_file(text).unwrap(), &[], false).into_iter().filter_map(name).collect()
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
fn names_alone_are_seen_in_code_and_macros() {
    assert_eq!(short("fn f(x: Leg) -> Vec<Leg> { m!(Hop, a::b, [Way]) }"), ["Leg", "Vec", "Leg", "Hop", "Way", "m"]);
    assert!(short("use crate::{Leg, Hop};").is_empty());
}

#[test]
fn imports_know_their_name_and_whether_they_reexport() {
    let text = "use a::b;\npub(crate) use a::{c as d, self};\nmod inner {\n    use super::*;\n}\n";
    let facts = |reference: Reference| {
        let Import { name, is_reexport } = reference.import?;
        Some((reference.module.join("::"), name.unwrap_or_else(|| "*".to_owned()), is_reexport))
    };
    let found: Vec<_> = of(&syn::parse_file(text).unwrap(), &[], false).into_iter().filter_map(facts).collect();
    let expected = [("", "b", false), ("", "d", true), ("", "a", true), ("inner", "*", false)];
    assert_eq!(found, expected.map(|(module, name, reexport)| (module.to_owned(), name.to_owned(), reexport)));
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
    let found = of(&syn::parse_file(text).unwrap(), &[], false);
    let long = found.iter().filter(|reference| !matches!(reference.target, Target::Name(_)));
    let facts: Vec<_> = long.map(|reference| (reference.line, reference.is_test)).collect();
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
