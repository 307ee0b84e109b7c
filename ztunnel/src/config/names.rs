//! Values of flags that are names of Kubernetes objects.

use crate::model::name::check_name;

/// Checks the name, because a daemon with a name that no node can have would be ready but capture nothing.
pub(super) fn node_name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned()).map_err(|error| {
        format!("{error}; set --node to the name of this node as `kubectl get nodes` shows it and pods have it in spec.nodeName")
    })
}

/// Checks the name of a namespace.
pub(super) fn namespace(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}
