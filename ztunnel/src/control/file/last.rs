//! The last valid version of the objects of a file that can't be read now.

use std::collections::{BTreeMap, HashSet};

use ipnet::IpNet;

use crate::control::manifests::{AddressesIn, Fault, PoliciesIn, Subject};
use crate::control::objects::{Object, title};
use crate::model::origin::Origin;
use crate::model::workload::NamespacedName;

/// The most addresses that are listed.
const MOST_ADDRESSES: usize = 4;

/// The objects of an earlier version of a file that stay in force.
#[derive(Debug, Default)]
pub(super) struct LastValid {
    /// The objects, with the places of the faults that replace them.
    pub(super) objects: Vec<Object>,
    /// Indexes of the faults whose own object is among them.
    exact: HashSet<usize>,
    /// For each fault, how many objects it may be, and the title of the first of them.
    counts: BTreeMap<usize, (usize, String)>,
}

impl LastValid {
    /// `before` are the objects that the file had, `now` those that it has.
    ///
    /// A fault that names an object which was there keeps that object. A fault that names no object, or an object that
    /// was not there, keeps every object of its kind that is missing now: the object may have got another name.
    pub(super) fn of(before: Vec<Object>, now: &[Object], faults: &[Fault]) -> Self {
        let mut last = Self::default();
        if faults.is_empty() {
            return last;
        }
        fn key(object: &Object) -> (&'static str, &NamespacedName) {
            (object.body.kind(), &object.name)
        }
        let there: HashSet<_> = now.iter().map(key).collect();
        let gone: Vec<Object> = before.into_iter().filter(|object| !there.contains(&key(object))).collect();
        let names: HashSet<_> = gone.iter().map(key).collect();
        for (index, fault) in faults.iter().enumerate() {
            if matches!(&fault.subject, Subject::Object(kind, name) if names.contains(&(*kind, name))) {
                last.exact.insert(index);
            }
        }
        let takes = |index: usize, fault: &Fault, object: &Object| match &fault.subject {
            Subject::Object(kind, name) if last.exact.contains(&index) => key(object) == (*kind, name),
            Subject::Object(kind, _) | Subject::Kind(kind) => object.body.kind() == *kind,
            Subject::Unknown => true,
        };
        let mut objects = Vec::new();
        for object in &gone {
            let mut takers = faults.iter().enumerate().filter(|(index, fault)| takes(*index, fault, object));
            let Some((index, fault)) = takers.next() else { continue };
            for index in takers.map(|(index, _)| index).chain([index]) {
                let first = || (0, title(object.body.kind(), &object.name));
                last.counts.entry(index).or_insert_with(first).0 += 1;
            }
            let origin = fault
                .error
                .line
                .map_or_else(|| object.origin.clone(), |line| Origin::line_of(fault.error.file.clone(), line));
            objects.push(Object { origin, ..object.clone() });
        }
        last.objects = objects;
        last
    }

    /// Whether the object of a fault is known, so that the fault hides nothing.
    pub(super) fn has_all(&self, fault: usize) -> bool {
        self.exact.contains(&fault)
    }

    /// The consequence of a fault, as text. `was_whole`: the whole file was valid before.
    pub(super) fn consequence(&self, index: usize, fault: &Fault, was_whole: bool) -> String {
        match (self.counts.get(&index), self.exact.contains(&index)) {
            (Some(_), true) => "the last valid version of the object stays in force".to_owned(),
            (Some((1, object)), false) => format!("it may be {object}, whose last valid version stays in force"),
            (Some((count, object)), false) => {
                let more = count - 1;
                format!(
                    "it may be {object} or one of {more} more of this file, whose last valid versions stay in force"
                )
            }
            (None, _) if fault.is_template => "until then it is ignored".to_owned(),
            (None, _) if was_whole => "it is ignored until it is corrected".to_owned(),
            (None, _) => hidden(fault),
        }
    }
}

/// A single address without its prefix length.
fn net(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

/// The consequence of a fault for which there is no last valid version, as text.
fn hidden(fault: &Fault) -> String {
    let mut closed = Vec::new();
    match &fault.hides.addresses {
        AddressesIn::Nowhere => {}
        AddressesIn::These(addresses) if addresses.is_empty() => {}
        AddressesIn::These(addresses) => {
            let shown: Vec<String> = addresses.iter().take(MOST_ADDRESSES).map(net).collect();
            let more = match addresses.len().saturating_sub(MOST_ADDRESSES) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            closed.push(format!("connections to {}{more} are refused", shown.join(", ")));
        }
        AddressesIn::Anywhere => closed.push("connections to unknown addresses are refused".to_owned()),
    }
    match &fault.hides.policies {
        PoliciesIn::Anywhere => closed.push("all pods accept only health probes".to_owned()),
        PoliciesIn::Namespaces(namespaces) if namespaces.is_empty() => {}
        PoliciesIn::Namespaces(namespaces) => {
            let names: Vec<&str> = namespaces.iter().map(|name| &**name).collect();
            closed.push(format!("pods of namespace {} accept only health probes", names.join(", ")));
        }
    }
    if closed.is_empty() {
        return "it is ignored until it is corrected".to_owned();
    }
    format!(
        "it is ignored until it is corrected; unless the whole folder was valid before it came, {} until then",
        closed.join(" and ")
    )
}
