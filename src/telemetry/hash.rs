//! A key in log lines and spans: a hash that tells keys apart and shows none.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::error::{Error, Result};

/// Makes the hashes: under the user's secret, or else under a random one of this process.
#[derive(Clone, Default)]
pub(crate) struct Hasher(Option<Arc<Hmac<Sha256>>>);

pub(crate) const SECRET_BYTES_MIN: usize = 16;
const LABEL: &[u8] = b"pgonce log";

impl Hasher {
    pub(crate) fn new(secret: &[u8]) -> Result<Self> {
        if secret.len() < SECRET_BYTES_MIN {
            let length = secret.len();
            return Err(Error::invalid(format!(
                "log secret has {length} bytes; it takes at least 16"
            )));
        }
        let mut mac = Hmac::new_from_slice(secret).expect("BUG: HMAC takes a key of any length");
        mac.update(LABEL);
        Ok(Self(Some(Arc::new(mac))))
    }

    /// 16 hexadecimal digits.
    pub(crate) fn hash(&self, scope: &str, key: &str) -> String {
        let hash = match &self.0 {
            Some(mac) => {
                let mut mac = Hmac::clone(mac);
                mac.update(&(scope.len() as u64).to_be_bytes());
                mac.update(scope.as_bytes());
                mac.update(key.as_bytes());
                let digest = mac.finalize().into_bytes();
                u64::from_be_bytes([
                    digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6],
                    digest[7],
                ])
            }
            None => {
                static RANDOM: OnceLock<RandomState> = OnceLock::new();
                RANDOM.get_or_init(RandomState::new).hash_one((scope, key))
            }
        };
        format!("{hash:016x}")
    }
}

// By hand: a derived one would show the secret's state.
impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Hasher(secret)" } else { "Hasher(random)" })
    }
}
