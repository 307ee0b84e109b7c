//! The Kubernetes API: the only user of `kube`.
//!
//! [`Cluster`] is an API server and the right to ask it. [`Watch`] lists the objects of one [`ResourceType`] and follows their
//! changes; what it yields are trees of fields, of which a caller reads those that it needs into a small type of its own
//! ([`Object::read`]): a `Pod` with all its fields takes ten times the memory of what a mesh needs of it. [`mesh`] is the source of a
//! mesh that is made of such objects.

mod client;
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
mod verdict;
mod watch;

pub use self::client::{Access, Cluster, ConnectError};
pub use self::failure::{Failure, Reason};
pub use self::installation::{Installation, InstallationWatch};
pub use self::node::NodeWatch;
pub use self::object::{Object, Unreadable};
pub use self::resource::{
    AUTHORIZATION_POLICIES, CONFIG_MAPS, DAEMON_SETS, ENDPOINT_SLICES, NAMESPACES, NODES, PEER_AUTHENTICATIONS, PODS,
    ResourceType, SECRETS, SERVICE_ENTRIES, SERVICES, WORKLOAD_ENTRIES,
};
pub use self::secret::{ConfigMapState, SecretData};
pub use self::status::StatusWrite;
pub use self::verdict::{Verdict, verdict};
pub use self::watch::{Report, Selection, Watch};
