//! The ports that a pod's kubelet probes, and the addresses from which it does so.

use super::{check, membership::pod};

#[test]
fn the_ports_of_probes_are_read() {
    let table = [
        ("{name: c}", ""),
        ("{name: c, livenessProbe: {httpGet: {port: 80}}}", " probes=[80]"),
        ("{name: c, readinessProbe: {tcpSocket: {port: 81}}}", " probes=[81]"),
        ("{name: c, startupProbe: {grpc: {port: 82}}}", " probes=[82]"),
        ("{name: c, livenessProbe: {exec: {command: [a]}}}", ""),
        (
            "{name: c, livenessProbe: {httpGet: {port: 83}}, readinessProbe: {httpGet: {port: 80}}, startupProbe: {httpGet: {port: 83}}}",
            " probes=[80, 83]",
        ),
        (
            "{name: c, livenessProbe: {httpGet: {port: 80, host: 10.0.0.9}}, readinessProbe: {tcpSocket: {port: 80, host: a}}}",
            "",
        ),
        ("{name: c, livenessProbe: {httpGet: {port: 80, host: ''}}}", " probes=[80]"),
        (
            "{name: c, livenessProbe: {httpGet: {port: 0}}, readinessProbe: {grpc: {port: -1}}, startupProbe: {tcpSocket: {port: 70000}}}",
            "",
        ),
        ("{name: c, livenessProbe: {httpGet: {port: '80'}}}", " probes=[80]"),
        ("{name: c, livenessProbe: {httpGet: {port: http}}}", ""),
        (
            "{name: c, ports: [{name: http, containerPort: 8080}], livenessProbe: {httpGet: {port: http}}}",
            " http=8080 probes=[8080]",
        ),
        // A name refers to a port of the same container.
        (
            "{name: a, ports: [{name: http, containerPort: 8080}], livenessProbe: {tcpSocket: {port: http}}}, {name: b, ports: [{name: \
             http, containerPort: 9090}], livenessProbe: {httpGet: {port: http}}}, {name: c, livenessProbe: {httpGet: {port: http}}}",
            " http=8080 probes=[8080, 9090]",
        ),
    ];
    for (containers, expected) in table {
        let text = pod("", "", "", "").replace("containers: []", &format!("containers: [{containers}]"));
        check(
            &format!("# file: p.yaml\n{text}"),
            &format!(
                "pod demo/p sa=default 10.0.0.1 netns=/run/netns/p{} not labelled{}",
                before(expected),
                after(expected)
            ),
        );
    }
}

/// Named ports are shown before the membership, probes after it.
fn before(expected: &str) -> &str {
    expected.split(" probes").next().unwrap()
}

fn after(expected: &str) -> &str {
    &expected[before(expected).len()..]
}

#[test]
fn hooks_of_the_kubelet_count_as_probes() {
    let table = [
        ("{postStart: {httpGet: {port: 80}}}", " probes=[80]"),
        ("{preStop: {httpGet: {port: http}}}", " probes=[8080]"),
        ("{postStart: {tcpSocket: {port: '81'}}, preStop: {httpGet: {port: 80}}}", " probes=[80, 81]"),
        ("{postStart: {exec: {command: [a]}}, preStop: {sleep: {seconds: 1}}}", ""),
        ("{preStop: {httpGet: {port: 80, host: 10.0.0.9}}}", ""),
        ("{preStop: {httpGet: {port: 80, host: 10.0.0.1}}}", " probes=[80]"),
        ("{preStop: {httpGet: {port: 80, host: '::ffff:10.0.0.1'}}}", " probes=[80]"),
        ("{preStop: {httpGet: {port: 0}}}", ""),
    ];
    let ports = "ports: [{name: http, containerPort: 8080}]";
    let shown = "pod demo/p sa=default 10.0.0.1 netns=/run/netns/p http=8080 not labelled";
    for (lifecycle, expected) in table {
        let containers = format!("containers: [{{name: c, {ports}, lifecycle: {lifecycle}}}]");
        let text = pod("", "", "", "").replace("containers: []", &containers);
        check(&format!("# file: p.yaml\n{text}"), &format!("{shown}{expected}"));
    }
}

#[test]
fn init_containers_have_probes_when_they_stay() {
    let init = |policy: &str| {
        let probes = "readinessProbe: {httpGet: {port: 80}}, lifecycle: {preStop: {httpGet: {port: http}}}";
        let spec =
            format!(", initContainers: [{{name: i{policy}, ports: [{{name: http, containerPort: 81}}], {probes}}}]");
        format!("# file: p.yaml\n{}", pod("", "", &spec, ""))
    };
    let shown = "pod demo/p sa=default 10.0.0.1 netns=/run/netns/p not labelled";
    check(
        &init(", restartPolicy: Always"),
        &shown.replace(" not", " http=81 not").replace("labelled", "labelled probes=[80, 81]"),
    );
    check(&init(", restartPolicy: Never"), shown);
    check(&init(""), shown);
}

#[test]
fn the_nodes_addresses_are_read() {
    let shown = |status: &str, expected: &str| {
        check(
            &format!("# file: p.yaml\n{}", pod("", "", "", status)),
            &format!("pod demo/p sa=default 10.0.0.1 netns=/run/netns/p not labelled{expected}"),
        );
    };
    shown(", hostIP: 192.168.0.1", " host=[192.168.0.1]");
    shown(
        ", hostIP: 192.168.0.1, hostIPs: [{ip: '::ffff:192.168.0.2'}, {ip: 'FD00::1'}, {ip: 192.168.0.2}]",
        " host=[192.168.0.2, fd00::1]",
    );
    shown(", hostIPs: []", "");
    shown(
        ", hostIPs: [{ip: 127.0.0.1}, {ip: node}]",
        "
        problem p.yaml:5: Pod demo/p: status.hostIPs: \"node\" is not an IP address; the address is ignored
        problem p.yaml:5: Pod demo/p: status.hostIPs: 127.0.0.1 is a loopback, ...",
    );
}
