//! From a control plane's resources to the [`model`](crate::model): each resource is read by itself. Pure.
//!
//! If an invalid part could allow a connection that should be denied, the whole resource is refused with a [`Flaw`].
//! Other invalid parts are left out, and a remark is reported.

mod address;
mod detail;
mod facts;
mod object;
mod policy;
mod reading;
mod report;
mod service;
mod settings;
mod workload;

pub use self::facts::{Exactly, Fronting, ServiceExactly, ServiceFacts, WorkloadFacts};
pub use self::object::{ObjectFacts, object};
pub use self::policy::{ATTACHED, attached, policy};
pub use self::reading::{Flaw, Read, Reader};
use self::reading::{decode, same_name};
pub use self::report::{MOST_PODS, PodFacts, ReportFlaw, pods};
pub use self::settings::{SettingsFacts, settings};
use super::discovery::Resource;
use super::workload::{Address, AddressType};

/// One resource of the type [`ADDRESS`](super::discovery::ADDRESS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Facts {
    /// A workload.
    Workload(WorkloadFacts),
    /// A service.
    Service(ServiceFacts),
}

/// Reads an address. The name of a workload's resource begins with its cluster; the name of a service's is
/// `NAMESPACE/HOSTNAME`.
///
/// # Errors
/// The resource cannot be used.
pub fn address(resource: &Resource, reader: &mut Reader<'_>) -> Result<Read<Facts>, Flaw> {
    let address: Address = decode(resource)?;
    match address.r#type {
        Some(AddressType::Workload(message)) => {
            same_name(resource, &message.uid)?;
            workload::read(&message, reader).map(|read| read.map(Facts::Workload))
        }
        Some(AddressType::Service(message)) => {
            same_name(resource, &format!("{}/{}", message.namespace, message.hostname))?;
            service::read(&message, reader).map(|read| read.map(Facts::Service))
        }
        None => Err(Flaw::UnknownKind),
    }
}

#[cfg(test)]
mod tests;
