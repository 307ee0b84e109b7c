//! The few bytes of DER that rcgen can't write: a certificate under the issuer's own name.
//!
//! rcgen keeps a name as a map from attribute to value. A CA whose name has two `OU` or, like most of those of Active
//! Directory, two `DC`, would lose one of them, and nobody would find the issuer. So rcgen lays the certificate out, and
//! here the issuer's name is put in, byte for byte, before it is signed.

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
/// The issuer's place in a `TBSCertificate` with its version given (RFC 5280, 4.1).
const ISSUER: usize = 3;

/// Has a certificate laid out for a key without signing it.
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

/// Gives the laid out certificate its issuer, and signs it.
pub(super) fn sign(unsigned: &[u8], issuer: &[u8], key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let (to_be_signed, algorithm) =
        with_field(unsigned, ISSUER, issuer).ok_or(rcgen::Error::CouldNotParseCertificate)?;
    // Zero bits of the last byte are unused.
    let signature = [&[0][..], &key.sign(&to_be_signed)?].concat();
    Ok(element(SEQUENCE, &[&to_be_signed, algorithm, &element(BIT_STRING, &signature)].concat()))
}

/// What is to be signed, with one field replaced, and the algorithm.
pub(super) fn with_field<'a>(unsigned: &'a [u8], replaced: usize, by: &[u8]) -> Option<(Vec<u8>, &'a [u8])> {
    let certificate = split(unsigned)?.content;
    let to_be_signed = split(certificate)?;
    let algorithm = split(to_be_signed.rest)?.whole;
    let mut fields = to_be_signed.content;
    let mut content = Vec::with_capacity(fields.len() + by.len());
    for index in 0.. {
        if fields.is_empty() {
            break;
        }
        let field = split(fields)?;
        content.extend_from_slice(if index == replaced { by } else { field.whole });
        fields = field.rest;
    }
    Some((element(SEQUENCE, &content), algorithm))
}

struct Split<'a> {
    whole: &'a [u8],
    content: &'a [u8],
    rest: &'a [u8],
}

/// The first element. Tags here have one byte.
fn split(bytes: &[u8]) -> Option<Split<'_>> {
    let (&first, mut after) = bytes.get(1..)?.split_first()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let (digits, rest) = after.split_at_checked(usize::from(first & 0x7f))?;
        if digits.len() > 4 {
            return None;
        }
        length = digits.iter().fold(0, |length, digit| (length << 8) | usize::from(*digit));
        after = rest;
    }
    let (content, rest) = after.split_at_checked(length)?;
    let whole = bytes.get(..bytes.len().checked_sub(rest.len())?)?;
    Some(Split { whole, content, rest })
}

/// One element.
pub(super) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut bytes = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => bytes.push(short),
        _ => {
            let digits: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|digit| *digit == 0).collect();
            // A usize has at most eight digits.
            bytes.push(0x80 | u8::try_from(digits.len()).unwrap_or_default());
            bytes.extend(digits);
        }
    }
    bytes.extend_from_slice(content);
    bytes
}

#[cfg(test)]
mod tests {
    use super::{element, split};

    #[test]
    fn lengths_of_every_form_are_read_as_written() {
        for length in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let content = vec![7; length];
            let bytes = [element(0x30, &content), vec![1, 2, 3]].concat();
            let found = split(&bytes).unwrap();
            assert_eq!((found.content, found.rest), (content.as_slice(), [1, 2, 3].as_slice()));
            assert_eq!(found.whole.len() + 3, bytes.len());
        }
    }

    #[test]
    fn what_is_cut_off_or_too_long_is_no_element() {
        for bytes in [&[][..], &[0x30], &[0x30, 2, 1], &[0x30, 0x82, 1], &[0x30, 0x85, 1, 1, 1, 1, 1], &[0x30, 0xff]] {
            assert!(split(bytes).is_none(), "{bytes:?}");
        }
    }
}
