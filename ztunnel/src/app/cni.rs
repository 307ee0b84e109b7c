//! Starts the daemon's side of the CNI plugin, and removes the plugin when the daemon is removed.

use anyhow::bail;
use tokio::sync::watch;
use tracing::{Span, error, info};

use crate::{
    cni::{
        Place,
        install::{self, Installer, Remover, Settings},
        serve::{Server, Shared, keep_seen},
    },
    config::RunArgs,
    lifecycle::tasks::{TaskCount, TaskSet},
    model::node_pods::NodePods,
    pods::{
        arrivals::Arrivals,
        kubernetes::sandbox::Sandboxes,
        proc::{self, Finder},
    },
};

/// What the source of this node's pods has for it.
pub(super) struct Parts {
    pub(super) news: watch::Receiver<NodePods>,
    pub(super) sandboxes: Sandboxes,
    pub(super) finder: Finder<proc::Linux>,
}

/// What has been started.
pub(super) struct Started {
    /// Removes the plugin from the node.
    remover: Option<Remover>,
    /// Why new pods of the mesh may start before they are enrolled; nothing: they do not.
    pub(super) window: watch::Receiver<Option<String>>,
}

/// Of a node whose daemon does not install the plugin.
const NOT_INSTALLED: &str = "--cni-install is not set: pods of the mesh are enrolled after their first container has started, and \
                             connections that it opens before are outside of the mesh";

/// Starts it with `--cni-install`, and removes an installed plugin without. `parts`: those of a node whose pods are in the Kubernetes API.
pub(super) fn start(
    args: &RunArgs,
    parts: Option<Parts>,
    arrivals: Arrivals,
    services: &mut TaskSet,
    tasks: &TaskCount,
) -> anyhow::Result<Started> {
    let place = Place::of(&args.state);
    if !args.cni.install {
        let removed = install::remove(&place);
        if matches!(removed, Ok(true)) {
            info!("the CNI plugin is removed: --cni-install is not set");
        }
        // The daemon starts all the same: without it, the pods that run lose their connections as well.
        let failed = removed
            .err()
            .map(|error| format!("cannot remove the CNI plugin that a daemon has installed before: {error}"));
        if let Some(failed) = &failed {
            error!("{failed}");
        }
        let window = failed.or_else(|| parts.map(|_| NOT_INSTALLED.to_owned()));
        return Ok(Started { remover: None, window: watch::channel(window).1 });
    }
    let Some(Parts { news, sandboxes, finder }) = parts else { bail!("--cni-install needs --pods kubernetes") };
    let shared = Shared { news: news.clone(), sandboxes, arrivals, finder };
    let server = Server::bind(&place, shared, tasks.clone())?;
    let settings = Settings {
        programs: args.cni.programs.clone(),
        configuration: args.cni.configuration.clone(),
        excluded: excluded(args),
        root: args.plane.proc.join("1/root"),
    };
    let installer = Installer::new(place.clone(), settings);
    let started = Started { remover: Some(installer.remover()), window: installer.problem() };
    let (told, mut is_written) = watch::channel(false);
    services.spawn(Span::none(), server.run());
    services.spawn(Span::none(), keep_seen(place, news, told));
    services.spawn(Span::none(), async move {
        // Only then the plugin knows which pods may start without a daemon.
        if is_written.wait_for(|is_written| *is_written).await.is_ok() {
            installer.run().await;
        }
    });
    Ok(started)
}

/// Namespaces whose pods never wait for a daemon.
fn excluded(args: &RunArgs) -> Vec<String> {
    let mut excluded = args.cni.excluded.clone();
    excluded.extend(args.plane.daemon_set.as_ref().map(|name| name.namespace.to_string()));
    excluded.sort_unstable();
    excluded.dedup();
    excluded
}

/// Removes the plugin from the node, as the daemon is being removed: pods start without it from now on.
pub(super) async fn remove(started: Started) {
    let Some(remover) = started.remover else { return };
    match tokio::task::spawn_blocking(move || remover.remove()).await {
        Ok(Ok(_)) => info!("the CNI plugin is removed"),
        Ok(Err(error)) => error!("the CNI plugin is still on the node: {error}; `ztunnel cleanup` tries again"),
        Err(failure) => error!(%failure, "removing the CNI plugin failed: this is a bug, please report it"),
    }
}
