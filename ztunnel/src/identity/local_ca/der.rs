//! Puts the issuer's name into a certificate that rcgen has encoded.
//!
//! rcgen keeps a name as a map from attribute to value. If a CA's name has two `OU` attributes, or two `DC` attributes (as most
//! Active Directory CAs have), one of them would be lost, and verifiers would not find the issuer. So rcgen encodes the
//! certificate without an issuer, and [`sign`] replaces this field by the bytes of the CA's own subject before it signs.

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use x509_parser::asn1_rs::{Any, BitString, Error, FromDer as _, Sequence, ToDer as _};

/// The position of the issuer in a `TBSCertificate` with a version (RFC 5280, 4.1).
const ISSUER: usize = 3;

/// Makes rcgen encode a certificate for a key without a signature.
pub(super) struct Unsigned<'a>(pub(super) &'a KeyPair);

impl PublicKeyData for Unsigned<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for Unsigned<'_> {
    fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(Vec::new())
    }
}

/// Sets the issuer of a certificate that rcgen has encoded, and signs it. `issuer` is the encoded name.
pub(super) fn sign(unsigned: &[u8], issuer: &[u8], key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    with_field(unsigned, ISSUER, issuer, |to_be_signed| key.sign(to_be_signed))
}

/// Replaces one field of the certificate's `TBSCertificate` by an encoded element, and signs the result.
pub(super) fn with_field(
    certificate: &[u8],
    index: usize,
    encoded: &[u8],
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, rcgen::Error>,
) -> Result<Vec<u8>, rcgen::Error> {
    let unread = || rcgen::Error::CouldNotParseCertificate;
    let parts = elements(certificate).ok_or_else(unread)?;
    let [to_be_signed, algorithm, _signature] = parts.as_slice() else { return Err(unread()) };
    let mut fields = elements(to_be_signed).ok_or_else(unread)?;
    *fields.get_mut(index).ok_or_else(unread)? = encoded.to_vec();
    let to_be_signed = sequence(&fields).ok_or_else(unread)?;
    let signature = BitString::new(0, &sign(&to_be_signed)?).to_der_vec().map_err(|_| unread())?;
    sequence(&[to_be_signed, algorithm.clone(), signature]).ok_or_else(unread)
}

/// The elements of a SEQUENCE, each in its encoded form.
fn elements(sequence: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (_, sequence) = Sequence::from_der(sequence).ok()?;
    sequence.der_iter::<Any<'_>, Error>().map(|element| element.ok()?.to_der_vec().ok()).collect()
}

fn sequence(elements: &[Vec<u8>]) -> Option<Vec<u8>> {
    Sequence::new(elements.concat().into()).to_der_vec().ok()
}

#[cfg(test)]
mod tests {
    use super::{elements, sequence, with_field};
    use x509_parser::asn1_rs::{OctetString, ToDer as _};

    #[test]
    fn elements_of_every_length_are_written_as_they_were_read() {
        for length in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let inner = sequence(&[vec![0x05, 0x00]]).unwrap();
            let long = OctetString::new(&vec![7; length]).to_der_vec().unwrap();
            let whole = sequence(&[inner.clone(), long.clone()]).unwrap();
            assert_eq!(elements(&whole).unwrap(), [inner, long], "{length}");
        }
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        for bytes in [&[][..], &[0x30], &[0x30, 2, 1], &[0x30, 0x82, 1], &[0x30, 0x85, 1, 1, 1, 1, 1], &[0x30, 0xff]] {
            assert!(elements(bytes).is_none(), "{bytes:?}");
        }
        // Three elements; the first has no fields.
        let certificate = [0x30, 6, 0x30, 0, 0x30, 0, 0x03, 0];
        let signed = with_field(&certificate, 3, &[], |_| panic!("nothing may be signed"));
        assert!(signed.is_err(), "{signed:?}");
    }
}
