use super::*;

use std::fs;

/// The violations that tidy finds in a small valid tree after these files were added or replaced.
fn broken(plant: &[(&str, &str)]) -> Vec<String> {
    let sound = [
        ("Cargo.toml", "[workspace]\nmembers = [\"ztunnel\"]\n[workspace.lints.clippy]\nall = \"warn\"\n"),
        ("ztunnel/Cargo.toml", "[package]\nname = \"ztunnel\"\n[lints]\nworkspace = true\n"),
        ("ztunnel/src/lib.rs", "//! Map.\npub mod flow;\npub mod model;\n"),
        ("ztunnel/src/main.rs", "//! Main.\nfn main() { ztunnel::app::run(std::env::vars()) }\n"),
        ("ztunnel/src/model.rs", "//! Model.\nmod addr;\n"),
        ("ztunnel/src/model/addr.rs", "//! Addresses.\nuse super::identity;\n"),
        ("ztunnel/src/flow.rs", "//! Flow.\nuse crate::{model::addr, store, net::dial};\nuse self::table::Table;\n"),
        ("ztunnel/src/redirect/load.rs", "//! Loading.\nuse aya::Ebpf;\n"),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in sound.iter().chain(plant) {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    check(&Tree::read(folder.path()).unwrap()).iter().map(ToString::to_string).collect()
}

/// Checks that exactly one rule is broken, and that the violation has the place and the reason.
#[track_caller]
fn breaks(path: &str, text: &str, place: &str, reason: &str) {
    let found = broken(&[(path, text)]);
    assert!(found.len() == 1 && found[0].starts_with(place) && found[0].contains(reason), "{found:#?}");
}

#[track_caller]
fn holds(path: &str, text: &str) {
    assert_eq!(broken(&[(path, text)]), Vec::<String>::new());
}

#[test]
fn this_tree_is_tidy() {
    let root = crate::workspace::manifest_folder().join("..").canonicalize().unwrap();
    let found: Vec<String> = check(&Tree::read(&root).unwrap()).iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn documents_that_programs_or_people_cannot_read_are_named() {
    breaks("docs/a.md", "| a |\n|---|\n\n| b |\n", "docs/a.md:4:", "belongs to no table");
    breaks("docs/a.md", "```yaml\na: {b\n```\n", "docs/a.md:1:", "not valid YAML");
    let found = broken(&[("docs/a.md", "`cni.b`\n"), ("deploy/helm/ztunnel/values.yaml", "cni: {a: 1}\n")]);
    assert!(found.len() == 1 && found[0].contains("`cni.b`"), "{found:#?}");
}

#[test]
fn a_sound_tree_is_sound() {
    assert_eq!(broken(&[]), Vec::<String>::new());
}

#[test]
fn an_upward_import_is_named() {
    let file = "ztunnel/src/model/addr.rs";
    breaks(
        file,
        "//! A.\nuse crate::flow::Table;\n",
        "ztunnel/src/model/addr.rs:2:",
        "upwards: model (L0) uses `crate::flow::Table` (L7)",
    );
    breaks(file, "//! A.\n\nfn f() -> super::super::flow::Table {}\n", "ztunnel/src/model/addr.rs:3:", "upwards");
    breaks(file, "//! A.\nfn f() { debug!(\"{}\", crate::flow::X) }\n", "ztunnel/src/model/addr.rs:2:", "upwards");
    breaks(
        file,
        "//! A.\n#[cfg(test)]\nmod tests {\n    use crate::flow;\n}\n",
        "ztunnel/src/model/addr.rs:4:",
        "upwards",
    );
    breaks(file, "//! A.\nuse crate::*;\n", "ztunnel/src/model/addr.rs:2:", "crate's root");
}

#[test]
fn a_sideways_import_is_named() {
    breaks("ztunnel/src/store.rs", "//! S.\nuse crate::wire;\n", "ztunnel/src/store.rs:2:", "sideways: store (L1)");
    breaks("ztunnel/src/route/tests.rs", "use crate::policy::Permit;\n", "ztunnel/src/route/tests.rs:1:", "sideways");
}

#[test]
fn a_folder_without_a_layer_is_named() {
    breaks("ztunnel/src/stuff/a.rs", "//! A.\n", "ztunnel/src/stuff/a.rs:", "no layer");
    breaks("ztunnel/src/flow.rs", "//! F.\nuse crate::stuff::A;\n", "ztunnel/src/flow.rs:2:", "no folder");
}

#[test]
fn files_that_use_each_other_are_a_circle() {
    let plant = [
        ("ztunnel/src/pods.rs", "//! P.\nmod pod;\nmod spread;\n"),
        ("ztunnel/src/pods/pod.rs", "//! P.\nuse super::spread::Spread;\npub struct Pod(Spread);\n"),
        ("ztunnel/src/pods/spread.rs", "//! S.\npub struct Spread;\n\nfn of(pod: &super::pod::Pod) {}\n"),
    ];
    let found = broken(&plant);
    let [circle] = found.as_slice() else { panic!("{found:#?}") };
    for part in [
        "ztunnel/src/pods/pod.rs:2: circle of 2 files\n",
        "ztunnel/src/pods/pod.rs:2: `crate::pods::spread::Spread` is defined in ztunnel/src/pods/spread.rs",
        "ztunnel/src/pods/spread.rs:4: `crate::pods::pod::Pod` is defined in ztunnel/src/pods/pod.rs",
        "To break it",
    ] {
        assert!(circle.contains(part), "{part:?} is not in {circle}");
    }
}

/// Tests a folder with the files mod.rs, a.rs, b.rs and so on.
fn circle(texts: &[&str]) -> Option<String> {
    let names = ["mod", "a", "b", "c"].map(|name| format!("ztunnel/src/pods/{name}.rs"));
    let texts = texts.iter().map(|text| format!("//! F.\n{text}"));
    let plant: Vec<(String, String)> = names.into_iter().zip(texts).collect();
    let plant: Vec<(&str, &str)> = plant.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let mut found = broken(&plant);
    assert!(found.len() <= 1, "{found:#?}");
    found.pop()
}

#[test]
fn the_shortest_of_several_circles_is_named() {
    let mods = "mod a;\nmod b;\nmod c;\n";
    let found = circle(&[
        mods,
        "use super::b::B;\npub struct A(B);\n",
        "use super::c::C;\npub struct B(C);\n",
        "use super::{a::A, b::B};\npub struct C(A, B);\n",
    ]);
    let found = found.unwrap();
    assert!(found.contains("b.rs:2: circle of 2 files, the shortest one among 3 files that use each other"), "{found}");
    assert!(!found.contains("a.rs"), "{found}");
}

#[test]
fn a_reexport_counts_for_the_file_that_defines() {
    let (a, b) = ("pub struct A;\nfn f(_: super::B) {}\n", "use super::a::A;\npub struct B(A);\n");
    let found = circle(&["mod a;\nmod b;\npub use b::B;\n", a, b]).unwrap();
    assert!(found.contains("a.rs:3: `crate::pods::B` is defined in ztunnel/src/pods/b.rs"), "{found}");
    // Through `*`, and through a module that is imported as a whole.
    assert!(circle(&["mod a;\nmod b;\npub use b::*;\n", a, b]).is_some());
    let through_module = "pub struct A;\nuse super::b;\nfn f(_: b::B) {}\n";
    assert!(circle(&["mod a;\nmod b;\n", through_module, b]).is_some());
}

#[test]
fn a_parent_may_declare_and_reexport_what_its_children_define() {
    let a = "use super::Common;\npub struct A(Common);\n";
    assert_eq!(circle(&["mod a;\npub use a::A;\npub struct Common;\n", a]), None);
    let found = circle(&["mod a;\npub use a::A;\npub struct Common;\nfn f() -> A { A::new() }\n", a]).unwrap();
    assert!(found.contains("mod.rs:3: `crate::pods::a::A` is defined in ztunnel/src/pods/a.rs"), "{found}");
    assert!(circle(&["mod a;\nuse a::A;\npub struct Common;\n", a]).is_some());
}

#[test]
fn tests_and_methods_make_no_circle() {
    let a = "use super::Common;\npub struct A(Common);\n";
    assert_eq!(circle(&["mod a;\npub struct Common;\n#[cfg(test)]\nmod tests {\n    use super::a::A;\n}\n", a]), None);
    assert_eq!(circle(&["mod a;\npub struct Common;\nfn f(x: X) { x.a() }\n", a]), None);
    let plant = [
        ("ztunnel/src/pods.rs", "//! P.\npub struct Common;\n#[cfg(test)]\nmod tests;\n"),
        ("ztunnel/src/pods/tests.rs", "use super::Common;\npub struct Test;\n"),
        ("ztunnel/src/pods/tests/more.rs", "//! M.\nuse super::Test;\n"),
    ];
    assert_eq!(broken(&plant), Vec::<String>::new());
}

#[test]
fn engines_stay_behind_their_fences() {
    breaks(
        "ztunnel/src/pods.rs",
        "//! P.\nuse aya::Ebpf;\n",
        "ztunnel/src/pods.rs:2:",
        "only redirect/ uses the crate `aya`",
    );
    breaks("ztunnel/src/lib.rs", "//! L.\nuse netlink_sys::Socket;\n", "ztunnel/src/lib.rs:2:", "redirect");
    breaks("ztunnel/src/flow.rs", "//! F.\nfn f() { ::h2::client::handshake() }\n", "ztunnel/src/flow.rs:2:", "hbone");
    breaks(
        "ztunnel/src/app.rs",
        "//! A.\n#[derive(granit_parser::X)]\nstruct S;\n",
        "ztunnel/src/app.rs:2:",
        "control",
    );
    breaks("ztunnel/src/hbone.rs", "//! H.\nuse rustls;\n", "ztunnel/src/hbone.rs:2:", "only tls/");
    breaks("ztunnel/src/tls.rs", "//! T.\nuse x509_parser::nom;\n", "ztunnel/src/tls.rs:2:", "only identity/");
    holds("ztunnel/src/app.rs", "//! A.\nuse hyper::Request;\nuse hyper_util::rt::TokioIo;\n");
    holds("ztunnel/src/pods.rs", "//! P.\nmod kube;\nfn f() { kube::watch() }\n");
    holds("ztunnel/src/tls.rs", "//! T.\nuse rustls::ServerConfig;\nuse rustls_pki_types::CertificateDer;\n");
}

#[test]
fn setns_stands_in_one_file() {
    breaks(
        "ztunnel/src/net/dial.rs",
        "//! D.\nuse nix::sched::setns;\n",
        "ztunnel/src/net/dial.rs:2:",
        "net/netns.rs only",
    );
    breaks(
        "ztunnel/src/net.rs",
        "//! N.\nfn f() { x!(libc::setns(1)) }\n",
        "ztunnel/src/net.rs:2:",
        "net/netns.rs only",
    );
    holds("ztunnel/src/net/netns.rs", "//! N.\nuse nix::sched::setns;\n");
    holds("ztunnel/src/net/netns/tests.rs", "use nix::sched::setns;\n");
}

#[test]
fn the_environment_is_read_by_config() {
    breaks("ztunnel/src/app.rs", "//! A.\nfn f() { std::env::var(\"A\") }\n", "ztunnel/src/app.rs:2:", "by config");
    breaks("ztunnel/src/lib.rs", "//! L.\nuse std::env::vars_os;\n", "ztunnel/src/lib.rs:2:", "by config");
    holds("ztunnel/src/config/defaults.rs", "//! D.\nfn f() { std::env::var(\"A\") }\n");
    holds("ztunnel/src/app.rs", "//! A.\nfn f() { std::env::args(); env!(\"A\") }\n");
}

#[test]
fn time_and_randomness_are_arguments_below() {
    let file = "ztunnel/src/policy.rs";
    breaks(file, "//! P.\nfn f() { Instant::now() }\n", "ztunnel/src/policy.rs:2:", "arguments");
    breaks(file, "//! P.\nfn f() { std::time::SystemTime::now() }\n", "ztunnel/src/policy.rs:2:", "arguments");
    breaks(file, "//! P.\nfn f() { rand::rng() }\n", "ztunnel/src/policy.rs:2:", "arguments");
    breaks(file, "//! P.\nfn f() { started.elapsed() }\n", "ztunnel/src/policy.rs:2:", "arguments");
    holds(file, "//! P.\nfn f(rng: &mut R, now: Instant) { now - rng.next() }\n");
    holds(file, "//! P.\n#[cfg(test)]\nmod tests {\n    fn f() { Instant::now() }\n}\n");
    holds("ztunnel/src/policy/tests.rs", "fn f() { Instant::now() }\n");
    holds("ztunnel/src/flow.rs", "//! F.\nfn f() { Instant::now() }\n");
}

#[test]
fn a_module_declared_for_tests_is_test_code() {
    let plant = [
        ("ztunnel/src/policy.rs", "//! P.\n#[cfg(test)]\nmod fixtures;\n"),
        ("ztunnel/src/policy/fixtures.rs", "//! F.\nfn f() { Instant::now() }\n"),
    ];
    assert_eq!(broken(&plant), Vec::<String>::new());
}

#[test]
fn a_missing_module_doc_is_named() {
    breaks("ztunnel/src/flow.rs", "use std::io;\n", "ztunnel/src/flow.rs:1:", "no module documentation");
    breaks("ztunnel/build.rs", "//!\nfn main() {}\n", "ztunnel/build.rs:1:", "no module documentation");
    holds("ztunnel/src/flow/tests.rs", "use super::*;\n");
}

#[test]
fn lints_that_are_not_inherited_are_named() {
    breaks("ztunnel/Cargo.toml", "[package]\nname = \"ztunnel\"\n", "ztunnel/Cargo.toml:", "not inherited");
    breaks("ztunnel/Cargo.toml", "[lints]\nworkspace = false\n", "ztunnel/Cargo.toml:", "not inherited");
    breaks("Cargo.toml", "[workspace]\nmembers = [\"ztunnel\"]\n", "Cargo.toml:", "no [workspace.lints]");
}

#[test]
fn a_path_of_one_machine_is_named() {
    let text = format!("Run {}root{}x.\n", '/', '/');
    breaks("README.md", &text, "README.md:1:", "path of one machine");
    holds("Cargo.lock", &text);
}

#[test]
fn the_tables_name_every_folder() {
    let text = tables();
    assert!(layers::LAYERS.iter().flat_map(|folders| folders.iter()).all(|folder| text.contains(folder)));
    assert!(text.contains("hickory_*") && text.contains("setns"));
}

#[test]
fn a_link_that_leads_nowhere_is_named() {
    let file = "docs/a.md";
    breaks(file, "# A\n\nsee [b](b.md)\n", "docs/a.md:3:", "the link `b.md` leads to no file: there is no docs/b.md");
    breaks(file, "[up](../none/)\n", "docs/a.md:1:", "there is no none");
    breaks(file, "# A\n[x](#b)\n", "docs/a.md:2:", "the link `#b` leads to no heading of docs/a.md");
    breaks(file, "[`code`](../README.md)\n", "docs/a.md:1:", "there is no README.md");
    holds(
        file,
        "# A b, `c_d` (e)\n\n[x](#a-b-c_d-e), [y](../Cargo.toml), [z](https://host/none), [f](../ztunnel/src)\n",
    );
    holds(file, "```\n[x](none.md)\n# no heading\n```\n`[x](none.md)`\n");
    let plant =
        [("docs/a.md", "[x](b.md#one-1) [y](b.md#two-2)\n"), ("docs/b.md", "# One\n## one\n## [Two](../Cargo.toml)\n")];
    assert_eq!(broken(&plant), ["docs/a.md:1: the link `b.md#two-2` leads to no heading of docs/b.md"]);
}

#[test]
fn a_file_that_a_document_names_must_be_there() {
    breaks("A.md", "see `model/none.rs`\n", "A.md:1:", "names the file `model/none.rs`, which does not exist");
    holds("A.md", "`model/addr.rs`, `ztunnel/src/flow.rs`, `none.rs`, `/etc/none/x.yaml`, `NAMESPACE/x`, `~/x.md`\n");
    let source = "ztunnel/src/flow.rs";
    breaks(source, "//! F. See `docs/none.md`.\n", "ztunnel/src/flow.rs:1:", "names the file `docs/none.md`");
    let plant = [(source, "//! F. See `docs/a.md`.\n"), ("docs/a.md", "# A\n")];
    assert_eq!(broken(&plant), Vec::<String>::new());
}

#[test]
fn a_test_that_a_document_names_must_be_there() {
    let tests = ("ztunnel/src/flow/tests.rs", "#[test]\nfn it_holds() {}\n");
    let other = ("ztunnel/src/flow/table.rs", "//! T.\n#[test]\nfn it_is_there() {}\n");
    let text = "x `flow/tests.rs`: `it_holds`, `it_is_gone`, `it_is_there` | `not_a_test`; `none.rs`: `it_holds`\n";
    assert_eq!(
        broken(&[tests, other, ("A.md", text)]),
        [
            "A.md:1: names the test `it_holds` of `none.rs`, which does not exist: correct the path",
            "A.md:1: names the test `it_is_gone` of `flow/tests.rs`, which does not exist: correct the name",
            "A.md:1: names the test `it_is_there` of `flow/tests.rs`, which ztunnel/src/flow/table.rs has: correct the path",
        ]
    );
}

#[test]
fn a_coined_phrase_in_a_document_is_named() {
    breaks("A.md", "# A\n\nA file that makes no sense.\n", "A.md:3:", "write, for example, \"is invalid\"");
    holds("A.md", "```\nwhom\n```\n`whom`\n");
}

#[test]
fn a_heading_on_troubleshooting_quotes_what_the_program_says() {
    let source = ("ztunnel/src/flow.rs", "//! F.\nconst M: &str = \"the map {name} \\\n    is full\";\n");
    let page = |heading: &str| broken(&[source, ("docs/troubleshooting.md", heading)]);
    assert_eq!(page("# `any`\n### `the map … is full`\n"), Vec::<String>::new());
    let found = page("### `the map … is empty`\n");
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("docs/troubleshooting.md:1: quotes \" is empty\", which no message"), "{found:?}");
}

#[test]
fn a_folder_that_the_map_leaves_out_is_named() {
    // The valid tree has the folders model and redirect, in layers 0 and 4.
    let map = |rows: &str| format!("| layer | folder | contents |\n|---|---|---|\n{rows}");
    let missing = |rows: &str, row: &str| breaks("ARCHITECTURE.md", &map(rows), "ARCHITECTURE.md:", row);
    missing("| L0 | `model` | x |\n", "no row `| L4 | `redirect` |");
    missing("| L1 | `model` | x |\n| L4 | `redirect` | x |\n", "no row `| L0 | `model`");
    holds("ARCHITECTURE.md", &map("| L0 | `model`, `x` | x |\n| L4 | `redirect` | x |\n"));
}
