//! The location of a workload, for the choice between endpoints.

use std::fmt;
use std::sync::Arc;

/// Region, zone and subzone; an unknown part is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    /// `topology.kubernetes.io/region`.
    pub region: Arc<str>,
    /// `topology.kubernetes.io/zone`.
    pub zone: Arc<str>,
    /// `topology.istio.io/subzone`.
    pub subzone: Arc<str>,
}

impl Locality {
    /// Parses `region/zone/subzone`; the later parts may be missing.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/');
        let mut part = || Arc::from(parts.next().unwrap_or_default());
        Self { region: part(), zone: part(), subzone: part() }
    }
}

/// Which endpoints of a service a client prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Distribution {
    /// No preference.
    Any,
    /// Endpoints that share more of these scopes with the client, from the first scope on, are preferred
    /// (`trafficDistribution`; Istio's mode FAILOVER).
    Prefer(Scopes),
    /// Only endpoints that share all of these scopes with the client (`internalTrafficPolicy: Local`; Istio's mode STRICT).
    Require(Scopes),
}

impl Distribution {
    /// `PreferSameZone`, `PreferClose`.
    pub const SAME_ZONE: Self = Self::Prefer(Scopes([Some(Scope::Region), Some(Scope::Zone), None, None]));
    /// `PreferSameNode`.
    pub const SAME_NODE: Self =
        Self::Prefer(Scopes([Some(Scope::Region), Some(Scope::Zone), Some(Scope::Subzone), Some(Scope::Node)]));
    /// `internalTrafficPolicy: Local`.
    pub const ONLY_SAME_NODE: Self = Self::Require(Scopes([Some(Scope::Node), None, None, None]));

    /// The distance of an endpoint from its client; 0 is nearest. `None`: the endpoint must not be used.
    ///
    /// The distance is the number of scopes from the first one that differs. Two unknown values are equal, as in Istio, except
    /// for nodes.
    #[must_use]
    pub fn distance(self, client: TopologyPosition<'_>, endpoint: TopologyPosition<'_>) -> Option<u8> {
        let same = |scope: &Scope| match scope {
            Scope::Region => client.locality.region == endpoint.locality.region,
            Scope::Zone => client.locality.zone == endpoint.locality.zone,
            Scope::Subzone => client.locality.subzone == endpoint.locality.subzone,
            Scope::Node => client.node.is_some() && client.node == endpoint.node,
        };
        match self {
            Self::Any => Some(0),
            Self::Require(scopes) => scopes.iter().all(|scope| same(&scope)).then_some(0),
            Self::Prefer(scopes) => u8::try_from(scopes.iter().skip_while(same).count()).ok(),
        }
    }
}

/// Scopes that two workloads can share, each once.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scopes([Option<Scope>; 4]);

impl Scopes {
    /// These scopes, the most important first. A duplicate is ignored.
    #[must_use]
    pub fn of(list: &[Scope]) -> Self {
        let mut scopes = Self([None; 4]);
        for scope in list {
            let is_new = !scopes.0.contains(&Some(*scope));
            // The array has room for each kind of scope.
            if let Some(place) = scopes.0.iter_mut().find(|place| is_new && place.is_none()) {
                *place = Some(*scope);
            }
        }
        scopes
    }

    /// The scopes, the most important first.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        self.0.into_iter().flatten()
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A topology level that two workloads can share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The same region.
    Region,
    /// The same zone.
    Zone,
    /// The same subzone.
    Subzone,
    /// The same node.
    Node,
}

/// The location of a client or an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct TopologyPosition<'a> {
    /// Its node, if known.
    pub node: Option<&'a str>,
    /// Its locality.
    pub locality: &'a Locality,
}

#[cfg(test)]
mod tests {
    use super::{Distribution, Locality, Scope, Scopes, TopologyPosition};

    /// Positions are written `region/zone/subzone@node`.
    fn distance(distribution: Distribution, client: &str, endpoint: &str) -> Option<u8> {
        let read = |text: &str| {
            let (locality, node) = text.split_once('@').unwrap();
            (Locality::parse(locality), node.to_owned())
        };
        let ((client, client_node), (endpoint, endpoint_node)) = (read(client), read(endpoint));
        distribution.distance(place(&client, &client_node), place(&endpoint, &endpoint_node))
    }

    fn place<'a>(locality: &'a Locality, node: &'a str) -> TopologyPosition<'a> {
        TopologyPosition { node: Some(node).filter(|node| !node.is_empty()), locality }
    }

    #[test]
    fn nearness_counts_up_to_the_first_difference() {
        let zone = Distribution::SAME_ZONE;
        assert_eq!(distance(zone, "r/z/s@a", "r/z/other@b"), Some(0));
        assert_eq!(distance(zone, "r/z@a", "r/y@a"), Some(1));
        assert_eq!(distance(zone, "r/z@a", "q/z@a"), Some(2));
        let node = Distribution::SAME_NODE;
        assert_eq!(distance(node, "r/z/s@a", "r/z/s@a"), Some(0));
        assert_eq!(distance(node, "r/z/s@a", "r/z/s@b"), Some(1));
        assert_eq!(distance(node, "r/z/s@a", "r/z/t@a"), Some(2));
        assert_eq!(distance(node, "@a", "@a"), Some(0));
        assert_eq!(distance(node, "@", "@"), Some(1));
        assert_eq!(distance(Distribution::Any, "r@a", "q@b"), Some(0));
        assert_eq!(distance(Distribution::ONLY_SAME_NODE, "r@a", "q@a"), Some(0));
        assert_eq!(distance(Distribution::ONLY_SAME_NODE, "r@a", "r@b"), None);
        assert_eq!(distance(Distribution::ONLY_SAME_NODE, "r@", "r@"), None);
        let zone_and_node = Distribution::Require(Scopes::of(&[Scope::Node, Scope::Zone, Scope::Node]));
        assert_eq!(distance(zone_and_node, "r/z@a", "q/z@a"), Some(0));
        assert_eq!(distance(zone_and_node, "r/z@a", "r/y@a"), None);
        let node_first = Distribution::Prefer(Scopes::of(&[Scope::Node, Scope::Zone]));
        assert_eq!(distance(node_first, "r/z@a", "r/z@b"), Some(2));
        assert_eq!(distance(node_first, "r/z@a", "r/y@a"), Some(1));
    }

    #[test]
    fn localities_are_read_from_the_wide_to_the_narrow() {
        let read = Locality::parse("r/z/s/t");
        assert_eq!((&*read.region, &*read.zone, &*read.subzone), ("r", "z", "s/t"));
        assert_eq!(Locality::parse(""), Locality::default());
    }
}
