//! Manifests in the style of published samples, for a cluster that creates their pods: they contain no mistakes.

use std::fmt::Write as _;

use super::*;

/// A Deployment with its ServiceAccount and its Service, as in most samples.
fn app(text: &mut String, name: &str, version: &str, port: u16, target: &str, container_port: Option<u16>) {
    let ports =
        container_port.map_or(String::new(), |port| format!("\n        ports:\n        - containerPort: {port}"));
    write!(
        text,
        "---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {name}
---
apiVersion: v1
kind: Service
metadata:
  name: {name}
  labels:
    app: {name}
    service: {name}
spec:
  ports:
  - name: http
    port: {port}
    targetPort: {target}
  selector:
    app: {name}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}-{version}
spec:
  replicas: 1
  selector:
    matchLabels:
      app: {name}
      version: {version}
  template:
    metadata:
      labels:
        app: {name}
        version: {version}
    spec:
      serviceAccountName: {name}
      containers:
      - name: {name}
        image: registry.example.org/{name}:{version}
        imagePullPolicy: IfNotPresent{ports}
        readinessProbe:
          httpGet:
            path: /ready
            port: {container}
        volumeMounts:
        - name: settings
          mountPath: /etc/settings
      volumes:
      - name: settings
        configMap:
          name: {name}-settings
          defaultMode: 420
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {name}-settings
data:
  template: |
    kind: not a manifest
---
apiVersion: v1
kind: Secret
metadata:
  name: {name}-key
type: Opaque
data: {{}}
",
        container = container_port.unwrap_or(port),
    )
    .unwrap();
}

/// A shop of twelve Deployments and Services.
fn shop() -> String {
    let mut text = String::new();
    for (index, name) in [
        "ads",
        "cart",
        "catalog",
        "checkout",
        "currency",
        "email",
        "frontend",
        "load",
        "payment",
        "recommend",
        "shipping",
        "store",
    ]
    .iter()
    .enumerate()
    {
        let port = 7000 + u16::try_from(index).unwrap();
        app(&mut text, name, "v1", 80, &port.to_string(), Some(port));
    }
    text.push_str(
        "---
apiVersion: v1
kind: Service
metadata: {name: frontend-internal}
spec: {clusterIP: None, selector: {app: frontend}, ports: [{name: grpc, port: 7006}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: report}
spec:
  schedule: '0 * * * *'
  jobTemplate: {spec: {template: {metadata: {labels: {app: report}}, spec: {restartPolicy: Never, serviceAccountName: report, containers: [{name: a, image: a}]}}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: database}
spec:
  serviceName: database
  selector: {matchLabels: {app: database}}
  template:
    metadata: {labels: {app: database}}
    spec: {serviceAccountName: database, containers: [{name: db, image: db, ports: [{name: sql, containerPort: 5432}]}]}
  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce]}}]
---
apiVersion: v1
kind: Service
metadata: {name: database}
spec: {selector: {app: database}, ports: [{name: sql, port: 5432, targetPort: sql}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: database}
spec:
  selector: {matchLabels: {app: database}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/NAMESPACE/sa/report, cluster.local/ns/NAMESPACE/sa/cart]}}]
    to: [{operation: {ports: ['5432']}}]
",
    );
    text
}

/// A product page with details, ratings, and three versions of reviews.
fn books() -> String {
    let mut text = String::new();
    for name in ["details", "ratings", "productpage"] {
        app(&mut text, name, "v1", 9080, "9080", Some(9080));
    }
    app(&mut text, "reviews", "v1", 9080, "9080", Some(9080));
    for version in ["v2", "v3"] {
        write!(
            text,
            "---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: reviews-{version}, labels: {{app: reviews, version: {version}}}}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: reviews, version: {version}}}}}
  template:
    metadata: {{labels: {{app: reviews, version: {version}}}}}
    spec: {{serviceAccountName: reviews, containers: [{{name: reviews, image: r, ports: [{{containerPort: 9080}}], env: [{{name: LOG, value: /tmp}}]}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: reviews-{version}}}
spec: {{ports: [{{port: 9080, name: http}}], selector: {{app: reviews, version: {version}}}}}
"
        )
        .unwrap();
    }
    text.push_str(
        "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: entry}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: page}
spec:
  selector: {matchLabels: {app: productpage}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/NAMESPACE/sa/entry-istio]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ratings}
spec:
  selector: {matchLabels: {app: ratings}}
  action: ALLOW
  rules:
  - from:
    - source: {principals: [cluster.local/ns/NAMESPACE/sa/reviews]}
",
    );
    text
}

/// An HTTP server whose Service has another port than its container, and a client.
fn server_and_client() -> String {
    let mut text = String::new();
    app(&mut text, "web", "v1", 8000, "8080", Some(8080));
    app(&mut text, "client", "latest", 80, "80", None);
    text
}

/// A TCP server with several ports, in two versions behind one Service.
fn echo() -> String {
    let mut text = "
apiVersion: v1
kind: Service
metadata: {name: echo, labels: {app: echo, service: echo}}
spec:
  ports: [{name: tcp, port: 9000}, {name: tcp-other, port: 9001}, {name: dns, port: 53, protocol: UDP}]
  selector: {app: echo}
"
    .to_owned();
    for version in ["v1", "v2"] {
        write!(
            text,
            "---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: echo-{version}, labels: {{app: echo, version: {version}}}}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: echo, version: {version}}}}}
  template:
    metadata: {{labels: {{app: echo, version: {version}}}}}
    spec:
      containers: [{{name: echo, image: echo, args: ['9000,9001', hello], ports: [{{containerPort: 9000}}, {{containerPort: 9001}}]}}]
"
        )
        .unwrap();
    }
    text
}

/// The errors and warnings, and the codes of the infos.
fn found(manifests: &str, namespace: &str, label: &str) -> (Vec<String>, Vec<&'static str>) {
    let dir = tempfile::tempdir().unwrap();
    let manifests = manifests.replace("NAMESPACE", namespace);
    std::fs::write(dir.path().join("app.yaml"), &manifests).unwrap();
    if !label.is_empty() {
        let text = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, labels: {{{label}}}}}}}");
        std::fs::write(dir.path().join("namespace.yaml"), text).unwrap();
    }
    let path = dir.path().display().to_string();
    let analysis = look(&parsed(&[&path]), b"").unwrap();
    let (bad, info): (Vec<&Finding>, Vec<&Finding>) =
        analysis.findings.iter().partition(|finding| finding.severity != Severity::Info);
    let shown = |finding: &&Finding| headline(finding).1;
    (bad.iter().map(shown).collect(), info.iter().map(|finding| finding.code.code()).collect())
}

#[test]
fn published_manifests_have_no_mistake() {
    const AMBIENT: &str = "istio.io/dataplane-mode: ambient";
    for (name, manifests) in [("shop", shop()), ("books", books()), ("web", server_and_client()), ("echo", echo())] {
        // The namespace may get its label elsewhere, so a missing label is only an info.
        // Gateways and routes are reported as objects that another program enforces.
        let with = |code| if name == "books" { vec![code, "manifest", "manifest"] } else { vec![code] };
        assert_eq!(found(&manifests, "default", ""), (Vec::new(), with("empty-mesh")), "{name}");
        assert_eq!(found(&manifests, "default", AMBIENT), (Vec::new(), with("no-strict")), "{name}");
    }
}

#[test]
fn a_typing_mistake_in_published_manifests_is_found() {
    let table = [
        ("selector:\n    app: cart\n", "selector:\n    app: crat\n", "unmatched-selector"),
        ("sa/report,", "sa/reprot,", "unknown-principal"),
        ("targetPort: sql}", "targetPort: sqll}", "service-port-without-endpoint"),
        (
            "selector: {matchLabels: {app: database}}\n  rules",
            "selector: {matchLabels: {app: databse}}\n  rules",
            "unmatched-selector",
        ),
        ("ports: ['5432']", "ports: ['5423']", "undeclared-port"),
    ];
    for (right, wrong, code) in table {
        let manifests = shop();
        assert!(manifests.contains(right), "{right}");
        let (bad, info) = found(&manifests.replace(right, wrong), "default", "istio.io/dataplane-mode: ambient");
        let is_told = bad.iter().any(|line| line.starts_with(&format!("[{code}]"))) || info.contains(&code);
        assert!(is_told, "{wrong}: {bad:?} {info:?}");
    }
}
