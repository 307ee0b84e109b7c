//! A node gets certificates for its own pods only.

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, IsCa, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use super::*;
use crate::{
    identity::certificate::{Certificate, verify},
    istio::{
        certificate::{IMPERSONATED_IDENTITY, IstioCertificateRequest, IstioCertificateResponse},
        server::CREATE_CERTIFICATE,
    },
};

fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/demo/sa/{account}")
}

/// A request whose CSR names `named`, and whose metadata names `asked`.
fn request_of(named: Option<&str>, asked: Option<&str>, is_ca: bool) -> IstioCertificateRequest {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = named.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    if is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let metadata = asked.map(|asked| Struct::of_strings([(IMPERSONATED_IDENTITY, asked)]));
    IstioCertificateRequest { csr, validity_duration: 600, metadata }
}

impl Plane {
    async fn create(
        &self,
        token: Option<&str>,
        request: &IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, Ended> {
        let mut call = self.connect().await.call(CREATE_CERTIFICATE, token).await;
        call.send(request);
        let response = call.next().await?;
        assert_eq!(call.next::<IstioCertificateResponse>().await.unwrap_err(), (0, String::new()));
        Ok(response)
    }

    /// Starts a control plane whose mesh has a pod on each of two nodes.
    async fn with_pods() -> Self {
        let mut plane = Self::start(LIMITS).await;
        let outside = pod("outside", "node-a", "10.0.0.3").replace("ambient", "none");
        plane.says("a", &[&pod("a", "node-a", "10.0.0.1"), &pod("b", "node-b", "10.0.0.2"), &outside]);
        // The control plane has the mesh once a stream gets it.
        let mut stream = plane.stream(TOKEN_A).await;
        stream.subscribe(ADDRESS);
        stream.response(ADDRESS).await;
        plane
    }
}

#[tokio::test]
async fn a_node_gets_certificates_of_its_own_pods() {
    let plane = Plane::with_pods().await;
    let own = identity("sa-a");
    for request in [
        request_of(Some(&own), Some(&own), false),
        request_of(None, Some(&own), false),
        // The identity is in the CSR only, as when a workload asks for itself.
        request_of(Some(&own), None, false),
    ] {
        let response = plane.create(Some(TOKEN_A), &request).await.unwrap();
        let (roots, chain) = response.cert_chain.split_last().unwrap();
        let ders = |pem: &str| -> Vec<CertificateDer<'static>> {
            CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
        };
        let (roots, chain): (_, Vec<_>) = (ders(roots), chain.iter().flat_map(|pem| ders(pem)).collect());
        verify(&chain, &roots, std::time::SystemTime::now()).unwrap();
        let leaf = Certificate::parse(chain[0].clone()).unwrap();
        assert_eq!(leaf.identity().unwrap().to_string(), own);
        assert!(leaf.not_after <= std::time::SystemTime::now() + Duration::from_secs(600));
    }
    assert_eq!(plane.count("ztunnel_certificates_issued_total"), 3);
}

#[tokio::test]
async fn a_node_with_a_good_token_gets_nothing_else() {
    let plane = Plane::with_pods().await;
    let refused = async |request: &IstioCertificateRequest| plane.create(Some(TOKEN_A), request).await.unwrap_err();
    let (own, others) = (identity("sa-a"), identity("sa-b"));
    // A pod of another node, a pod outside of the mesh, a pod that does not exist, and istiod in the root namespace.
    for asked in
        [&others, &identity("sa-outside"), &identity("sa-x"), "spiffe://cluster.local/ns/istio-system/sa/istiod"]
    {
        let (code, message) = refused(&request_of(None, Some(asked), false)).await;
        assert_eq!(code, 7, "{message}");
        assert!(message.contains(asked) && message.contains("node-a"), "{message}");
    }
    let (code, message) = refused(&request_of(None, Some("spiffe://other.domain/ns/demo/sa/sa-a"), false)).await;
    assert!(code == 7 && message.contains("trust domain") && message.contains("cluster.local"), "{message}");
    // The metadata names the node's own pod and the CSR a pod of another node, and the other way round.
    let (code, message) = refused(&request_of(Some(&others), Some(&own), false)).await;
    assert!(code == 3 && message.contains(&others), "{message}");
    assert_eq!(refused(&request_of(Some(&own), Some(&others), false)).await.0, 7);
    let (code, message) = refused(&request_of(Some(&own), Some(&own), true)).await;
    assert!(code == 3 && message.contains("CA:TRUE"), "{message}");
    for asked in ["", "spiffe://cluster.local", "spiffe://cluster.local/ns/demo/sa/sa-a/x", &"x".repeat(5000)] {
        assert_eq!(refused(&request_of(None, Some(asked), false)).await.0, 3, "{asked}");
    }
    assert_eq!(refused(&request_of(None, None, false)).await.0, 3);
    let broken = IstioCertificateRequest { csr: "x".repeat(20_000), ..IstioCertificateRequest::default() };
    assert_eq!(refused(&broken).await.0, 3);
    let large = IstioCertificateRequest { csr: "x".repeat(100_000), ..IstioCertificateRequest::default() };
    assert_eq!(refused(&large).await.0, 8);
    assert_eq!(plane.count("ztunnel_certificates_issued_total"), 0);
    // The token of the other node is good for the pods of that node only.
    plane.create(Some(TOKEN_B), &request_of(None, Some(&others), false)).await.unwrap();
    assert_eq!(plane.create(Some(TOKEN_B), &request_of(None, Some(&own), false)).await.unwrap_err().0, 7);
}

#[tokio::test]
async fn nothing_is_signed_before_the_mesh_is_known() {
    let plane = Plane::start(LIMITS).await;
    let (code, message) =
        plane.create(Some(TOKEN_A), &request_of(None, Some(&identity("sa-a")), false)).await.unwrap_err();
    assert!(code == 14 && message.contains("mesh"), "{message}");
}

#[tokio::test]
async fn ten_thousand_requests_of_a_node_are_refused_after_its_burst_and_others_are_served() {
    let signing = SigningLimits { burst: 20, every: Duration::from_secs(3600), at_once: 8 };
    let mut plane = Plane::start_with(LIMITS, signing).await;
    plane.says("a", &[&pod("a", "node-a", "10.0.0.1"), &pod("b", "node-b", "10.0.0.2")]);
    let mut stream = plane.stream(TOKEN_A).await;
    stream.subscribe(ADDRESS);
    stream.response(ADDRESS).await;
    let request = request_of(None, Some(&identity("sa-a")), false);
    let mut connection = plane.connect().await;
    let mut codes = std::collections::BTreeMap::new();
    for _ in 0..10_000 {
        let mut call = connection.open(CREATE_CERTIFICATE, Some(TOKEN_A)).await;
        call.send(&request);
        let code = match call.next::<IstioCertificateResponse>().await {
            Ok(_) => 0,
            Err((code, _)) => code,
        };
        *codes.entry(code).or_insert(0) += 1;
    }
    assert_eq!(codes, [(0, 20), (8, 9_980)].into());
    plane.create(Some(TOKEN_B), &request_of(None, Some(&identity("sa-b")), false)).await.unwrap();
    assert_eq!(plane.count("ztunnel_certificates_refused_total{reason=\"quota\"}"), 9_980);
}
