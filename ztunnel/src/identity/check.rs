//! Properties that hold for any bytes from a certificate authority, and for any bytes from a node that requests a
//! certificate: run by the fuzz targets, and on their seeds.

use std::time::{Duration, SystemTime};

use super::{certificate::Certificate, local_ca::request::SigningRequest, request::Answer};
use crate::{
    istio::check::certificate_texts,
    model::{
        cause::causes,
        identity::{SpiffeId, TrustDomain},
    },
};

/// The identity in the seeds.
pub const IDENTITY: &str = "spiffe://cluster.local/ns/demo/sa/web";
/// The longest message about an answer, in bytes: it names one identity of at most 2048 bytes.
const LONGEST: usize = 4096;

/// A time in 2030, when the certificates in the seeds are valid.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000)
}

fn identity() -> SpiffeId {
    let (namespace, service_account) = ("demo".into(), "web".into());
    SpiffeId { trust_domain: TrustDomain::default(), namespace, service_account }
}

/// Reads the bytes as the answer of an authority to a request with the key of the first certificate. Returns whether the
/// answer is accepted.
///
/// # Panics
/// When a property does not hold.
pub fn certificate_answer(bytes: &[u8]) -> bool {
    let Some(texts) = certificate_texts(bytes) else { return false };
    let first = texts.first().and_then(|text| super::request::certificates(text).ok()?.into_iter().next());
    let key = first.and_then(|leaf| Some(Certificate::parse(leaf).ok()?.public_key)).unwrap_or_default();
    match Answer::check(&texts, &identity(), &key, now()) {
        Ok(answer) => {
            assert_eq!(answer.chain.first(), Some(&answer.leaf.der), "the certificate comes first");
            assert!(answer.chain.iter().all(|one| !answer.roots.contains(one)), "a root is not sent to peers");
            assert!(answer.leaf.not_before <= now() && now() < answer.leaf.not_after && !answer.leaf.is_ca);
            assert_eq!(answer.leaf.uris, [IDENTITY]);
            true
        }
        Err(error) => {
            let text = causes(&error);
            assert!(!text.is_empty() && text.len() <= LONGEST, "a message of {} bytes", text.len());
            false
        }
    }
}

/// Reads the bytes as a certificate request of a node. Returns whether the authority would sign it.
///
/// # Panics
/// When a property does not hold.
pub fn signing_request(bytes: &[u8]) -> bool {
    let request = match SigningRequest::parse(bytes) {
        Ok(request) => request,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    assert!(request.uris().iter().map(String::len).sum::<usize>() <= bytes.len());
    match request.key_for(&identity()) {
        Ok(_) => {
            assert!(request.uris().iter().all(|uri| uri == IDENTITY));
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() <= LONGEST && !text.contains('\n'), "{text}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::{certificate_answer, signing_request};

    fn seeds(target: &str) -> Vec<PathBuf> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        assert!(folder.join(format!("targets/{target}.rs")).exists(), "{target}");
        let mut seeds: Vec<_> =
            fs::read_dir(folder.join("seeds").join(target)).unwrap().map(|file| file.unwrap().path()).collect();
        seeds.sort();
        seeds
    }

    /// The names of the seeds that are accepted.
    fn accepted(target: &str, check: fn(&[u8]) -> bool) -> Vec<String> {
        let seeds = seeds(target);
        assert!(seeds.len() >= 6, "{} seeds", seeds.len());
        let seeds = seeds.into_iter().filter(|seed| check(&fs::read(seed).unwrap()));
        seeds.map(|seed| seed.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn every_seed_of_the_fuzz_targets_holds_and_valid_seeds_are_accepted() {
        assert_eq!(accepted("certificate_answer", certificate_answer), ["intermediate", "two_roots", "with_root"]);
        assert_eq!(accepted("signing_request", signing_request), ["no_name", "p256", "p384"]);
    }
}
