//! Spans around calls, by the stable conventions for databases
//! ([OpenTelemetry](https://opentelemetry.io/docs/specs/semconv/database/)). Statements are the driver's business.

use tracing::{Instrument, Span};

use super::Counts;
use crate::error::{Error, Result};
use crate::operation::key::Key;
use crate::operation::scope::Scope;

/// A span of one call. With a procedure: the call sends that one and nothing else.
macro_rules! span {
    ($name:literal) => {
        tracing::info_span!(
            $name,
            class = tracing::field::Empty,
            key = tracing::field::Empty,
            answer = tracing::field::Empty,
            "error.type" = tracing::field::Empty,
            "db.response.status_code" = tracing::field::Empty,
        )
    };
    ($name:literal, $procedure:literal) => {
        tracing::info_span!(
            $name,
            class = tracing::field::Empty,
            key = tracing::field::Empty,
            answer = tracing::field::Empty,
            "db.system.name" = "postgresql",
            "db.stored_procedure.name" = $procedure,
            "error.type" = tracing::field::Empty,
            "db.response.status_code" = tracing::field::Empty,
        )
    };
}
pub(crate) use span;

impl Counts {
    /// Runs a call on a key in its span.
    pub(crate) async fn traced<T>(
        &self,
        span: &Span,
        scope: &Scope,
        key: &Key,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        if span.is_disabled() {
            return call.await;
        }
        self.name(span, scope, key);
        let result = call.instrument(span.clone()).await;
        if let Err(error) = &result {
            record(span, error);
        }
        result
    }

    /// Says in a span which key it is about. The hash is made only for who wants it.
    pub(crate) fn name(&self, span: &Span, scope: &Scope, key: &Key) {
        if !span.is_disabled() {
            span.record("class", self.class.as_str());
            span.record("key", self.hash(scope.as_str(), key.as_str()));
        }
    }
}

pub(crate) fn record(span: &Span, error: &Error) {
    span.record("error.type", tracing::field::debug(error.kind()));
    if let Some(sqlstate) = error.sqlstate() {
        span.record("db.response.status_code", sqlstate);
    }
}
