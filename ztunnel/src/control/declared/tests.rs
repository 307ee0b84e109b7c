use super::*;

fn read(text: &str) -> Declared {
    let mut collector = Collector::new("ns");
    collector.take(&"f".into(), text);
    collector.finish(&TrustDomain::default())
}

const TEMPLATE: &str = "template: {metadata: {labels: {app: a, istio.io/dataplane-mode: ambient}}, spec: {serviceAccountName: sa, \
                        containers: [{name: c, ports: [{name: http, containerPort: 80}], env: [{name: X, value: 1}]}], volumes: \
                        [{name: v, configMap: {name: c, defaultMode: '0400'}}]}}";

/// Kind, name and line of each template in a text.
fn templates(text: &str) -> Vec<String> {
    let shown = |one: &Template| format!("{} {} {}", one.kind, one.workload.name, one.origin);
    read(text).templates.iter().map(shown).collect()
}

#[test]
fn templates_in_every_spelling() {
    let deployment = |name: &str| {
        format!(
            "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: {name}}}, spec: {{replicas: 0, {TEMPLATE}}}}}"
        )
    };
    let (a, b) = (deployment("a"), deployment("b"));
    let as_json = |text: &str| serde_json::to_string(&yaml(text)).unwrap();
    let table = [
        (format!("{a}\n---\n\n{b}\n"), vec!["Deployment ns/a f:1", "Deployment ns/b f:4"]),
        (format!("# c\n---\n# d\n---\n{a}\n...\n---\n"), vec!["Deployment ns/a f:5"]),
        (
            format!("{{apiVersion: v1, kind: List, items: [{a}, {b}]}}"),
            vec!["Deployment ns/a f:1", "Deployment ns/b f:1"],
        ),
        (
            format!(
                "{{apiVersion: apps/v1, kind: DeploymentList, items: [{{metadata: {{name: x}}, spec: {{{TEMPLATE}}}}}]}}"
            ),
            vec!["Deployment ns/x f:1"],
        ),
        (format!("{}{}", as_json(&a), as_json(&b)), vec!["Deployment ns/a f:1", "Deployment ns/b f:1"]),
        (format!("[{}, {}]", as_json(&a), as_json(&b)), vec!["Deployment ns/a f:1", "Deployment ns/b f:1"]),
        (
            format!(
                "{{apiVersion: batch/v1, kind: CronJob, metadata: {{name: c}}, spec: {{jobTemplate: {{spec: {{{TEMPLATE}}}}}}}}}"
            ),
            vec!["CronJob ns/c f:1"],
        ),
        (
            format!("{{apiVersion: batch/v1, kind: Job, metadata: {{generateName: j-}}, spec: {{{TEMPLATE}}}}}"),
            vec!["Job ns/j f:1"],
        ),
        // A broken document does not hide the others.
        (format!("kind: [\n---\n{a}\n"), vec!["Deployment ns/a f:3"]),
        ("{apiVersion: v1, kind: ConfigMap, metadata: {name: t}, data: {template: x}}".to_owned(), vec![]),
        ("replicas: 2\ntemplate: {}\n".to_owned(), vec![]),
    ];
    for (text, expected) in table {
        assert_eq!(templates(&text), expected, "{text}");
    }
}

fn yaml(text: &str) -> Value {
    crate::control::yaml::read(text).unwrap()
}

#[test]
fn a_template_is_a_pod_without_node_and_address() {
    let text = format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: a, namespace: shop}}, spec: {{{TEMPLATE}}}}}"
    );
    let declared = read(&text);
    let pod = &declared.templates[0].workload;
    assert_eq!(pod.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/sa");
    assert_eq!((pod.port_named("http"), pod.node.is_none(), pod.addresses.is_empty()), (Some(80), true, true));
    assert_eq!((declared.objects, declared.problems.len()), (1, 0));
}

#[test]
fn fields_of_services_and_accounts_of_gateways() {
    let service = |spec: &str| {
        let text = format!("{{apiVersion: v1, kind: Service, metadata: {{name: s}}, {spec}}}");
        read(&text).services.remove(0)
    };
    assert_eq!(service("spec: {clusterIP: None}").address, ClusterAddress::Headless);
    assert_eq!(service("spec: {clusterIP: 10.0.0.1}").address, ClusterAddress::Given);
    assert_eq!(service("spec: {clusterIP: ''}").address, ClusterAddress::Absent);
    assert_eq!(
        service("spec: {type: ExternalName, externalName: x.org}").address,
        ClusterAddress::Alias("x.org".into())
    );
    let other = service(
        "spec: {type: LoadBalancer, externalIPs: [203.0.113.9], ports: [{port: 1, nodePort: 30080}], sessionAffinity: ClientIP}, \
         status: {loadBalancer: {ingress: [{ip: 203.0.113.8, ipMode: Proxy}, {hostname: lb.example.org, ipMode: VIP}]}}",
    );
    assert_eq!((&*other.external_ips[0], other.node_ports.as_slice()), ("203.0.113.9", &[30080][..]));
    let ingress = other.load_balancer.iter().map(|one| (&*one.address, one.is_proxy)).collect::<Vec<_>>();
    assert_eq!(
        (ingress.as_slice(), other.has_source_ranges),
        (&[("203.0.113.8", true), ("lb.example.org", false)][..], false)
    );
    for (ranges, expected) in [("[]", false), ("['0.0.0.0/0', '::/0']", false), ("[10.0.0.0/8]", true)] {
        let service = service(&format!("spec: {{loadBalancerSourceRanges: {ranges}}}"));
        assert_eq!(service.has_source_ranges, expected, "{ranges}");
    }
    // Fields of unexpected kinds count as absent.
    assert_eq!(
        service("spec: {clusterIP: 5, ports: 7, externalIPs: {a: b}}, status: [1]").address,
        ClusterAddress::Absent
    );
    let gateway = "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: g}, spec: {gatewayClassName: istio}}";
    let accounts = read(gateway).accounts;
    assert!(
        accounts.contains(&NamespacedName::new("ns", "g-istio")) && accounts.contains(&NamespacedName::new("ns", "g"))
    );
}

#[test]
fn objects_are_counted_and_annotations_read() {
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: []}}";
    assert_eq!(read(&format!("{pod}\n---\n{pod}\n---\n{pod}")).objects, 3);
    assert_eq!(read("replicas: 2\n").objects, 0);
    let text = "{apiVersion: v1, kind: Namespace, metadata: {name: team, annotations: {traffic.ambient.mesh/analyze-ignore: 'a, b,'}}}";
    let ignored = read(text).ignored.remove(0);
    assert_eq!((ignored.object.as_str(), ignored.codes), ("Namespace team", vec!["a".to_owned(), "b".to_owned()]));
}
