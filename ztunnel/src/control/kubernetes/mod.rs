//! The Kubernetes API: the only user of `kube`.
//!
//! [`Cluster`] is an API server with credentials. [`Watch`] lists the objects of one [`ResourceType`] and follows their
//! changes. It yields trees of fields; a caller reads the fields that it needs into its own small type ([`Object::read`]). A
//! `Pod` with all its fields needs ten times the memory of the fields that a mesh needs. [`mesh`] is the source of a mesh from
//! such objects.

mod answer;
mod client;
mod event;
mod failure;
mod installation;
pub mod mesh;
mod node;
mod object;
mod resource;
pub mod review;
#[cfg(test)]
pub(crate) mod script;
mod secret;
mod status;
mod taint;
mod verdict;
mod watch;

pub use self::client::{Access, Cluster, ConnectError};
pub use self::event::{EventWritten, PodEvent, event_note};
pub use self::failure::{Failure, Reason};
pub use self::installation::{Installation, InstallationWatch};
pub use self::node::NodeWatch;
pub use self::object::{Object, Unreadable};
pub use self::resource::{
    AUTHORIZATION_POLICIES, CONFIG_MAPS, DAEMON_SETS, ENDPOINT_SLICES, EVENTS, NAMESPACES, NODES, PEER_AUTHENTICATIONS,
    PODS, ResourceType, SECRETS, SERVICE_ENTRIES, SERVICES, WORKLOAD_ENTRIES,
};
pub use self::secret::{ConfigMapState, SecretData};
pub use self::status::StatusWrite;
pub use self::taint::StartupTaint;
pub use self::verdict::{Verdict, verdict};
pub use self::watch::{Report, Selection, Watch};
