//! The daemon's container is not privileged. Each of its capabilities and mounts is needed, and is named when it is missing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use ztunnel_tests::cluster::mesh::Mesh;
use ztunnel_tests::cluster::{Cluster, chart, images};
use ztunnel_tests::{settings, wait};

const NODE: &str = "node-1";
const NAMESPACE: &str = "demo";

/// The six capabilities of the chart: the bits of `/proc/PID/status`.
const HELD: u64 = 1 << 12 | 1 << 13 | 1 << 18 | 1 << 19 | 1 << 21 | 1 << 39;

/// A machine with many tests at once takes this time for a pod.
const PATIENCE: Duration = Duration::from_secs(90);

/// A daemon runs without these here: CAP_SYS_ADMIN includes CAP_BPF, and this kernel needs no CAP_NET_RAW.
const DISPENSABLE: [&str; 2] = ["BPF", "NET_RAW"];

/// The place of the daemon's container in the specification of its pod.
const CONTAINER: &str = "/containers/0";

/// A pod like those of the DaemonSet, with other arguments. `change` may take something away from it.
fn pod(template: &Value, name: &str, args: &[&str], change: impl FnOnce(&mut Value) -> Result<()>) -> Result<Value> {
    let mut spec = template.pointer("/spec").context("no pod")?.clone();
    change(&mut spec)?;
    fields(&mut spec, "")?.extend([("nodeName".to_owned(), json!(NODE)), ("restartPolicy".to_owned(), json!("Never"))]);
    let container = fields(&mut spec, CONTAINER)?;
    container.insert("args".to_owned(), json!(args));
    for left_out in ["startupProbe", "readinessProbe", "livenessProbe", "resources"] {
        container.remove(left_out);
    }
    Ok(json!({"apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"name": name, "namespace": chart::NAMESPACE,
            "labels": {"app": "permissions", "istio.io/dataplane-mode": "none"}}}))
}

fn fields<'a>(value: &'a mut Value, pointer: &str) -> Result<&'a mut Map<String, Value>> {
    value.pointer_mut(pointer).and_then(Value::as_object_mut).with_context(|| format!("no fields at {pointer}"))
}

/// Takes the elements of a list away that are so.
fn take(spec: &mut Value, list: &str, is_it: impl Fn(&Value) -> bool) -> Result<()> {
    let list = spec.pointer_mut(&format!("{CONTAINER}/{list}")).and_then(Value::as_array_mut).context("no list")?;
    let before = list.len();
    list.retain(|element| !is_it(element));
    ensure!(list.len() + 1 == before, "{list:?}");
    Ok(())
}

fn take_capability(spec: &mut Value, name: &str) -> Result<()> {
    take(spec, "securityContext/capabilities/add", |capability| capability == name)
}

fn take_mount(spec: &mut Value, name: &str) -> Result<()> {
    take(spec, "volumeMounts", |mount| mount["name"] == name)
}

/// The phase and the log of a pod that has ended.
fn ended(cluster: &Cluster, name: &str) -> Result<(String, String)> {
    let api = cluster.api();
    let phase = wait::until(&format!("the pod {name} has ended"), PATIENCE, || {
        let phase = api.kubectl(["get", "pod", "-n", chart::NAMESPACE, name, "-o", "jsonpath={.status.phase}"])?;
        Ok(["Succeeded", "Failed"].contains(&&*phase).then_some(phase))
    });
    let phase = phase.with_context(|| {
        api.try_kubectl(["describe", "pod", "-n", chart::NAMESPACE, name])
            .map_or_else(|error| error.to_string(), |done| done.stdout)
    })?;
    Ok((phase, api.kubectl(["logs", "-n", chart::NAMESPACE, name])?))
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn the_container_has_six_capabilities_and_each_of_them_and_each_mount_is_needed() -> Result<()> {
    let cluster = Cluster::start(1)?;
    let api = cluster.api();
    // A node without a BPF file system: the daemon mounts one on the node.
    let unmounted = cluster.node(NODE)?.launch("umount").args(["/sys/fs/bpf"]).finish()?;
    ensure!(unmounted.success, "{unmounted:?}");
    let mesh = Mesh::install(&cluster, &settings::daemon_image()?, &["controlPlane.replicas=1"])?;
    let mounted = cluster.node(NODE)?.launch("stat").args(["-f", "-c", "%T", "/sys/fs/bpf"]).finish()?;
    ensure!(mounted.stdout.trim() == "bpf_fs", "the node has no BPF file system: {mounted:?}");

    // The daemon's process has these capabilities only, and it cannot write the sysctls of its container.
    let status =
        cluster.node(NODE)?.launch("sh").args(["-c", "cat /proc/$(pgrep -o -f 'ztunnel run')/status"]).finish()?;
    let effective = status.stdout.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    ensure!(u64::from_str_radix(effective.trim(), 16)? == HELD, "{effective}");
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
        ensure!(status.stdout.lines().any(|other| other == line), "{line} is not in {}", status.stdout);
    }

    // Pods are enrolled, carried, and released.
    api.apply(&format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}, labels: {{istio.io/dataplane-mode: ambient}}}}}}"
    ))?;
    api.apply(&images::web("web", NAMESPACE, 1))?;
    cluster.rolled_out(NAMESPACE, "deployment/web")?;
    let pods = cluster.pods(NAMESPACE, "app=web")?;
    let server = pods.first().context("no pod")?;
    mesh.wait_for(server, "enrolled")?;
    let answer = cluster.fetch(server, &format!("http://{}:8080/", server.address))?;
    ensure!(answer.as_ref() == Ok(&server.name), "{answer:?}");

    let set: Value =
        serde_json::from_str(&api.kubectl(["get", "daemonset", "ztunnel", "-n", chart::NAMESPACE, "-o", "json"])?)?;
    let template = &set["spec"]["template"];
    let check = ["check", "--pods", "kubernetes", "--proc", "/proc", "-o", "json"];
    let with_plugin = ["run", "--pods=kubernetes", "--control-plane=https://none:1", "--cni-install"];
    let mut all = vec![pod(template, "check-complete", &check, |_| Ok(()))?];
    let capabilities = ["BPF", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "SYS_CHROOT"];
    for name in capabilities {
        let lower = name.to_lowercase().replace('_', "-");
        all.push(pod(template, &format!("check-{lower}"), &check, |spec| take_capability(spec, name))?);
        if !DISPENSABLE.contains(&name) {
            all.push(pod(template, &format!("run-{lower}"), &with_plugin, |spec| take_capability(spec, name))?);
        }
    }
    let mounts = [("bpf", "pins outlive the daemon"), ("cgroup", "cgroup v2 root")];
    for (name, _) in mounts {
        all.push(pod(template, &format!("check-mount-{name}"), &check, |spec| take_mount(spec, name))?);
    }
    all.push(pod(template, "check-host-pid", &check, |spec| {
        fields(spec, "")?.insert("hostPID".to_owned(), json!(false));
        Ok(())
    })?);
    for pod in &all {
        api.apply(&pod.to_string())?;
    }

    let row = |log: &str, name: &str| -> Result<Value> {
        let checked: Value = serde_json::from_str(log).with_context(|| log.to_owned())?;
        let rows = checked["requirements"].as_array().cloned().unwrap_or_default();
        rows.into_iter().find(|row| row["name"] == name).with_context(|| format!("no row {name}: {log}"))
    };
    let (phase, log) = ended(&cluster, "check-complete")?;
    ensure!(phase == "Succeeded", "{log}");
    let sysctls = row(&log, "sysctls for marks")?;
    ensure!(sysctls["found"].as_str().is_some_and(|found| found.contains("procfs of the daemon's own")), "{sysctls}");
    for name in capabilities {
        let (lower, full) = (name.to_lowercase().replace('_', "-"), format!("CAP_{name}"));
        let (phase, log) = ended(&cluster, &format!("check-{lower}"))?;
        let found = row(&log, &full)?;
        match name {
            _ if DISPENSABLE.contains(&name) => ensure!(found["state"] == "ok" && phase == "Succeeded", "{found}"),
            "SYS_CHROOT" => ensure!(found["state"] == "lost" && phase == "Succeeded", "{found}"),
            _ => ensure!(found["state"] == "missing" && phase == "Failed", "{found}"),
        }
        if !DISPENSABLE.contains(&name) {
            let (phase, run) = ended(&cluster, &format!("run-{lower}"))?;
            let is_named = run.contains(&format!("missing {full}")) && run.contains("securityContext.capabilities.add");
            ensure!(phase == "Failed" && is_named, "{full}: {phase} {run}");
        }
    }
    for (name, requirement) in mounts {
        let (phase, log) = ended(&cluster, &format!("check-mount-{name}"))?;
        let found = row(&log, requirement)?;
        ensure!(found["state"] == "missing" && phase == "Failed", "{name}: {found}");
    }
    let (phase, log) = ended(&cluster, "check-host-pid")?;
    ensure!(phase == "Failed" && row(&log, "pins outlive the daemon")?["state"] == "missing", "{log}");

    api.kubectl(["delete", "pods", "-n", chart::NAMESPACE, "-l", "app=permissions", "--wait=false"])?;
    mesh.uninstall()?;
    ensure!(cluster.in_kernel(NODE)?.is_empty(), "{:?}", cluster.in_kernel(NODE)?);
    Ok(())
}
