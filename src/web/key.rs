//! The key in a request's header.

use http::{HeaderMap, HeaderName};

use crate::operation::key::Key;

/// How a route takes its key.
#[derive(Debug, Clone)]
pub(crate) struct KeyRules {
    pub(crate) header: HeaderName,
    /// Only an RFC 9651 string, in quotes, is taken.
    pub(crate) strict: bool,
    /// The least estimated entropy of a key, in bits.
    pub(crate) entropy_min: f64,
}

impl Default for KeyRules {
    fn default() -> Self {
        let header = HeaderName::from_static("idempotency-key");
        Self { header, strict: false, entropy_min: 0.0 }
    }
}

impl KeyRules {
    /// The key in these headers, `None` if there is none, or what is wrong with it. Nothing malformed
    /// is passed over: a client that sent a key believes itself protected.
    pub(crate) fn key_in(&self, headers: &HeaderMap) -> Result<Option<Key>, String> {
        let name = &self.header;
        let mut values = headers.get_all(name).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(format!("{name} is there more than once; send one"));
        }
        let text = self.text(value.as_bytes())?;
        let key = Key::new(text).map_err(|error| format!("{name}: {error}"))?;
        if entropy(key.as_str()) < self.entropy_min {
            return Err(format!("{name} is too easy to guess; send a random one, such as a UUID"));
        }
        Ok(Some(key))
    }

    /// Quoted and bare name the same key (the IETF draft wants it quoted, most clients send it bare).
    fn text(&self, value: &[u8]) -> Result<String, String> {
        let name = &self.header;
        let value = value.trim_ascii();
        if value.starts_with(b"\"") {
            // Parameters mean nothing here and are ignored, as RFC 9651 (section 2) wants of what is unknown.
            let item = sfv::Parser::new(value).parse::<sfv::Item>();
            return match item.map(|item| item.bare_item) {
                Ok(sfv::BareItem::String(string)) => Ok(string.into()),
                _ => Err(format!("{name} is not one well-formed string (RFC 9651)")),
            };
        }
        if self.strict {
            return Err(format!("{name} takes a string in quotes (RFC 9651)"));
        }
        // A comma can be the mark of a proxy that joined two lines.
        if value.iter().any(|byte| !byte.is_ascii_graphic() || matches!(byte, b'"' | b',')) {
            return Err(format!(
                "{name} takes one key of visible ASCII characters without quotes or commas, or a string in quotes"
            ));
        }
        Ok(String::from_utf8_lossy(value).into_owned())
    }
}

/// Shannon's estimate from the frequencies of characters, in bits for the whole text: 0 for `aaaa`,
/// about 130 for a UUID. It knows nothing of dates or counters.
fn entropy(text: &str) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in text.bytes() {
        counts[usize::from(byte)] += 1;
    }
    let length = f64::from(u32::try_from(text.len()).unwrap_or(u32::MAX));
    counts
        .iter()
        .filter(|count| **count > 0)
        .map(|&count| {
            let count = f64::from(count);
            count * (length / count).log2()
        })
        .sum()
}
