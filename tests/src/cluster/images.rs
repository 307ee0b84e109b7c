//! The images that the nodes have besides those under test. They are made from Debian's static busybox.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::oci::{Image, ImageFile};
use super::programs::Programs;

/// The image of the container that does nothing and holds the namespaces of a pod.
pub const PAUSE: &str = "registry.local/ztunnel/pause:1";

/// busybox, for example with `httpd` and `wget`.
pub const BUSYBOX: &str = "registry.local/ztunnel/busybox:1";

/// The commands of busybox that pods call by their own names.
const COMMANDS: [&str; 14] =
    ["cat", "echo", "env", "hostname", "httpd", "ip", "ls", "mkdir", "nc", "sh", "sleep", "timeout", "touch", "wget"];

/// Writes the images to a folder.
///
/// # Errors
/// When busybox is not in the cache, or a file can't be written.
pub fn write(folder: &Path, programs: &Programs) -> Result<Vec<PathBuf>> {
    let busybox = std::fs::read(programs.unpacked("bin/busybox")?)?;
    let mut files = vec![ImageFile::program("bin/busybox", busybox)];
    files.extend(COMMANDS.map(|name| ImageFile::link(&format!("bin/{name}"), "busybox")));
    let files = &files;
    // One day less than the greatest signed 32-bit number of seconds.
    let pause = Image { name: PAUSE, entrypoint: &["/bin/sleep", "2147397247"], user: "65534", labels: &[], files };
    let busybox = Image { name: BUSYBOX, entrypoint: &["/bin/sh"], user: "", labels: &[], files };
    [("pause.tar", &pause), ("busybox.tar", &busybox)]
        .into_iter()
        .map(|(file, image)| {
            let path = folder.join(file);
            image.write(&path)?;
            Ok(path)
        })
        .collect()
}

/// A Deployment whose pods are on different nodes and answer HTTP on port 8080 with their own name.
#[must_use]
pub fn web(name: &str, namespace: &str, replicas: u8) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        labelSelector: {{matchLabels: {{app: {name}}}}}
      containers:
      - name: web
        image: {BUSYBOX}
        imagePullPolicy: IfNotPresent
        command: [/bin/sh, -c, 'mkdir /tmp/www; hostname >/tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www']
        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
        resources: {{limits: {{memory: 64Mi}}}}
        securityContext: {{seccompProfile: {{type: RuntimeDefault}}}}
"
    )
}
