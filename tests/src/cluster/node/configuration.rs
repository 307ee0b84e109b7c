//! The files that the programs of a node read.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{CNI_CONFIGURATION, CNI_PROGRAMS, CONTAINERD, STATIC_PODS};
use crate::cluster::api::{ApiServer, node_token};

/// Writes the files that containerd, the CNI plugins and the kubelet read.
pub(super) fn configure(folder: &Path, number: u8, group: &str, api: &ApiServer) -> Result<()> {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let debian = api.programs().debian();
    let folder_path = folder;
    let (folder, debian) = (folder.display(), debian.display());
    // Root may lack CAP_SYS_RESOURCE. Without it, the OOM score cannot be lowered.
    write(
        "containerd.toml",
        &format!(
            r#"version = 2
root = "{folder}/containerd"
state = "/run/containerd"

[grpc]
address = "{CONTAINERD}"

[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
disable_tcp_service = true
disable_apparmor = true
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PROGRAMS}"
conf_dir = "{CNI_CONFIGURATION}"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{debian}/usr/sbin/runc"
SystemdCgroup = false
"#,
            pause = crate::cluster::images::PAUSE
        ),
    )?;
    fs::create_dir_all(folder_path.join(STATIC_PODS)).context("cannot make the folder of static pods")?;
    write(
        "kubelet.yaml",
        &format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {roots}}}}}
authorization: {{mode: Webhook}}
containerRuntimeEndpoint: unix://{CONTAINERD}
cgroupDriver: cgroupfs
cgroupRoot: /{group}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
protectKernelDefaults: true
oomScoreAdj: 0
readOnlyPort: 0
resolvConf: /etc/resolv.conf
nodeStatusReportFrequency: 1m
evictionHard: {{nodefs.available: \"1%\", imagefs.available: \"1%\", memory.available: 100Mi}}
volumePluginDir: {folder}/volume-plugins
staticPodPath: {folder}/{STATIC_PODS}
",
            roots = api.roots().display()
        ),
    )?;
    let kubeconfig = format!("node-{number}.kubeconfig");
    let made = api.pki().kubeconfig(&kubeconfig, &api.url(), &node_token(number))?;
    write("kubelet.kubeconfig", &fs::read_to_string(made)?)?;
    write("proxy.kubeconfig", &fs::read_to_string(api.kubeconfig())?)
}
