//! The chart, tested with Helm, Kustomize and the API server.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ztunnel_tests::cluster::plane::RBAC;
use ztunnel_tests::cluster::programs::Programs;
use ztunnel_tests::cluster::{ApiServer, chart};
use ztunnel_tests::monitoring::dashboards::Dashboard;
use ztunnel_tests::monitoring::{list, read, rules, scrapes, text};
use ztunnel_tests::wait;

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn the_kustomize_base_is_the_chart() -> Result<()> {
    let path = chart::base().join("ztunnel.yaml");
    let written = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    ensure!(
        written == chart::of_base(&Programs::cache()?)?,
        "deploy/kustomize is not what the chart says: write it with `cargo xtask cluster render`"
    );
    Ok(())
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn the_chart_has_the_version_of_the_daemon() -> Result<()> {
    let text = fs::read_to_string(chart::folder().join("Chart.yaml"))?;
    for line in
        [format!("version: {}", env!("CARGO_PKG_VERSION")), format!("appVersion: {:?}", env!("CARGO_PKG_VERSION"))]
    {
        ensure!(text.lines().any(|other| other == line), "Chart.yaml has no line `{line}`");
    }
    Ok(())
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn values_that_are_wrong_are_refused() -> Result<()> {
    let programs = Programs::cache()?;
    for (set, named) in [
        ("controlPlane.replicas=0", "replicas"),
        ("controlPlane.url=http://plain", "url"),
        ("node.drainTimeoutSeconds=4000", "drainTimeoutSeconds"),
        ("image.repositry=a", "repositry"),
        ("logFormat=xml", "logFormat"),
        ("cni.binDir=opt/cni/bin", "binDir"),
        ("controlPlane.enabled=false", "controlPlane.url"),
        ("crds.install=perhaps", "crds"),
        ("monitoring.rules.enabled=perhaps", "monitoring"),
        ("monitoring.rules.runbook=", "runbook"),
        ("monitoring.dashboards.label=a", "label"),
    ] {
        let refused =
            chart::rendered(&programs, &["--set", set]).err().with_context(|| format!("{set} is accepted"))?;
        ensure!(refused.to_string().contains(named), "{set}: {refused}");
    }
    Ok(())
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn the_api_server_accepts_all_that_the_chart_can_make() -> Result<()> {
    let api = ApiServer::start()?;
    let programs = Programs::cache()?;
    api.namespace(chart::NAMESPACE)?;
    for args in [
        &[][..],
        &["--set", "controlPlane.clusterIP=10.96.0.12", "--set", "imagePullSecrets[0].name=a"],
        &["--set", "criticalPodsQuota.create=true", "--set", "networkPolicy.create=true", "--set", "cni.install=false"],
        &["--set", "monitoring.dashboards.enabled=true"],
        &["--set", "controlPlane.enabled=false", "--set", "controlPlane.url=https://istiod.istio-system.svc:15012"],
    ] {
        let file = api.folder().join("rendered.yaml");
        fs::write(&file, chart::rendered(&programs, args)?)?;
        let file = file.display().to_string();
        let applied = api.kubectl(["apply", "--dry-run=server", "--validate=strict", "-f", &file])?;
        ensure!(applied.contains("daemonset.apps/ztunnel"), "{applied}");
        ensure!(applied.contains("deployment.apps") != args.contains(&"controlPlane.enabled=false"), "{applied}");
    }
    let base = chart::base().display().to_string();
    let applied = api.kubectl(["apply", "--validate=strict", "-k", &base])?;
    for object in ["namespace/istio-system", "poddisruptionbudget.policy/ztunnel-control-plane"] {
        ensure!(applied.contains(object), "{applied}");
    }
    Ok(())
}

/// The documents of rendered manifests with this kind.
fn of_kind(rendered: &str, kind: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(rendered)?;
    Ok(documents.into_iter().filter(|document| text(document, "kind") == kind).collect())
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn the_alerts_and_dashboards_are_the_files_and_only_where_they_are_wanted() -> Result<()> {
    let programs = Programs::cache()?;
    let plain = chart::rendered(&programs, &[])?;
    for kind in ["PrometheusRule", "PodMonitor", "ConfigMap"] {
        ensure!(of_kind(&plain, kind)?.is_empty(), "the chart makes a {kind} that nobody asked for");
    }
    let mut args =
        vec!["--set", "monitoring.rules.enabled=true", "--set", "monitoring.rules.labels.release=prometheus"];
    args.extend(["--set", "monitoring.rules.runbook=https://example.com/runbook"]);
    args.extend(["--set", "monitoring.dashboards.enabled=true", "--set", "podMonitor.enabled=true"]);
    args.extend(["--set", "monitoring.dashboards.annotations.grafana_folder=mesh"]);
    let rendered = chart::rendered(&programs, &args)?;
    let found = of_kind(&rendered, "PrometheusRule")?;
    let [object] = found.as_slice() else { anyhow::bail!("{} PrometheusRules", found.len()) };
    ensure!(object.pointer("/metadata/labels/release") == Some(&"prometheus".into()), "{object}");
    let file = read(&rules::file())?.replace("docs/runbook.md#", "https://example.com/runbook#");
    let file: Value = serde_saphyr::from_str(&file)?;
    ensure!(object.get("spec") == Some(&file), "the PrometheusRule is not the file");
    let maps = of_kind(&rendered, "ConfigMap")?;
    let dashboards = Dashboard::all()?;
    ensure!(maps.len() == dashboards.len(), "{} ConfigMaps", maps.len());
    for dashboard in dashboards {
        let key = format!("{}.json", dashboard.name);
        let map = maps.iter().find(|map| map.get("data").is_some_and(|data| data.get(&key).is_some()));
        let map = map.with_context(|| format!("no ConfigMap has {key}"))?;
        ensure!(map.pointer("/metadata/labels/grafana_dashboard") == Some(&"1".into()), "{key}: {map}");
        ensure!(map.pointer("/metadata/annotations/grafana_folder") == Some(&"mesh".into()), "{key}: {map}");
        let shown: Value = serde_json::from_str(text(&map["data"], &key))?;
        ensure!(shown == dashboard.value, "{key} is not the file");
    }
    let monitors = of_kind(&rendered, "PodMonitor")?;
    let by_app = |monitor: &Value| monitor.pointer("/spec/jobLabel") == Some(&"app".into());
    ensure!(monitors.len() == 2 && monitors.iter().all(by_app), "{monitors:?}");
    scraped_as_documented(&monitors)?;
    // The rules name the jobs that the label gives.
    let labels: Vec<Value> = ["DaemonSet", "Deployment"]
        .into_iter()
        .map(|kind| of_kind(&rendered, kind))
        .collect::<Result<Vec<_>>>()?
        .concat();
    for object in &labels {
        let app =
            object.pointer("/spec/template/metadata/labels/app").and_then(Value::as_str).context("no label app")?;
        ensure!(read(&rules::file())?.contains(&format!("up{{job=\"{app}\"}}")), "no rule is about the job {app}");
    }
    Ok(())
}

/// The document has the target of a node daemon as the PodMonitor has it, in the notation of Prometheus.
fn scraped_as_documented(monitors: &[Value]) -> Result<()> {
    let daemons = monitors.iter().find(|monitor| monitor.pointer("/metadata/name") == Some(&"ztunnel".into()));
    let endpoint = daemons.and_then(|monitor| monitor.pointer("/spec/podMetricsEndpoints/0")).context("no endpoint")?;
    ensure!(endpoint.get("port").is_none(), "the pods declare no ports: {endpoint}");
    let page = scrapes::documented()?;
    let job = scrapes::job(&page, "ztunnel").context("no job ztunnel is documented")?;
    // The label `pod` is one that the operator adds.
    let is_own = |rule: &&Value| text(rule, "action") != "labeldrop";
    for rule in list(endpoint, "relabelings").filter(is_own) {
        let named = serde_json::json!({
            "source_labels": rule["sourceLabels"], "regex": rule["regex"], "target_label": rule["targetLabel"],
            "replacement": rule["replacement"],
        });
        let is_there = |other: &Value| {
            let keys = ["source_labels", "regex", "target_label", "replacement"];
            keys.into_iter().all(|key| Some(other.get(key).unwrap_or(&Value::Null)) == named.get(key))
        };
        ensure!(list(job, "relabel_configs").any(is_there), "docs/monitoring.md does not have {rule}");
    }
    Ok(())
}

const SELECTOR: &str = "selector: {matchLabels: {app: web}}";

/// Objects that the API server accepts or refuses by the chart's CustomResourceDefinitions, with a word of the refusal.
fn objects() -> Vec<(&'static str, String, Option<&'static str>)> {
    let rule = |source: &str| format!("rules: [{{from: [{{source: {{{source}}}}}]}}]");
    let port = |port: &str| format!("rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]");
    vec![
        ("AuthorizationPolicy", String::new(), None),
        ("AuthorizationPolicy", format!("{SELECTOR}, action: DENY, {}", rule("namespaces: [a]")), None),
        ("AuthorizationPolicy", rule("ipBlocks: [10.0.0.0/8, 'fd00::1'], notPrincipals: ['*']"), None),
        ("AuthorizationPolicy", port("80"), None),
        ("AuthorizationPolicy", "rules: [{}]".to_owned(), None),
        ("AuthorizationPolicy", rule("ipBlocks: [ten]"), Some("ipBlocks")),
        ("AuthorizationPolicy", rule(""), Some("source")),
        ("AuthorizationPolicy", port("http"), Some("ports")),
        ("AuthorizationPolicy", "action: REJECT".to_owned(), Some("action")),
        ("AuthorizationPolicy", "action: CUSTOM".to_owned(), Some("provider")),
        ("AuthorizationPolicy", "rules: [{when: [{key: source.ip}]}]".to_owned(), Some("values")),
        (
            "AuthorizationPolicy",
            format!("{SELECTOR}, targetRefs: [{{kind: Service, name: web}}]"),
            Some("only one of selector"),
        ),
        ("AuthorizationPolicy", "selector: {matchLabels: {app: '*'}}".to_owned(), Some("wildcards")),
        (
            "PeerAuthentication",
            format!("{SELECTOR}, mtls: {{mode: STRICT}}, portLevelMtls: {{'80': {{mode: DISABLE}}}}"),
            None,
        ),
        ("PeerAuthentication", "mtls: {mode: STRONG}".to_owned(), Some("mode")),
        ("PeerAuthentication", "portLevelMtls: {'80': {mode: STRICT}}".to_owned(), Some("needs a selector")),
        ("PeerAuthentication", format!("{SELECTOR}, portLevelMtls: {{'80000': {{mode: STRICT}}}}"), Some("1 to 65535")),
        ("ServiceEntry", "hosts: [a.example.com], ports: [{number: 443, name: tls}], resolution: DNS".to_owned(), None),
        ("ServiceEntry", "hosts: []".to_owned(), Some("hosts")),
        ("ServiceEntry", "hosts: [a.b], ports: [{number: 1}, {number: 1}]".to_owned(), Some("once")),
        (
            "ServiceEntry",
            "hosts: [a.b], endpoints: [{address: 10.0.0.1}], workloadSelector: {labels: {a: b}}".to_owned(),
            Some("only one of"),
        ),
        ("WorkloadEntry", "address: 10.0.0.1, ports: {web: 80}".to_owned(), None),
        ("WorkloadEntry", "ports: {web: 80}".to_owned(), Some("address")),
    ]
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn objects_that_are_wrong_are_refused_by_their_definitions() -> Result<()> {
    let api = ApiServer::start()?;
    api.namespace("demo")?;
    api.kubectl(["apply", "--validate=strict", "-f", &chart::definitions().display().to_string()])?;
    api.kubectl(["wait", "--for=condition=Established", "crd", "--all", "--timeout=20s"])?;
    for (kind, spec, refused) in objects() {
        let group = if kind.ends_with("Entry") { "networking" } else { "security" };
        for version in ["v1", "v1beta1"] {
            let object = format!(
                "{{apiVersion: {group}.istio.io/{version}, kind: {kind}, metadata: {{name: a, namespace: demo}}, spec: {{{spec}}}}}"
            );
            let file = api.folder().join("object.yaml");
            fs::write(&file, &object)?;
            let done = api.try_kubectl(["apply", "--dry-run=server", "-f", &file.display().to_string()])?;
            match refused {
                None => ensure!(done.success, "{object}: {}", done.stderr),
                Some(word) => ensure!(!done.success && done.stderr.contains(word), "{object}: {done:?}"),
            }
        }
    }
    Ok(())
}

/// The chart does not change a CustomResourceDefinition that was installed without it.
#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn definitions_of_others_stay_as_they_are() -> Result<()> {
    let api = ApiServer::start()?;
    api.kubectl(["apply", "-f", &chart::definitions().join("serviceentries.yaml").display().to_string()])?;
    api.helm([
        "install",
        chart::RELEASE,
        &chart::folder().display().to_string(),
        "-n",
        chart::NAMESPACE,
        "--create-namespace",
    ])?;
    let owner = |name: &str| {
        api.kubectl(["get", "crd", name, "-o", "jsonpath={.metadata.annotations.meta\\.helm\\.sh/release-name}"])
    };
    ensure!(owner("serviceentries.networking.istio.io")?.is_empty(), "the chart has taken it over");
    ensure!(owner("authorizationpolicies.security.istio.io")? == chart::RELEASE);
    // The chart updates its own definitions.
    api.helm(["upgrade", chart::RELEASE, &chart::folder().display().to_string(), "-n", chart::NAMESPACE])?;
    ensure!(owner("authorizationpolicies.security.istio.io")? == chart::RELEASE);
    api.helm(["uninstall", chart::RELEASE, "-n", chart::NAMESPACE])?;
    api.kubectl(["get", "crd", "authorizationpolicies.security.istio.io"]).map(drop)
}

/// `deploy/control-plane/rbac.yaml` is for a control plane without the chart.
#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn the_control_plane_has_the_same_rights_with_the_chart_and_without() -> Result<()> {
    let api = ApiServer::start()?;
    let rules = |api: &ApiServer| -> Result<Vec<String>> {
        let kinds = [["clusterrole", "ztunnel-control-plane"], ["role", "ztunnel-control-plane"]];
        let get = |of: [&str; 2]| api.kubectl(["get", "-n", chart::NAMESPACE, of[0], of[1], "-o", "jsonpath={.rules}"]);
        kinds.into_iter().map(get).collect()
    };
    api.apply(RBAC)?;
    let without = rules(&api)?;
    api.kubectl(["delete", "clusterrole,role", "-n", chart::NAMESPACE, "ztunnel-control-plane"])?;
    api.kubectl(["apply", "-k", &chart::base().display().to_string()])?;
    let with = rules(&api)?;
    ensure!(with == without && !with.concat().is_empty(), "{with:?}\n{without:?}");
    Ok(())
}

/// The rights of the service accounts, as the API server decides them.
#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn the_service_accounts_may_do_little() -> Result<()> {
    let api = ApiServer::start()?;
    api.kubectl(["apply", "-k", &chart::base().display().to_string()])?;
    let may = |account: &str, verb: &str, resource: &str, namespace: &str| -> Result<bool> {
        let account = format!("--as=system:serviceaccount:{}:{account}", chart::NAMESPACE);
        let asked = api.try_kubectl(["auth", "can-i", verb, resource, "-n", namespace, &account])?;
        ensure!(["yes", "no"].contains(&asked.stdout.trim()), "{asked:?}");
        Ok(asked.stdout.trim() == "yes")
    };
    wait::until_true("the roles are in force", wait::PATIENCE, || may("ztunnel", "list", "pods", "default"))?;
    let table = [
        ("ztunnel", "watch", "namespaces", "default", true),
        ("ztunnel", "get", "secrets", chart::NAMESPACE, false),
        ("ztunnel", "patch", "pods", "default", false),
        ("ztunnel", "create", "tokenreviews", "default", false),
        ("ztunnel", "get", "daemonsets/ztunnel", chart::NAMESPACE, true),
        ("ztunnel", "get", "daemonsets/ztunnel", "default", false),
        ("ztunnel", "get", "daemonsets/other", chart::NAMESPACE, false),
        ("ztunnel-control-plane", "list", "pods", "default", true),
        ("ztunnel-control-plane", "create", "tokenreviews", "default", true),
        ("ztunnel-control-plane", "get", "secrets/ztunnel-ca", chart::NAMESPACE, true),
        ("ztunnel-control-plane", "get", "secrets/other", chart::NAMESPACE, false),
        ("ztunnel-control-plane", "get", "secrets/ztunnel-ca", "default", false),
        ("ztunnel-control-plane", "patch", "configmaps/istio-ca-root-cert", "default", true),
        ("ztunnel-control-plane", "patch", "configmaps/other", "default", false),
        ("ztunnel-control-plane", "delete", "pods", "default", false),
        ("ztunnel-control-plane", "create", "events.events.k8s.io", "default", true),
        ("ztunnel-control-plane", "patch", "events.events.k8s.io", "default", true),
        ("ztunnel-control-plane", "delete", "events.events.k8s.io", "default", false),
        ("ztunnel", "create", "events.events.k8s.io", "default", false),
        ("ztunnel", "create", "events", "default", false),
    ];
    for (account, verb, resource, namespace, expected) in table {
        let found = may(account, verb, resource, namespace)?;
        ensure!(found == expected, "{account} may {verb} {resource} in {namespace}: {found}");
    }
    Ok(())
}
