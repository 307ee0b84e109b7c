//! `ztunnel services`: the services of the mesh, as this node knows them.

use std::collections::BTreeMap;

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
};

#[derive(Debug, Deserialize, Serialize)]
struct Services {
    node: String,
    services: Vec<Value>,
}

/// The text of the command.
///
/// # Errors
/// If no daemon answers.
pub(super) fn services(args: &ListArgs) -> anyhow::Result<String> {
    let mut answer: Services = ask::json(args.daemon.admin, &format!("{CONFIG_DUMP}?only=services"))?;
    let is_wanted = |service: &Value| args.namespace.as_ref().is_none_or(|wanted| text(service, "namespace") == wanted);
    answer.services.retain(is_wanted);
    if args.daemon.output == View::Json {
        return Ok(json(&answer));
    }
    let columns = ["NAMESPACE", "NAME", "ADDRESSES", "PORTS", "ENDPOINTS"];
    let more = ["HOSTNAME", "WAYPOINT", "VISIBILITY", "ENDPOINT ADDRESSES"];
    let mut table = Table::new(&columns, &more, args.daemon.output == View::Wide);
    for service in &answer.services {
        let addresses = list(service, "vips").chain(list(service, "cidrVips")).filter_map(Value::as_str);
        let endpoints: Vec<&Value> =
            service.get("endpoints").and_then(Value::as_object).into_iter().flat_map(|all| all.values()).collect();
        let healthy = endpoints.iter().filter(|endpoint| text(endpoint, "status") == "Healthy").count();
        table.row([
            text(service, "namespace").to_owned(),
            text(service, "name").to_owned(),
            joined(addresses.map(|address| address.trim_start_matches('/'))),
            ports(service),
            format!("{healthy}/{}", endpoints.len()),
            text(service, "hostname").to_owned(),
            service.get("waypoint").map(|waypoint| text(waypoint, "destination")).unwrap_or_default().to_owned(),
            text(service, "visibility").to_owned(),
            joined(endpoints.iter().map(|endpoint| text(endpoint, "address"))),
        ]);
    }
    Ok(table.text("no services"))
}

/// The ports, by number: `80:8080`; without the number at endpoints if that has a name.
fn ports(service: &Value) -> String {
    let all = service.get("ports").and_then(Value::as_object).into_iter().flatten();
    let sorted: BTreeMap<u16, u64> =
        all.filter_map(|(port, target)| Some((port.parse().ok()?, target.as_u64()?))).collect();
    let texts: Vec<String> = sorted
        .iter()
        .map(|(port, target)| if *target == 0 { port.to_string() } else { format!("{port}:{target}") })
        .collect();
    texts.join(",")
}

fn joined<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::services;
    use crate::{
        app::cli::{
            ask::tests::{answering, http},
            pods::tests::list,
        },
        config::live::View,
    };

    #[test]
    fn services_have_addresses_ports_and_endpoints() {
        let endpoint = |status: &str, address: &str| json!({"status": status, "address": address});
        let web = json!({
            "name": "web", "namespace": "demo", "hostname": "web.demo.svc.cluster.local", "vips": ["/10.96.0.1"],
            "cidrVips": ["/10.1.0.0/16"], "ports": {"80": 8080, "9000": 0, "443": 8443}, "visibility": "Public",
            "endpoints": {"a": endpoint("Healthy", "10.0.0.1"), "b": endpoint("Unhealthy", "10.0.0.2")},
        });
        let other = json!({"name": "db", "namespace": "prod", "vips": [], "ports": {}, "endpoints": {}});
        let body = json!({"node": "node-a", "services": [web, other]}).to_string();
        let admin = answering(move |request| {
            assert_eq!(request, "GET /config_dump?only=services HTTP/1.1");
            http("200 OK", &body)
        });
        assert_eq!(
            services(&list(admin, View::Table, None)).unwrap(),
            "NAMESPACE  NAME  ADDRESSES              PORTS                  ENDPOINTS\n\
             demo       web   10.96.0.1,10.1.0.0/16  80:8080,443:8443,9000  1/2\n\
             prod       db    -                      -                      0/0\n"
        );
        let wide = services(&list(admin, View::Wide, Some("demo"))).unwrap();
        assert!(wide.contains("web.demo.svc.cluster.local") && wide.contains("10.0.0.1,10.0.0.2"), "{wide}");
        assert!(!wide.contains("prod"), "{wide}");
        let json: Value = serde_json::from_str(&services(&list(admin, View::Json, Some("prod"))).unwrap()).unwrap();
        assert_eq!((&json["schemaVersion"], &json["services"][0]["name"]), (&1.into(), &"db".into()));
        assert_eq!(services(&list(admin, View::Table, Some("none"))).unwrap(), "no services\n");
    }
}
