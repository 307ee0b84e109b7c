//! `ztunnel policies`: the policies in force on this node, as they were written.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    ask,
    output::json,
    table::{Table, list, text},
};
use crate::{
    app::admin::CONFIG_DUMP,
    config::live::{ListArgs, View},
    explain::printable,
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    node: String,
    policy_details: Details,
}

#[derive(Debug, Deserialize, Serialize)]
struct Details {
    authorization: Vec<Value>,
    authentication: Vec<Value>,
    unread: Value,
}

#[derive(Debug, Serialize)]
struct Policies {
    node: String,
    #[serde(flatten)]
    policies: Details,
}

/// The text of the command.
///
/// # Errors
/// If no daemon answers.
pub(super) fn policies(args: &ListArgs) -> anyhow::Result<String> {
    let answer: Answer = ask::json(args.daemon.admin, &format!("{CONFIG_DUMP}?only=policyDetails"))?;
    let Answer { node, policy_details: mut policies } = answer;
    let is_wanted = |policy: &Value| args.namespace.as_ref().is_none_or(|wanted| text(policy, "namespace") == wanted);
    policies.authorization.retain(is_wanted);
    policies.authentication.retain(is_wanted);
    if args.daemon.output == View::Json {
        return Ok(json(&Policies { node, policies }));
    }
    let columns = ["KIND", "NAMESPACE", "NAME", "ACTION", "SCOPE", "RULES"];
    let mut table = Table::new(&columns, &["ORIGIN"], args.daemon.output == View::Wide);
    let authorization = policies.authorization.iter().map(|policy| ("AuthorizationPolicy", policy));
    for (kind, policy) in
        authorization.chain(policies.authentication.iter().map(|policy| ("PeerAuthentication", policy)))
    {
        table.row([
            kind.to_owned(),
            text(policy, "namespace").to_owned(),
            text(policy, "name").to_owned(),
            action(policy),
            scope(policy),
            rules(policy),
            origin(policy),
        ]);
    }
    Ok(table.text("no policies: every connection is allowed") + &unread(&policies.unread))
}

fn action(policy: &Value) -> String {
    match policy.get("dryRun").and_then(Value::as_bool) {
        Some(true) => format!("{} (dry run)", text(policy, "action")),
        Some(false) => text(policy, "action").to_owned(),
        None => text(policy, "mode").to_owned(),
    }
}

/// The ports with modes of their own, or the number of rules. An ALLOW policy without rules allows nothing.
fn rules(policy: &Value) -> String {
    if let Some(ports) = policy.get("ports").and_then(Value::as_object) {
        let ports = ports.iter().map(|(port, mode)| format!("{port}={}", mode.as_str().unwrap_or_default()));
        return ports.collect::<Vec<_>>().join(",");
    }
    list(policy, "rules").count().to_string()
}

fn scope(policy: &Value) -> String {
    match policy.get("scope") {
        Some(Value::String(mesh)) => mesh.clone(),
        Some(Value::Object(scope)) => match scope.iter().next() {
            Some((kind, Value::String(name))) => format!("{kind} {name}"),
            Some((_, selector @ Value::Object(_))) => {
                let labels = selector.get("labels").and_then(Value::as_object).into_iter().flatten();
                let labels = labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
                labels.collect::<Vec<_>>().join(",")
            }
            Some((kind, Value::Array(names))) => {
                let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
                format!("{kind} {}", names.join(","))
            }
            _ => String::new(),
        },
        _ => String::new(),
    }
}

fn origin(policy: &Value) -> String {
    match (text(policy, "file"), policy.get("line").and_then(Value::as_u64)) {
        ("", _) => text(policy, "origin").to_owned(),
        (file, Some(line)) => format!("{file}:{line}"),
        (file, None) => file.to_owned(),
    }
}

/// Policies that could never be read, which close pods.
fn unread(unread: &Value) -> String {
    let closed = |what: &str, source: &str| {
        let (what, source) = (printable(what), printable(source));
        format!("\nNOT READ: {source} has never been valid, so connections to pods of {what} are denied\n")
    };
    let mut lines = String::new();
    if let Some(source) = unread.get("anywhere").and_then(Value::as_str) {
        lines.push_str(&closed("all namespaces", source));
    }
    for (namespace, source) in unread.get("namespaces").and_then(Value::as_object).into_iter().flatten() {
        lines.push_str(&closed(&format!("namespace {namespace}"), source.as_str().unwrap_or_default()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::policies;
    use crate::{
        app::cli::{
            ask::tests::{answering, http},
            pods::tests::list,
        },
        config::live::View,
    };

    #[test]
    fn policies_have_their_kind_scope_and_origin() {
        let details = json!({
            "authorization": [
                {"namespace": "demo", "name": "allow", "file": "p.yaml", "line": 3, "action": "ALLOW", "dryRun": false,
                 "scope": {"selector": {"namespace": "demo", "labels": {"app": "web", "tier": "1"}}}, "rules": [{}, {}]},
                {"namespace": "istio-system", "name": "all", "origin": "AuthorizationPolicy istio-system/all", "action": "DENY",
                 "dryRun": true, "scope": "mesh", "rules": []},
                {"namespace": "demo", "name": "svc", "action": "DENY", "dryRun": false,
                 "scope": {"services": ["demo/web"]}, "rules": [{}]},
            ],
            "authentication": [{"namespace": "demo", "name": "strict", "file": "p.yaml", "scope": {"namespace": "demo"},
                                "mode": "STRICT", "ports": {"80": "PERMISSIVE"}}],
            "unread": {"anywhere": null, "namespaces": {"prod": "prod.yaml"}},
        });
        let body = json!({"node": "node-a", "policyDetails": details}).to_string();
        let admin = answering(move |request| {
            assert_eq!(request, "GET /config_dump?only=policyDetails HTTP/1.1");
            http("200 OK", &body)
        });
        let text = policies(&list(admin, View::Wide, None)).unwrap();
        let words: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            words,
            [
                "KIND NAMESPACE NAME ACTION SCOPE RULES ORIGIN",
                "AuthorizationPolicy demo allow ALLOW app=web,tier=1 2 p.yaml:3",
                "AuthorizationPolicy istio-system all DENY (dry run) mesh 0 AuthorizationPolicy istio-system/all",
                "AuthorizationPolicy demo svc DENY services demo/web 1 -",
                "PeerAuthentication demo strict STRICT namespace demo 80=PERMISSIVE p.yaml",
                "",
                "NOT READ: prod.yaml has never been valid, so connections to pods of namespace prod are denied",
            ]
        );
        let json: Value = serde_json::from_str(&policies(&list(admin, View::Json, Some("demo"))).unwrap()).unwrap();
        assert_eq!((&json["schemaVersion"], json["authorization"].as_array().unwrap().len()), (&1.into(), 2));
        assert_eq!(json["authentication"][0]["mode"], "STRICT");
    }
}
