//! The real servers and clients, configured for speed and without logs.

use std::fs;

use anyhow::{Context, Result};

use super::stage::HTTP;
use crate::process::{Launch, Process};
use crate::topology::{Pod, Topology};
use crate::wait;

/// The bytes of nginx' answer.
pub(super) const BODY: [u8; 128] = [b'x'; 128];

/// A script that prints percentiles in a form that a program can parse.
pub(super) const WRK_REPORT: &str = "done = function(summary, latency, requests)\n\
    io.write(string.format(\"RESULT %d %d %d %d %d %d %d\\n\", summary.requests, summary.duration,\n\
    summary.bytes, latency:percentile(50), latency:percentile(99), latency:percentile(99.9),\n\
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status + summary.errors.timeout))\n\
    end\n";

/// nginx without a log; its connections never end by themselves.
///
/// # Errors
/// When it does not listen in time.
pub(super) fn nginx(topology: &Topology, pod: &Pod) -> Result<Process> {
    let folder = topology.folder.join(format!("bench-{}", pod.name));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let settings = folder.join("nginx.conf");
    let body = String::from_utf8_lossy(&BODY);
    let place = folder.display();
    let text = format!(
        "user root;\ndaemon off;\nmaster_process off;\npid {place}/nginx.pid;\nerror_log {place}/error.log;\n\
         events {{ worker_connections 20000; }}\n\
         http {{\n\
         client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/fastcgi;\n\
         uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;\n\
         access_log off;\nkeepalive_requests 1000000000;\nkeepalive_time 24h;\nkeepalive_timeout 24h;\ndefault_type text/plain;\n\
         server {{ listen 0.0.0.0:{HTTP}; location / {{ return 200 \"{body}\"; }} }}\n}}\n"
    );
    fs::write(&settings, text).with_context(|| format!("cannot write {}", settings.display()))?;
    let process = Launch::new("nginx")
        .args(["-p".as_ref(), folder.as_os_str(), "-e".as_ref(), folder.join("error.log").as_os_str()])
        .args(["-c".as_ref(), settings.as_os_str()])
        .inside(&pod.netns)
        .log_to(&folder.join("output.log"))
        .start()?;
    let filter = format!("sport = :{HTTP}");
    wait::until_true(&format!("nginx in {}", pod.name), wait::PATIENCE, || {
        let done = Launch::new("ss").args(["-Htnl", &filter]).inside(&pod.netns).finish()?;
        Ok(!done.stdout.trim().is_empty())
    })?;
    Ok(process)
}
