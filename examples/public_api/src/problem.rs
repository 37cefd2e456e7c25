//! The layer's own answers in OpenAPI, to copy.

use std::collections::BTreeMap;

use utoipa::openapi::{Content, Header, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

/// Problem details (RFC 9457) of the layer.
#[derive(ToSchema)]
#[schema(example = json!({
    "type": "https://docs.rs/pgonce/latest/pgonce/_docs/http/index.html#in_progress",
    "title": "A request with this key is in progress",
    "status": 409,
    "detail": "Its response is not there yet; wait a moment. Send the same request with the same key again.",
    "code": "in_progress",
    "retryable": true,
    "docs": "https://docs.rs/pgonce/latest/pgonce/_docs/http/index.html",
}))]
#[expect(dead_code, reason = "the layer writes these")]
pub(crate) struct Problem {
    /// A page about this code.
    #[schema(format = "uri")]
    r#type: String,
    /// For people.
    title: String,
    status: u16,
    /// For people: what to do.
    detail: String,
    /// For programs: `in_progress`, `mismatch`, `held`, `key_missing` and others.
    code: String,
    /// Whether the same request with the same key may succeed later.
    retryable: bool,
    /// The page with all codes.
    #[schema(format = "uri")]
    docs: String,
}

/// The answers that the layer adds to each operation.
#[derive(Debug)]
pub(crate) struct IdempotencyAnswers;

impl IntoResponses for IdempotencyAnswers {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let retry_after = || {
            let mut header = Header::new(u64::schema());
            header.description =
                Some("Seconds to wait before the same request is sent again.".to_owned());
            header
        };
        let answers = [
            ("400", "The key is missing or malformed: `key_missing`, `key_malformed`.", false),
            ("409", "In progress: send it again after the pause. Or `held`: do not retry.", true),
            ("422", "The key belongs to another request: `mismatch`. Do not retry.", false),
            ("503", "Nothing is known to be done. Send it again with the same key.", true),
        ];
        let answer = |(status, text, waits): (&str, &str, bool)| {
            let problem =
                Content::new(Some(RefOr::Ref(utoipa::openapi::Ref::from_schema_name("Problem"))));
            let response = ResponseBuilder::new()
                .description(text)
                .content("application/problem+json", problem);
            let response =
                if waits { response.header("Retry-After", retry_after()) } else { response };
            (status.to_owned(), RefOr::T(response.build()))
        };
        answers.into_iter().map(answer).collect()
    }
}
