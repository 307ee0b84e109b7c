//! The identity of a workload: a SPIFFE ID in Istio's form.

use std::{fmt, str::FromStr, sync::Arc};

use thiserror::Error;

/// A trust domain: the name of one root of trust, such as `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// The workload's namespace.
    pub namespace: Arc<str>,
    /// The workload's service account.
    pub service_account: Arc<str>,
}

/// Why a text is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// The text is not a trust domain.
    #[error("{0:?} is not a trust domain: lower-case letters, digits, '.', '-' and '_', at most 255")]
    TrustDomain(String),
    /// The text does not have the form of an identity.
    #[error("{0:?} is not spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
    Form(String),
}

impl IdentityError {
    /// The text does not have the form of an identity. The error contains the beginning of the text only.
    #[must_use]
    pub fn other_form(text: &str) -> Self {
        Self::Form(excerpt(text))
    }
}

/// SPIFFE allows 2048 bytes. A longer text is never copied into an error.
const LONGEST: usize = 2048;

impl TrustDomain {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        if text.is_empty() || text.len() > 255 || !text.chars().all(allowed) {
            return Err(IdentityError::TrustDomain(excerpt(text)));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SpiffeId {
    /// The identity of a service account. The parts are not checked here: they come from names that were checked before.
    #[must_use]
    pub fn new(
        trust_domain: TrustDomain,
        namespace: impl Into<Arc<str>>,
        service_account: impl Into<Arc<str>>,
    ) -> Self {
        Self { trust_domain, namespace: namespace.into(), service_account: service_account.into() }
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let form = || IdentityError::other_form(text);
        if text.len() > LONGEST {
            return Err(form());
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(form)?;
        let mut parts = rest.split('/');
        let (Some(domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(form());
        };
        // The characters that SPIFFE allows in a path segment. A segment of dots alone would make a relative path.
        let segment = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            !part.is_empty() && part.chars().all(allowed) && part != "." && part != ".."
        };
        if !segment(namespace) || !segment(account) {
            return Err(form());
        }
        Ok(Self::new(domain.parse()?, namespace, account))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn excerpt(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::{SpiffeId, TrustDomain};

    #[test]
    fn an_identity_is_read_as_it_is_written() {
        for good in ["spiffe://cluster.local/ns/default/sa/web", "spiffe://td_1.example/ns/a-b/sa/x.y"] {
            let id: SpiffeId = good.parse().unwrap();
            assert_eq!(id.to_string(), good);
        }
        for bad in [
            "",
            "spiffe://",
            "spiffe://td",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns//sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/sa/a/ns/b",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td:80/ns/a/sa/b",
            "spiffe://user@td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b?c",
            "spiffe://td/ns/../sa/b",
            "spiffe://td/ns/a%2f/sa/b",
            "SPIFFE://td/ns/a/sa/b",
            "https://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b\n",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(256).parse::<TrustDomain>().is_err());
        assert!(format!("spiffe://td/ns/a/sa/{}", "b".repeat(2048)).parse::<SpiffeId>().is_err());
    }
}
