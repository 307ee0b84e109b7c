use super::{LONGEST, Query, QueryError};

/// Checks the result of parsing a question: `ok`, or the beginning of the error.
fn check(from: &str, to: &str, expected: &str) {
    let got = Query::parse(from, to, "80").map_or_else(|error| error.to_string(), |_| "ok".to_owned());
    assert!(got.starts_with(expected), "{from:?} -> {to:?}: {got}");
    assert!(!got.contains(char::is_control) && got.len() < 600, "{got:?}");
}

#[test]
fn questions() {
    check("demo/a", "demo/b", "ok");
    check("10.0.0.1", "fd00::1", "ok");
    check("::ffff:10.0.0.1", "pod:demo/b", "ok");
    check("spiffe://cluster.local/ns/demo/sa/a", "service:demo/b-1.x", "ok");
    check("a", "demo/b", "ok");
    check("web.shop.svc.cluster.local.", "Web.Shop", "ok");
    check("a..b", "demo/b", "from: \"a..b\" is not a client");
    check("pod:demo/a", "demo/b", "from: \"pod:demo/a\" is not a client");
    check("spiffe://x", "demo/b", "from: \"spiffe://x\" is not spiffe://");
    check("demo/a", "b", "ok");
    check("demo/a", "b:80", "to: \"b:80\" is not a destination");
    check("demo/a", "pod:10.0.0.1", "to: \"pod:10.0.0.1\" is not a destination");
    check("demo/a", "service:", "to: \"service:\" is not a destination");
    check("demo/a", "demo/b/c", "to: ");
    check("demo/a", "10.0.0.1:80", "to: ");
    check("demo/a", "", "to: ");
    check("demo/\u{1b}[2J", "demo/b", "from: \"demo/\\u{1b}[2J\"");
    check("demo/a", "demo/\u{9b}\n", "to: \"demo/\\u{9b}\\n\"");
    check("demo/a", &format!("demo/{}", "b".repeat(LONGEST)), "to: ");
    for bad in ["0", "", "65536", "-1", "8 0", "http/1", "HTTP", &"a".repeat(64)] {
        assert!(matches!(Query::parse("demo/a", "demo/b", bad), Err(QueryError::Port)), "{bad}");
    }
    for good in ["80", "http", "tcp-9000", "3d"] {
        assert!(Query::parse("demo/a", "demo/b", good).is_ok(), "{good}");
    }
}
