//! The alerts and dashboards of `deploy`, checked by the programs that will use them: promtool, and a Prometheus that scrapes
//! two daemons and a control plane.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ztunnel_tests::apps::client::exchange_once;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::monitoring::dashboards::{Dashboard, check_places, filled, legend_labels};
use ztunnel_tests::monitoring::prometheus::{Prometheus, Target};
use ztunnel_tests::monitoring::promql::uses;
use ztunnel_tests::monitoring::reference::Reference;
use ztunnel_tests::monitoring::rules::{self, Rule, promtool, yaml};
use ztunnel_tests::monitoring::{document, list, read, scrapes, text};
use ztunnel_tests::policy::{authorization, refused};
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::Family;
use ztunnel_tests::wait;

const PORT: u16 = 7000;

/// A port that a policy denies.
const DENIED: u16 = 7001;

/// Prometheus scrapes every second; a rate needs several samples.
const SCRAPES: Duration = Duration::from_secs(60);

/// The page with one heading for each alert.
const RUNBOOK: &str = "runbook.md";

/// Panels without data in a healthy testbed, because nothing of what they show happens there: `DASHBOARD: PANEL`.
const EMPTY: [&str; 5] = [
    // Objects of the Kubernetes API: the mesh of the testbed comes from manifests.
    "ztunnel-overview: Objects of the Kubernetes API",
    "ztunnel-node: Pods whose connects were refused in the kernel",
    "ztunnel-node: Failed TLS handshakes, by reason",
    "ztunnel-policy: Failed TLS handshakes, by reason",
    "ztunnel-policy: Policies in dry-run, and AUDIT policies",
];

fn succeeded(args: &[&str]) -> Result<()> {
    let done = promtool(args)?;
    ensure!(done.success, "promtool {}: {}{}", args.join(" "), done.stdout, done.stderr);
    Ok(())
}

#[test]
fn the_rules_are_valid_and_each_alert_has_its_page() -> Result<()> {
    let file = rules::file().display().to_string();
    succeeded(&["check", "rules", "--lint=all", "--lint-fatal", &file])?;
    let page = read(&document(RUNBOOK))?;
    let headings: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let mut names = BTreeSet::new();
    for rule in Rule::all()?.iter().filter(|rule| rule.is_alert) {
        let name = rule.name.as_str();
        ensure!(names.insert(name.to_owned()), "two alerts {name}");
        ensure!(headings.contains(name), "docs/{RUNBOOK} has no heading {name}");
        let address = format!("docs/{RUNBOOK}#{}", name.to_lowercase());
        ensure!(rule.annotation("runbook_url") == address, "{name}: {}", rule.annotation("runbook_url"));
        let severity = rule.value.pointer("/labels/severity").and_then(Value::as_str).unwrap_or_default();
        ensure!(["critical", "warning", "info"].contains(&severity), "{name} has the severity {severity:?}");
        let summary = rule.annotation("summary");
        ensure!(!summary.is_empty() && !summary.ends_with('.') && summary.len() < 160, "{name}: {summary:?}");
        ensure!(rule.annotation("description").ends_with('.'), "{name}: {:?}", rule.annotation("description"));
    }
    let unknown: Vec<_> = headings.iter().filter(|heading| !names.contains(**heading)).collect();
    ensure!(unknown.is_empty(), "docs/{RUNBOOK} has headings of no alert: {unknown:?}");
    Ok(())
}

/// What Prometheus makes of a pod with the documented scrape configuration for Kubernetes: the address and the node of each target.
/// Debian's Prometheus is built without the discovery of Kubernetes, so that targets with its labels stand in its place.
fn targets_of(job: &str, pods: &[Value]) -> Result<BTreeSet<(String, String)>> {
    let mut configuration = scrapes::documented()?;
    let jobs = configuration.get_mut("scrape_configs").and_then(Value::as_array_mut).context("no scrape_configs")?;
    for job in jobs.iter_mut().filter_map(Value::as_object_mut) {
        job.remove("kubernetes_sd_configs").context("a job without kubernetes_sd_configs")?;
        job.insert("static_configs".to_owned(), Value::from(pods));
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("prometheus.yaml").display().to_string();
    fs::write(&file, configuration.to_string())?;
    succeeded(&["check", "config", "--lint-fatal", &file])?;
    let done = promtool(&["check", "service-discovery", "--timeout=1s", &file, job])?;
    ensure!(done.success, "{}{}", done.stdout, done.stderr);
    let found: Value = serde_json::from_str(&done.stdout).with_context(|| done.stdout.clone())?;
    let kept = found.as_array().into_iter().flatten().map(|target| &target["labels"]);
    let kept: BTreeSet<String> =
        kept.filter(|labels| **labels != serde_json::json!({})).map(Value::to_string).collect();
    let labels = kept.iter().map(|labels| serde_json::from_str::<Value>(labels));
    let addressed = labels.map(|labels| {
        let labels = labels?;
        Ok((text(&labels, "__address__").to_owned(), text(&labels, "node").to_owned()))
    });
    let addressed = addressed.collect::<Result<Vec<_>>>()?;
    let distinct: BTreeSet<(String, String)> = addressed.iter().cloned().collect();
    ensure!(distinct.len() == addressed.len(), "a process is scraped twice: {kept:?}");
    Ok(distinct)
}

#[test]
fn the_documented_scrape_configuration_finds_each_daemon_once_and_the_control_plane() -> Result<()> {
    let pod = |app: &str, name: &str, address: &str, ip: &str, port: &str| {
        serde_json::json!({"targets": [address], "labels": {
            "__meta_kubernetes_pod_label_app": app, "__meta_kubernetes_pod_name": name, "__meta_kubernetes_pod_ip": ip,
            "__meta_kubernetes_pod_node_name": "node-a", "__meta_kubernetes_pod_container_port_name": port,
        }})
    };
    let pods = [
        // During a handover a node has two pods, which have its address and declare no ports.
        pod("ztunnel", "ztunnel-old", "10.0.0.1", "10.0.0.1", ""),
        pod("ztunnel", "ztunnel-new", "10.0.0.1", "10.0.0.1", ""),
        pod("ztunnel", "ztunnel-six", "fd00::1", "fd00::1", ""),
        pod("ztunnel-control-plane", "plane", "10.0.0.3:15014", "10.0.0.3", "metrics"),
        pod("ztunnel-control-plane", "plane", "10.0.0.3:15012", "10.0.0.3", "xds"),
        pod("web", "web", "10.0.0.4:80", "10.0.0.4", "http"),
    ];
    let on_node = |addresses: &[&str]| -> BTreeSet<(String, String)> {
        addresses.iter().map(|address| ((*address).to_owned(), "node-a".to_owned())).collect()
    };
    let daemons = targets_of("ztunnel", &pods)?;
    ensure!(daemons == on_node(&["10.0.0.1:15020", "[fd00::1]:15020"]), "{daemons:?}");
    let planes = targets_of("ztunnel-control-plane", &pods)?;
    ensure!(planes == on_node(&["10.0.0.3:15014"]), "{planes:?}");
    Ok(())
}

#[test]
fn the_documented_scrape_configuration_without_kubernetes_is_accepted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let text = scrapes::texts()?.into_iter().find(|text| text.contains("static_configs"));
    let text = text.context("docs/monitoring.md has no scrape configuration for machines without Kubernetes")?;
    let file = folder.path().join("prometheus.yaml");
    fs::write(&file, &text)?;
    succeeded(&["check", "config", "--lint-fatal", &file.display().to_string()])?;
    let configuration: Value = serde_saphyr::from_str(&text)?;
    for job in ["ztunnel", "ztunnel-control-plane"] {
        ensure!(scrapes::job(&configuration, job).is_some(), "no job {job}:\n{text}");
    }
    Ok(())
}

/// The labels of a series in the notation of promtool, `name{a="b"}`.
fn labels(series: &str) -> Result<BTreeMap<String, String>> {
    let inside =
        series.split_once('{').and_then(|(_, rest)| rest.strip_suffix('}')).with_context(|| series.to_owned())?;
    let pairs = inside.split(", ").map(|pair| {
        let (name, value) = pair.split_once('=').with_context(|| series.to_owned())?;
        Ok((name.to_owned(), value.trim_matches('"').to_owned()))
    });
    pairs.collect()
}

#[test]
fn each_alert_fires_in_its_test_and_none_fires_in_a_healthy_mesh() -> Result<()> {
    succeeded(&["test", "rules", &rules::tests_file().display().to_string()])?;
    let tests = yaml(&rules::tests_file())?;
    let mut fired: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for sample in
        list(&tests, "tests").flat_map(|test| list(test, "promql_expr_test")).flat_map(|it| list(it, "exp_samples"))
    {
        let labels = labels(text(sample, "labels"))?;
        fired.entry(labels["alertname"].clone()).or_default().extend(labels.into_keys());
    }
    let rules = Rule::all()?;
    for rule in rules.iter().filter(|rule| rule.is_alert) {
        let name = &rule.name;
        let has = fired.get(name).with_context(|| format!("no test in which {name} fires"))?;
        // `node` is optional: without it the texts name the instance.
        let lacking: Vec<_> = rule.named_labels().into_iter().filter(|label| !has.contains(label)).collect();
        ensure!(lacking.is_empty(), "the texts of {name} name labels that the alert does not have: {lacking:?}");
    }
    let healthy = list(&tests, "tests").next().context("no tests")?;
    let expected: Vec<&Value> = list(healthy, "promql_expr_test").flat_map(|it| list(it, "exp_samples")).collect();
    ensure!(expected.is_empty(), "the first test is that of a healthy mesh: {expected:?}");
    let there: BTreeSet<&str> =
        list(healthy, "input_series").filter_map(|series| text(series, "series").split('{').next()).collect();
    let recorded: BTreeSet<&str> = rules.iter().filter(|rule| !rule.is_alert).map(|rule| rule.name.as_str()).collect();
    for rule in &rules {
        for metric in uses(&rule.expression)?.metrics.keys().filter(|metric| !recorded.contains(metric.as_str())) {
            ensure!(
                there.contains(metric.as_str()),
                "the healthy mesh of the tests has no {metric}, which {} uses",
                rule.name
            );
        }
    }
    Ok(())
}

/// The tests of the rules notice a rule that is wrong.
#[test]
fn a_rule_that_is_wrong_does_not_pass() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (rules, tests) = (folder.path().join("rules.yaml"), folder.path().join("rules_test.yaml"));
    let good = read(&rules::file())?;
    let path = "../../deploy/helm/ztunnel/files/monitoring/rules.yaml";
    let test = read(&rules::tests_file())?;
    ensure!(test.contains(path), "the tests do not name {path}");
    fs::write(&tests, test.replace(path, "rules.yaml"))?;
    let outcome = |text: &str| -> Result<(bool, bool)> {
        fs::write(&rules, text)?;
        let valid = promtool(&["check", "rules", &rules.display().to_string()])?.success;
        Ok((valid, promtool(&["test", "rules", &tests.display().to_string()])?.success))
    };
    ensure!(outcome(&good)? == (true, true), "the rules themselves do not pass");
    for (from, to, is_valid) in [
        ("ztunnel_ready == 0", "ztunnel_ready == 1", true),
        ("> 0.9", "> 0.99", true),
        ("for: 3m", "for: 30m", true),
        ("count by (job, instance, node, leaving)", "count by (", false),
        ("severity: critical", "severity: warning", true),
    ] {
        let bad = good.replacen(from, to, 1);
        ensure!(bad != good, "{from} is not in the rules");
        let (valid, passes) = outcome(&bad)?;
        ensure!(!passes && valid == is_valid, "{from} -> {to}: valid {valid}, passes {passes}");
    }
    Ok(())
}

#[test]
fn rules_and_dashboards_use_metrics_and_labels_that_exist() -> Result<()> {
    let mut reference = Reference::load()?;
    let rules = Rule::all()?;
    for rule in rules.iter().filter(|rule| !rule.is_alert) {
        reference.record(&rule.name, uses(&rule.expression)?.by);
    }
    for rule in &rules {
        reference.check(&uses(&rule.expression)?).with_context(|| format!("rule {}", rule.name))?;
    }
    for dashboard in Dashboard::all()? {
        let variables = dashboard.variable_names();
        for query in dashboard.queries() {
            let of = || format!("{}: panel {:?}: {}", dashboard.name, query.panel, query.expression);
            let used = uses(&filled(&query.expression, &variables, "5m")).with_context(of)?;
            reference.check(&used).with_context(of)?;
            for label in legend_labels(&query.legend) {
                reference.check_result(&used, &label).with_context(of)?;
            }
        }
        for values in dashboard.values()? {
            let used = uses(&filled(&values.expression, &variables, "5m"))?;
            reference.check(&used).with_context(|| format!("{}: variable {}", dashboard.name, values.variable))?;
        }
        for panel in dashboard.panels().filter(|panel| text(panel, "type") == "table") {
            let of = || format!("{}: panel {:?}", dashboard.name, text(panel, "title"));
            let query = list(panel, "targets").next().with_context(of)?;
            let used = uses(&filled(text(query, "expr"), &variables, "5m")).with_context(of)?;
            let renamed = panel.pointer("/transformations/0/options/renameByName").and_then(Value::as_object);
            for label in renamed.with_context(of)?.keys().filter(|label| *label != "Value") {
                reference.check_result(&used, label).with_context(of)?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_dashboards_are_complete_and_need_no_data_source_of_their_own() -> Result<()> {
    let dashboards = Dashboard::all()?;
    let names: Vec<&str> = dashboards.iter().map(|dashboard| dashboard.name.as_str()).collect();
    ensure!(names == ["ztunnel-node", "ztunnel-overview", "ztunnel-policy", "ztunnel-workload"], "{names:?}");
    for dashboard in &dashboards {
        let name = &dashboard.name;
        ensure!(text(&dashboard.value, "uid") == name, "{name} has another uid");
        ensure!(dashboard.value.get("schemaVersion").and_then(Value::as_u64) >= Some(41), "{name}: schemaVersion");
        ensure!(dashboard.value.get("id").is_none(), "{name} has the id of one Grafana");
        check_places(dashboard).with_context(|| name.clone())?;
        let variables = dashboard.variable_names();
        ensure!(variables.contains("datasource"), "{name} has no variable datasource");
        let mut ids = BTreeSet::new();
        for panel in list(&dashboard.value, "panels") {
            ensure!(ids.insert(panel.get("id").and_then(Value::as_u64).context("no id")?), "{name}: two equal ids");
            ensure!(!text(panel, "title").is_empty(), "{name}: a panel without a title");
        }
        for panel in dashboard.panels() {
            let title = text(panel, "title");
            ensure!(text(panel, "description").ends_with('.'), "{name}: {title} has no description");
            let unit = panel.pointer("/fieldConfig/defaults/unit").and_then(Value::as_str);
            ensure!(unit.is_some_and(|unit| !unit.is_empty()), "{name}: {title} has no unit");
        }
        let whole = dashboard.value.to_string();
        let mut sources = whole.split("\"uid\":\"").skip(1).filter_map(|rest| rest.split('"').next());
        let foreign = sources.find(|uid| ![name.as_str(), "${datasource}", "-- Grafana --"].contains(uid));
        ensure!(foreign.is_none(), "{name} names the data source {foreign:?}");
        for query in dashboard.queries() {
            let unknown = filled(&query.expression, &variables, "5m").contains('$');
            ensure!(!unknown, "{name}: {} uses a variable that does not exist: {}", query.panel, query.expression);
        }
    }
    Ok(())
}

/// Two nodes and a control plane, a policy that denies one port, and a Prometheus that scrapes all three processes.
struct Stage {
    prometheus: Prometheus,
    servers: Vec<Server>,
    bed: Testbed,
}

impl Stage {
    fn new() -> Result<Self> {
        let mut bed = Testbed::both_enrolled_by_control_plane()?;
        bed.topology.grow("node-a", "guest")?;
        let spec = format!(
            "{{selector: {{matchLabels: {{app: web-b}}}}, action: DENY, rules: [{{to: [{{operation: {{ports: ['{DENIED}']}}}}]}}]}}"
        );
        bed.change(|mesh| mesh.policy("deny-port", &authorization("deny-port", &spec)))?;
        let node = |name: &str| Ok::<_, anyhow::Error>(bed.topology.node(name)?.v4());
        let target = |job, name: &str, port| {
            Ok::<_, anyhow::Error>(Target {
                job,
                node: name.to_owned(),
                address: SocketAddr::new(node(name)?.into(), port),
            })
        };
        let targets = [
            target("ztunnel", "node-a", 15020)?,
            target("ztunnel", "node-b", 15020)?,
            target("ztunnel-control-plane", "node-a", 15014)?,
        ];
        let prometheus = Prometheus::start(&bed.topology, "node-a", &targets)?;
        let mut servers = Vec::new();
        for web in ["web-a", "web-b"] {
            servers.push(Server::echo(bed.pod(web)?, bed.pod(web)?.at(Family::V4, PORT))?);
        }
        Ok(Self { prometheus, servers, bed })
    }

    /// Connections through the tunnel and in plaintext, one that policy denies, and one to a port without an application.
    fn traffic(&self) -> Result<()> {
        let bed = &self.bed;
        for server in &self.servers {
            exchange_once(bed.pod("client-a")?, server.address())?;
            exchange_once(bed.pod("guest")?, server.address())?;
        }
        let web = bed.pod("web-b")?;
        refused(bed.pod("client-a")?, web.at(Family::V4, DENIED))?;
        refused(bed.pod("client-a")?, web.at(Family::V4, 7999))?;
        Ok(())
    }
}

#[test]
fn the_panels_have_data_of_two_nodes_and_a_control_plane() -> Result<()> {
    let stage = Stage::new()?;
    let dashboards = Dashboard::all()?;
    let mut waiting: Vec<(String, String)> = Vec::new();
    let mut panels = BTreeSet::new();
    for dashboard in &dashboards {
        let variables = dashboard.variable_names();
        let queries = dashboard.queries().into_iter().map(|query| (query.panel, query.expression));
        let values = dashboard.values()?.into_iter().map(|values| (format!("${}", values.variable), values.expression));
        for (panel, expression) in queries.chain(values) {
            let panel = format!("{}: {panel}", dashboard.name);
            panels.insert(panel.clone());
            waiting.push((panel, filled(&expression, &variables, "10s")));
        }
    }
    let unknown: Vec<_> = EMPTY.into_iter().filter(|panel| !panels.contains(*panel)).collect();
    ensure!(unknown.is_empty(), "there are no such panels: {unknown:?}");
    // Prometheus accepts every expression, also those without data.
    for (panel, expression) in &waiting {
        stage.prometheus.query(expression).with_context(|| panel.clone())?;
    }
    let mut with_data = BTreeSet::new();
    let all: BTreeSet<String> = panels.iter().filter(|panel| !EMPTY.contains(&panel.as_str())).cloned().collect();
    let met = wait::until_true("each panel to have data", SCRAPES, || {
        stage.traffic()?;
        for (panel, expression) in &waiting {
            if !with_data.contains(panel) && !stage.prometheus.query(expression)?.is_empty() {
                with_data.insert(panel.clone());
            }
        }
        Ok(all.is_subset(&with_data))
    });
    let without: Vec<_> = all.difference(&with_data).collect();
    met.with_context(|| format!("without data: {without:?}"))?;
    let filled: Vec<_> = with_data.iter().filter(|panel| EMPTY.contains(&panel.as_str())).collect();
    ensure!(filled.is_empty(), "these panels have data: take them off the list EMPTY: {filled:?}");
    // What the panels say is what happened.
    let nodes = stage.prometheus.query("count(ztunnel_tasks)")?;
    ensure!(
        nodes.first().is_some_and(|found| found.pointer("/value/1").and_then(Value::as_str) == Some("2")),
        "{nodes:?}"
    );
    let denied = "sum by (policy_namespace, policy) (ztunnel_policy_decisions_total{decision=\"denied\", kind=\"AuthorizationPolicy\"}) > 0";
    let denied = stage.prometheus.query(denied)?;
    ensure!(denied.len() == 1 && denied[0].pointer("/metric/policy") == Some(&"deny-port".into()), "{denied:?}");
    Ok(())
}

#[test]
fn the_rules_work_in_prometheus_and_see_what_is_killed() -> Result<()> {
    let mut stage = Stage::new()?;
    let names: BTreeSet<String> = Rule::all()?.into_iter().map(|rule| rule.name).collect();
    let evaluated = |stage: &Stage| -> Result<bool> {
        let rules = stage.prometheus.rules()?;
        let faulty: Vec<_> = rules.iter().filter(|rule| text(rule, "health") == "err").collect();
        ensure!(faulty.is_empty(), "{faulty:?}");
        let good = rules.iter().filter(|rule| text(rule, "health") == "ok");
        Ok(good.map(|rule| text(rule, "name").to_owned()).collect::<BTreeSet<_>>() == names)
    };
    wait::until_true("all rules to be evaluated", SCRAPES, || {
        stage.traffic()?;
        evaluated(&stage)
    })?;
    let seen = |stage: &Stage, alert: &str, node: &str| {
        let alerts = format!("ALERTS{{alertname=\"{alert}\", node=\"{node}\"}}");
        wait::until_true(&alerts, SCRAPES, || Ok(!stage.prometheus.query(&alerts)?.is_empty()))
    };
    // The test itself has connections denied.
    let quiet = stage.prometheus.query("ALERTS{alertname!=\"ZtunnelPolicyDenialsRising\"}")?;
    ensure!(quiet.is_empty(), "alerts in a healthy mesh: {quiet:?}");
    stage.bed.plane_mut()?.kill9()?;
    seen(&stage, "ZtunnelControlPlaneLost", "node-a")?;
    seen(&stage, "ZtunnelControlPlaneLost", "node-b")?;
    seen(&stage, "ZtunnelControlPlaneReplicaDown", "node-a")?;
    stage.bed.daemon_mut("node-b")?.kill9()?;
    seen(&stage, "ZtunnelNodeDown", "node-b")?;
    let others = stage.prometheus.query("ALERTS{alertname=\"ZtunnelNodeDown\", node!=\"node-b\"}")?;
    ensure!(others.is_empty(), "{others:?}");
    // What is started again is seen as well.
    stage.bed.plane_mut()?.restart()?;
    let healed = "ztunnel_control_plane_lost{node=\"node-a\"} == 0";
    wait::until_true(healed, SCRAPES, || Ok(!stage.prometheus.query(healed)?.is_empty()))
}
