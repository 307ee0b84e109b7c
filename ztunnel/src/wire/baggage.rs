//! `baggage`: the description of a node's workload for the telemetry of the other side. No decision may depend on it: only the
//! identity in the certificate is trusted.

use std::{fmt, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::model::workload::{ControllerKind, Workload};

/// The header's name.
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// The usual length of all seven entries.
const USUAL_BYTES: usize = 224;
/// The maximum number of bytes that are read from a request's baggage, over all its headers, without commas.
const MOST_BYTES: usize = 8 << 10;
/// The maximum number of entries that are read; Istio sends seven.
const MOST_ENTRIES: usize = 64;
/// The longest value; names of objects have at most 253 bytes.
const LONGEST_VALUE: usize = 253;

/// The description of a workload. Values that can't be written into the header (empty, longer than 253 bytes, with spaces,
/// commas, equals signs or anything but visible ASCII) are left out when it is written, and never result from parsing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Baggage {
    /// `k8s.cluster.name`.
    pub cluster: Option<Arc<str>>,
    /// `k8s.namespace.name`.
    pub namespace: Option<Arc<str>>,
    /// `k8s.<kind>.name`.
    pub workload: Option<(ControllerKind, Arc<str>)>,
    /// `service.name`: the canonical service.
    pub service: Option<Arc<str>>,
    /// `service.version`: the canonical revision.
    pub version: Option<Arc<str>>,
    /// `cloud.region`.
    pub region: Option<Arc<str>>,
    /// `cloud.availability_zone`.
    pub zone: Option<Arc<str>>,
}

impl Baggage {
    /// The description of a workload in the named cluster.
    #[must_use]
    pub fn of(workload: &Workload, cluster: &Arc<str>) -> Self {
        let known = |value: &Arc<str>| is_word(value).then(|| Arc::clone(value));
        let controller = &workload.controller;
        Self {
            cluster: known(cluster),
            namespace: known(&workload.name.namespace),
            workload: known(&controller.name).map(|name| (controller.kind, name)),
            service: known(&workload.canonical_name),
            version: known(&workload.canonical_revision),
            region: known(&workload.locality.region),
            zone: known(&workload.locality.zone),
        }
    }

    /// Reads all `baggage` headers as one list. Unknown or malformed entries are skipped; the last value of a key is used.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Self {
        Self::read(headers.get_all(BAGGAGE).iter().map(HeaderValue::as_bytes))
    }

    /// Reads one header's value.
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        Self::read([value].into_iter())
    }

    fn read<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut baggage = Self::default();
        let mut bytes_left = MOST_BYTES;
        for entry in values.flat_map(|list| list.split(|byte| *byte == b',')).take(MOST_ENTRIES) {
            let Some(left) = bytes_left.checked_sub(entry.len()) else { break };
            bytes_left = left;
            let mut parts = entry.split(|byte| *byte == b'=').map(<[u8]>::trim_ascii);
            // As in Istio, the text after a second equals sign is not part of the value.
            if let (Some(key), Some(value)) = (parts.next(), parts.next()) {
                baggage.set(key, std::str::from_utf8(value).ok().filter(|value| is_word(value)));
            }
        }
        baggage
    }

    fn set(&mut self, key: &[u8], value: Option<&str>) {
        let value = value.map(Arc::from);
        let workload = |kind| value.clone().map(|name| (kind, name));
        match key {
            b"k8s.cluster.name" => self.cluster = value,
            b"k8s.namespace.name" => self.namespace = value,
            b"k8s.deployment.name" => self.workload = workload(ControllerKind::Deployment),
            b"k8s.cronjob.name" => self.workload = workload(ControllerKind::CronJob),
            b"k8s.job.name" => self.workload = workload(ControllerKind::Job),
            b"k8s.pod.name" => self.workload = workload(ControllerKind::Pod),
            b"service.name" => self.service = value,
            b"service.version" => self.version = value,
            b"cloud.region" => self.region = value,
            b"cloud.availability_zone" => self.zone = value,
            _ => {}
        }
    }

    /// The header's value; empty if nothing is known.
    #[must_use]
    pub fn to_header(&self) -> HeaderValue {
        // Words are visible ASCII, so this can't fail.
        HeaderValue::try_from(self.text()).unwrap_or(HeaderValue::from_static(""))
    }

    fn text(&self) -> String {
        let mut text = String::with_capacity(USUAL_BYTES);
        let workload_key = match self.workload.as_ref().map(|(kind, _)| kind) {
            Some(ControllerKind::CronJob) => "k8s.cronjob.name",
            Some(ControllerKind::Job) => "k8s.job.name",
            Some(ControllerKind::Pod) => "k8s.pod.name",
            Some(ControllerKind::Deployment) | None => "k8s.deployment.name",
        };
        for (key, value) in [
            ("k8s.cluster.name", self.cluster.as_deref()),
            ("k8s.namespace.name", self.namespace.as_deref()),
            (workload_key, self.workload.as_ref().map(|(_, name)| &**name)),
            ("service.name", self.service.as_deref()),
            ("service.version", self.version.as_deref()),
            ("cloud.region", self.region.as_deref()),
            ("cloud.availability_zone", self.zone.as_deref()),
        ] {
            if let Some(value) = value.filter(|value| is_word(value)) {
                if !text.is_empty() {
                    text.push(',');
                }
                text.push_str(key);
                text.push('=');
                text.push_str(value);
            }
        }
        text
    }
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// Whether a value can be written into the header. The header has no escaping.
fn is_word(value: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b',' && byte != b'=';
    (1..=LONGEST_VALUE).contains(&value.len()) && value.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::{BAGGAGE, Baggage};
    use crate::model::workload::ControllerKind;
    use http::{HeaderMap, HeaderValue};

    const ISTIO: &str = "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=local-deploy,\
        service.name=local-app,service.version=v1,cloud.region=r1,cloud.availability_zone=z1";

    /// Checks the baggage as it is written again.
    fn check(text: &str, expected: &str) {
        assert_eq!(Baggage::parse(text.as_bytes()).to_string(), expected, "{text:?}");
    }

    #[test]
    fn istios_sample_is_read_and_written_again() {
        let baggage = Baggage::parse(ISTIO.as_bytes());
        assert_eq!(baggage.workload, Some((ControllerKind::Deployment, "local-deploy".into())));
        assert_eq!(baggage.zone.as_deref(), Some("z1"));
        assert_eq!(baggage.to_header(), ISTIO);
    }

    #[test]
    fn what_is_not_understood_is_skipped() {
        check("", "");
        check(",,=,==,a,k8s.namespace.name", "");
        check("k8s.namespace.name=", "");
        check("K8S.namespace.name=a", "");
        check("k8s.statefulset.name=a", "");
        check("k8s.namespace.name=a,k8s.namespace.name=b", "k8s.namespace.name=b");
        check("k8s.namespace.name=a,k8s.namespace.name=", "");
        check("k8s.namespace.name=a=b", "k8s.namespace.name=a");
        check(" k8s.namespace.name = a , service.name=b;p", "k8s.namespace.name=a,service.name=b;p");
        check("k8s.namespace.name=a b,service.name=\u{e4},service.version=1", "service.version=1");
        check("k8s.job.name=j,k8s.pod.name=p", "k8s.pod.name=p");
        check(&format!("service.name={}", "a".repeat(254)), "");
        check(&format!("{}service.name=a", ",".repeat(64)), "");
        check(&format!("service.name=a,x={},service.version=1", "y".repeat(9000)), "service.name=a");
    }

    #[test]
    fn several_headers_are_one_list() {
        let mut headers = HeaderMap::new();
        headers.append(BAGGAGE, HeaderValue::from_static("service.name=a,service.version=1"));
        headers.append(BAGGAGE, HeaderValue::from_bytes(b"service.version=\xff").unwrap());
        headers.append(BAGGAGE, HeaderValue::from_static("cloud.region=r"));
        assert_eq!(Baggage::from_headers(&headers).to_string(), "service.name=a,cloud.region=r");
        let long = HeaderValue::try_from("x".repeat(9000)).unwrap();
        headers.append(BAGGAGE, long);
        headers.append(BAGGAGE, HeaderValue::from_static("cloud.region=s"));
        assert_eq!(Baggage::from_headers(&headers).to_string(), "service.name=a,cloud.region=r");
    }

    #[test]
    fn a_value_that_would_mean_something_else_is_left_out() {
        let baggage = Baggage {
            namespace: Some("a,service.name=admin".into()),
            service: Some("b\r\nx: y".into()),
            version: Some("".into()),
            region: Some("r".into()),
            ..Baggage::default()
        };
        assert_eq!(baggage.to_header(), "cloud.region=r");
    }
}
