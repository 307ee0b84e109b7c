//! Which PeerAuthentication takes precedence.

use super::fixture::{check, snapshot, web};
use crate::policy::authentication;

const PLAIN: &str = "- 10.0.1.1 80";

fn strict(by: &str) -> String {
    format!("PeerAuthentication {by}: STRICT, and the client has no identity")
}

#[test]
fn strict_is_for_clients_without_identity() {
    check("PA demo/default STRICT", PLAIN, &strict("demo/default"));
    check("PA demo/default STRICT", "cluster.local/ns/demo/sa/client 10.0.1.1 80", "allowed");
    check("PA demo/default PERMISSIVE", PLAIN, "allowed");
    check("PA demo/default DISABLE", PLAIN, "allowed");
    check("PA demo/default UNSET", PLAIN, "allowed");
    check("PA prod/default STRICT", PLAIN, "allowed");
    check("PA demo/default STRICT\nDENY demo/d: *\nALLOW demo/a", PLAIN, &strict("demo/default"));
}

#[test]
fn the_closest_level_decides_and_unset_inherits() {
    check("PA istio-system/default STRICT", PLAIN, &strict("istio-system/default"));
    check("PA istio-system/default STRICT\nPA demo/default PERMISSIVE", PLAIN, "allowed");
    check("PA istio-system/default STRICT\nPA demo/default UNSET", PLAIN, &strict("istio-system/default"));
    check("PA demo/default STRICT\nPA demo/web PERMISSIVE @app=web", PLAIN, "allowed");
    check("PA demo/default STRICT\nPA demo/api PERMISSIVE @app=api", PLAIN, &strict("demo/default"));
    check("PA demo/default STRICT\nPA demo/web UNSET @app=web", PLAIN, &strict("demo/default"));
    check("PA istio-system/default STRICT\nPA demo/web UNSET @app=web", PLAIN, &strict("istio-system/default"));
    check("PA istio-system/default PERMISSIVE\nPA demo/web STRICT @app=web,tier=front", PLAIN, &strict("demo/web"));
    check("PA istio-system/web STRICT @app=web", PLAIN, "allowed");
    check("PA prod/web STRICT @app=web", PLAIN, "allowed");
}

#[test]
fn of_one_level_the_oldest_counts_then_the_first_by_name() {
    check("PA demo/a PERMISSIVE created=2\nPA demo/b STRICT created=1", PLAIN, &strict("demo/b"));
    check("PA demo/a PERMISSIVE created=1\nPA demo/b STRICT created=1", PLAIN, "allowed");
    check("PA demo/a PERMISSIVE created=1\nPA demo/b STRICT", PLAIN, &strict("demo/b"));
    check("PA demo/a STRICT\nPA demo/b PERMISSIVE", PLAIN, &strict("demo/a"));
    check("PA istio-system/a STRICT created=1\nPA istio-system/b PERMISSIVE", PLAIN, "allowed");
    check("PA demo/w STRICT @app=web\nPA demo/x PERMISSIVE @tier=front", PLAIN, &strict("demo/w"));
    check(
        "PA istio-system/m STRICT\nPA demo/a UNSET created=1\nPA demo/b PERMISSIVE created=2",
        PLAIN,
        &strict("istio-system/m"),
    );
}

#[test]
fn ports_have_their_own_mode() {
    let mesh = "PA demo/web STRICT @app=web 8080=PERMISSIVE 8081=DISABLE 8082=UNSET";
    check(mesh, PLAIN, &strict("demo/web"));
    check(mesh, "- 10.0.1.1 8080", "allowed");
    check(mesh, "- 10.0.1.1 8081", "allowed");
    check(mesh, "- 10.0.1.1 8082", &strict("demo/web"));
    let mesh = "PA demo/default PERMISSIVE\nPA demo/web UNSET @app=web 8080=STRICT";
    check(mesh, PLAIN, "allowed");
    check(mesh, "- 10.0.1.1 8080", &strict("demo/web, portLevelMtls[8080]"));
}

fn considered(mesh: &str, port: u16, expected: &str) {
    let found = authentication(&snapshot(mesh), &web(), port);
    let from = found.from.map_or_else(|| "nobody".to_owned(), |name| name.to_string());
    let by_port = found.port.map(|port| format!("[{port}]")).unwrap_or_default();
    let mut lines = vec![format!("{} from {from}{by_port}", found.mode.name())];
    let told = found.considered.iter().map(|one| format!("{} {}: {}", one.level, one.policy.name, one.counts));
    lines.extend(told);
    assert_eq!(lines.join("\n"), expected.replace("\n        ", "\n"), "\n{mesh}");
}

#[test]
fn every_policy_says_whether_it_counts() {
    considered("", 80, "PERMISSIVE from nobody");
    let mesh = "PA istio-system/default STRICT
        PA istio-system/odd STRICT @app=web
        PA demo/default UNSET
        PA demo/late STRICT created=5
        PA demo/api PERMISSIVE @app=api
        PA demo/web UNSET @app=web 8080=PERMISSIVE
        PA prod/default STRICT";
    considered(
        mesh,
        80,
        "STRICT from istio-system/default
        mesh istio-system/default: decides
        namespace demo/default: sets no mode (UNSET): the larger scope decides
        namespace demo/late: is ignored: demo/default is older, or comes first by name
        workload demo/api: does not apply: the pod has no label app=api
        workload demo/web: sets no mode (UNSET): the larger scope decides
        workload istio-system/odd: is ignored: it has a selector and is in the root namespace",
    );
    considered(
        mesh,
        8080,
        "PERMISSIVE from demo/web[8080]
        mesh istio-system/default: overridden by demo/web
        namespace demo/default: sets no mode (UNSET): the larger scope decides
        namespace demo/late: is ignored: demo/default is older, or comes first by name
        workload demo/api: does not apply: the pod has no label app=api
        workload demo/web: decides
        workload istio-system/odd: is ignored: it has a selector and is in the root namespace",
    );
}
