//! Annotations, read so that an invalid one is reported; and the annotations that several kinds share.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use super::name::check_name;
use super::report::Report;
use crate::control::field::FieldPath;
use crate::model::locality::Distribution;
use crate::model::service::Visibility;

/// Annotation of a Service, a ServiceEntry or a Namespace: the preferred endpoints.
pub const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
/// Annotation of a Service: the namespaces whose pods see it.
pub const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// The annotations of one object.
pub(super) struct Annotations<'a> {
    pub(super) values: &'a BTreeMap<String, String>,
    pub(super) report: &'a mut Report,
}

impl Annotations<'_> {
    /// The value of one annotation; an invalid value is reported and counts as absent.
    pub(super) fn read<T, E: Display>(
        &mut self,
        key: &str,
        consequence: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.values.get(key)?;
        match parse(value) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.report_at(key, format!("annotation {key}: {value:?}: {error}; {consequence}"));
                None
            }
        }
    }

    fn report_at(&mut self, key: &str, message: String) {
        self.report.error_at(FieldPath::of("metadata.annotations").key(key), message);
    }

    /// The preferred endpoints; `None` if the object does not say.
    pub(super) fn distribution(&mut self) -> Option<Distribution> {
        self.values.get(TRAFFIC_DISTRIBUTION)?;
        let consequence = "no endpoint is preferred";
        Some(self.read(TRAFFIC_DISTRIBUTION, consequence, distribution).unwrap_or(Distribution::Any))
    }

    /// The namespaces whose pods see the object; `None` if the object does not say.
    pub(super) fn visibility(&mut self, namespace: &Arc<str>) -> Option<Visibility> {
        let text = self.values.get(EXPORT_TO).filter(|text| !text.trim().is_empty())?;
        let (visibility, wrong) = visibility(text.split(',').map(str::trim), namespace);
        for message in wrong {
            self.report_at(EXPORT_TO, format!("annotation {EXPORT_TO}: {message}"));
        }
        Some(visibility)
    }
}

/// Parses a traffic distribution, ignoring case, as Istio does.
pub(super) fn distribution(text: &str) -> Result<Distribution, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "prefersamezone" | "preferclose" => Ok(Distribution::SAME_ZONE),
        "prefersamenode" => Ok(Distribution::SAME_NODE),
        // There is only one network here.
        "any" | "prefersamenetwork" | "prefernetwork" | "" => Ok(Distribution::Any),
        _ => Err("is not PreferSameZone, PreferSameNode, PreferClose or Any"),
    }
}

/// Reads the entries of an `exportTo`. An invalid entry exports to no namespace, and is reported.
pub(in crate::control) fn visibility<'a>(
    entries: impl Iterator<Item = &'a str>,
    namespace: &Arc<str>,
) -> (Visibility, Vec<String>) {
    let (mut namespaces, mut everyone, mut wrong) = (Vec::new(), false, Vec::new());
    for entry in entries {
        match entry {
            "*" => everyone = true,
            "." => namespaces.push(Arc::clone(namespace)),
            "~" => {}
            name => match check_name(name) {
                Ok(()) => namespaces.push(name.into()),
                Err(error) => wrong.push(format!("{error}, nor '.' or '*'; the entry is ignored")),
            },
        }
    }
    (if everyone { Visibility::Everyone } else { Visibility::Namespaces(namespaces) }, wrong)
}
