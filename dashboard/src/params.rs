//! The fields of a query or a form. Never fails: a page decides what a missing or odd field means.

/// Names and values, as they came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    pub(crate) fn parse(encoded: &[u8]) -> Self {
        Self(form_urlencoded::parse(encoded).into_owned().collect())
    }

    /// The first value of this name; empty if there is none.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(given, _)| given == name).map_or("", |(_, value)| value)
    }

    /// The value unless it is empty.
    pub(crate) fn some(&self, name: &str) -> Option<&str> {
        Some(self.get(name)).filter(|value| !value.is_empty())
    }
}

/// A link: page and query, without empty fields.
pub(crate) fn link(page: &str, fields: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        query.append_pair(name, value);
    }
    match query.finish().as_str() {
        "" => page.to_owned(),
        query => format!("{page}?{query}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_carries_any_text() {
        let key = "a/b?c&d=e#f+g h%\u{20ac}\"<";
        let link = link("key", &[("scope", "s"), ("none", ""), ("key", key)]);
        assert!(link.is_ascii() && !link.contains(['"', '<', '#', ' ']), "{link}");
        let (_, query) = link.split_once('?').unwrap_or_default();
        let read = Params::parse(query.as_bytes());
        assert_eq!((read.get("scope"), read.get("key"), read.get("none")), ("s", key, ""));
        assert_eq!(super::link("keys", &[("a", "")]), "keys");
    }
}
