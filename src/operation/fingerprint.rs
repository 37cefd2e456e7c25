//! Fingerprints: what binds a key to its request.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use serde_json::Value;
use sha2::Sha256;

use crate::error::{Error, ErrorKind, Result};
use crate::operation::key::digest_of_parts;

/// A versioned digest of a request. The same key with another fingerprint is a
/// [mismatch](crate::Begin::Mismatch).
///
/// 36 bytes: a four-byte header (algorithm, and for keyed ones the secret's id) and a 32-byte digest.
/// Fingerprints with different headers are not compared, so a change of algorithm or secret does
/// not turn retries into mismatches.
///
/// ```
/// use pgonce::Fingerprint;
/// let json = Fingerprint::of_json(&serde_json::json!({"b": 1, "a": 2.0}))?;
/// assert_eq!(json, Fingerprint::of_bytes(br#"{"a":2,"b":1}"#)); // canonical: order and spelling do not matter
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 36]);

/// Makes fingerprints under a secret (HMAC-SHA-256), so that a stolen table cannot be used to guess
/// what was in the requests.
///
/// The fingerprints carry a three-byte id of the secret. After a change of secret, requests that
/// were begun before it are replayed without comparing fingerprints.
///
/// ```
/// use pgonce::{Fingerprint, FingerprintSecret};
/// let secret = FingerprintSecret::new("at least sixteen bytes")?;
/// assert_ne!(secret.of_bytes(b"body"), Fingerprint::of_bytes(b"body"));
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Clone)]
pub struct FingerprintSecret {
    header: [u8; 4],
    mac: Hmac<Sha256>,
}

/// Header of an unkeyed SHA-256; `sql/public/fingerprint.sql` writes the same.
const SHA_256: [u8; 4] = [1, 0, 0, 0];
/// First header byte of HMAC-SHA-256; the secret's id follows.
const HMAC_SHA_256: u8 = 2;
const LABEL: &[u8] = b"pgonce";
const SECRET_BYTES_MIN: usize = 16;

impl Fingerprint {
    /// The fingerprint of a request body as received.
    #[must_use]
    pub fn of_bytes(bytes: impl AsRef<[u8]>) -> Self {
        Self::parts([bytes])
    }

    /// The fingerprint of a value's canonical JSON
    /// ([RFC 8785](https://www.rfc-editor.org/rfc/rfc8785)): key order, spaces and the spelling of
    /// numbers do not matter.
    ///
    /// An integer beyond 2^53 - 1, such as a snowflake id, counts as the string of its digits. Canonical JSON writes
    /// numbers as doubles, in which such neighbours look alike.
    ///
    /// ```
    /// # use pgonce::Fingerprint;
    /// let id = Fingerprint::of_json(&9_007_199_254_740_993_u64)?;
    /// assert_ne!(id, Fingerprint::of_json(&9_007_199_254_740_992_u64)?);
    /// assert_eq!(id, Fingerprint::of_json("9007199254740993")?);
    /// # Ok::<(), pgonce::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Encoding`](crate::ErrorKind::Encoding) when the value cannot be written as JSON, or has a number beyond 2^53 - 1
    /// that is not a 64-bit integer: it may have been rounded.
    pub fn of_json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        Ok(Self::of_bytes(canonical(value)?))
    }

    /// The fingerprint of several parts, such as method, path and body. Parts are length-prefixed:
    /// `["ab", "c"]` and `["a", "bc"]` differ.
    #[must_use]
    pub fn parts<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> Self {
        Self::assemble(SHA_256, digest_of_parts(LABEL, parts))
    }

    fn assemble(header: [u8; 4], digest: [u8; 32]) -> Self {
        let mut bytes = [0; 36];
        bytes[..4].copy_from_slice(&header);
        bytes[4..].copy_from_slice(&digest);
        Self(bytes)
    }

    /// Marks how the parts were chosen: fingerprints made by different recipes are not compared.
    #[cfg(feature = "tower")]
    pub(crate) fn made_by(mut self, recipe: &str) -> Self {
        let mark = digest_of_parts(b"pgonce recipe", [recipe]);
        // Mixed in, because under a secret these bytes hold the secret's id.
        for (byte, mark) in self.0[1..4].iter_mut().zip(mark) {
            *byte ^= mark;
        }
        self
    }

    /// The bytes as stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FingerprintSecret {
    /// Takes the secret; every process that serves the same keys needs the same one.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when it is shorter than 16 bytes.
    pub fn new(secret: impl AsRef<[u8]>) -> Result<Self> {
        let secret = secret.as_ref();
        if secret.len() < SECRET_BYTES_MIN {
            return Err(Error::invalid(format!(
                "secret has {} bytes; it takes at least {SECRET_BYTES_MIN}",
                secret.len()
            )));
        }
        let mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|error| {
            Error::with_source(ErrorKind::InvalidInput, "secret refused", error)
        })?;
        // The id is made under the secret too, so it says nothing about it.
        let id = mac.clone().chain_update(b"pgonce secret id").finalize().into_bytes();
        Ok(Self { header: [HMAC_SHA_256, id[0], id[1], id[2]], mac })
    }

    /// As [`Fingerprint::of_bytes`], under the secret.
    #[must_use]
    pub fn of_bytes(&self, bytes: impl AsRef<[u8]>) -> Fingerprint {
        self.parts([bytes])
    }

    /// As [`Fingerprint::of_json`], under the secret.
    ///
    /// # Errors
    /// As [`Fingerprint::of_json`].
    pub fn of_json<T: Serialize + ?Sized>(&self, value: &T) -> Result<Fingerprint> {
        Ok(self.of_bytes(canonical(value)?))
    }

    /// As [`Fingerprint::parts`], under the secret.
    #[must_use]
    pub fn parts<P: AsRef<[u8]>>(&self, parts: impl IntoIterator<Item = P>) -> Fingerprint {
        let digest = digest_of_parts(LABEL, parts);
        let keyed = self.mac.clone().chain_update(digest).finalize().into_bytes();
        Fingerprint::assemble(self.header, keyed.into())
    }
}

pub(crate) fn canonical<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>> {
    let refused = |error: serde_json::Error| {
        Error::with_source(ErrorKind::Encoding, "the request cannot be written as JSON", error)
    };
    let mut value = serde_json::to_value(value).map_err(refused)?;
    spell_large_integers(&mut value)?;
    serde_json_canonicalizer::to_vec(&value).map_err(refused)
}

/// RFC 8785 writes every number as a double. An integer that a double may not hold becomes a string, as I-JSON (RFC 7493,
/// section 2.2) advises. Any other number beyond 2^53 - 1 may have been rounded when it was parsed, and two requests
/// would share a fingerprint: it is refused.
fn spell_large_integers(value: &mut Value) -> Result<()> {
    const INTEGER_MAX: u64 = (1 << 53) - 1;
    match value {
        Value::Number(number) => {
            let size = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
            match size {
                Some(size) if size <= INTEGER_MAX => {}
                Some(_) => *value = Value::String(number.to_string()),
                None if number.as_f64().is_some_and(|n| n.abs() <= INTEGER_MAX as f64) => {}
                None => {
                    return Err(Error::new(
                        ErrorKind::Encoding,
                        "the request has a number beyond 2^53 - 1 that is not a 64-bit integer, and may have been \
                         rounded; send it as a string, or fingerprint the bytes",
                    ));
                }
            }
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(spell_large_integers),
        Value::Object(fields) => fields.values_mut().try_for_each(spell_large_integers),
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the digest: an unkeyed one lets a reader of logs test guesses.
        write!(f, "Fingerprint(algorithm {})", self.0[0])
    }
}

impl fmt::Debug for FingerprintSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FingerprintSecret(..)")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn integers_that_a_double_cannot_hold_are_told_apart_at_any_depth() {
        let of = |id: Value| Fingerprint::of_json(&json!({"a": [1, {"b": id}]})).unwrap();
        for (id, neighbour) in [
            (json!(u64::MAX), json!(u64::MAX - 1)),
            (json!(i64::MIN), json!(i64::MIN + 1)),
            (json!(9_007_199_254_740_993_u64), json!(9_007_199_254_740_992_u64)),
            (json!(9_007_199_254_740_991_u64), json!(9_007_199_254_740_990_u64)),
        ] {
            assert_ne!(of(id.clone()), of(neighbour));
            let is_small = id == json!(9_007_199_254_740_991_u64);
            assert_eq!(of(id.clone()) == of(json!(id.to_string())), !is_small, "{id}");
        }
        // Parsed, they are one double.
        for rounded in ["18446744073709551616", "18446744073709551617", "1e300", "-1e17"] {
            let parsed: Value = serde_json::from_str(rounded).unwrap();
            let error = Fingerprint::of_json(&json!([{"n": parsed}])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Encoding, "{rounded}");
        }
    }
}
