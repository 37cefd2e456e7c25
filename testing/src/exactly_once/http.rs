//! Calls through a tower service.

use std::error::Error;
use std::fmt::Display;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use serde_json::Value;
use tower_service::Service;

use super::call::{Answer, Attempt, Call, Outcome};

/// A request without its key.
pub(super) struct Template {
    pub(super) request: Request<Bytes>,
    pub(super) changed: Bytes,
    pub(super) header: HeaderName,
    pub(super) quoted: bool,
}

impl Template {
    fn request<B: From<Bytes>>(&self, attempt: &Attempt) -> Request<B> {
        let body = if attempt.changed { &self.changed } else { self.request.body() };
        let mut request = Request::new(B::from(body.clone()));
        *request.method_mut() = self.request.method().clone();
        *request.uri_mut() = self.request.uri().clone();
        *request.version_mut() = self.request.version();
        *request.headers_mut() = self.request.headers().clone();
        *request.extensions_mut() = self.request.extensions().clone();
        // Another length, if the template has one.
        request.headers_mut().remove(http::header::CONTENT_LENGTH);
        let key = if self.quoted { format!("\"{}\"", attempt.key) } else { attempt.key.clone() };
        if let Ok(key) = HeaderValue::from_str(&key) {
            request.headers_mut().insert(self.header.clone(), key);
        }
        request
    }
}

pub(super) fn call<S, B, R>(service: S, template: Template) -> Call
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Display,
    S::Future: Send,
    B: From<Bytes> + Send + 'static,
    R: Body + Send + 'static,
    R::Data: Send,
    R::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let service = Mutex::new(service); // not every service is Sync
    let template = Arc::new(template);
    Arc::new(move |attempt| {
        let service = service.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let request = template.request(&attempt);
        Box::pin(send(service, request, attempt.unread))
    })
}

async fn send<S, B, R>(mut service: S, request: Request<B>, unread: bool) -> Outcome
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Display,
    R: Body,
    R::Error: Into<Box<dyn Error + Send + Sync>>,
{
    if let Err(error) = poll_fn(|cx| service.poll_ready(cx)).await {
        return Outcome::Failed(format!("error of the service: {error}"));
    }
    let response = match service.call(request).await {
        Ok(response) => response,
        Err(error) => return Outcome::Failed(format!("error of the service: {error}")),
    };
    let status = response.status();
    let body = match unread {
        true => Bytes::new(),
        false => match response.into_body().collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return Outcome::Failed(format!("a broken body: {}", error.into())),
        },
    };
    let answer = Answer { code: Some(status.as_u16()), body };
    if status.is_success() {
        return Outcome::Done(answer);
    }
    match status {
        StatusCode::REQUEST_TIMEOUT
        | StatusCode::CONFLICT
        | StatusCode::TOO_EARLY
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::SERVICE_UNAVAILABLE => Outcome::Later(answer.to_string()),
        _ if status.is_server_error() => Outcome::Failed(answer.to_string()),
        _ => Outcome::Refused(answer.to_string()),
    }
}

/// Another body of the same form: a JSON number or string is altered. A body without one gets one more byte.
pub(super) fn changed(body: &Bytes) -> Bytes {
    if let Ok(mut json) = serde_json::from_slice::<Value>(body)
        && (alter(&mut json, &mut add_one) || alter(&mut json, &mut lengthen))
    {
        return Bytes::from(json.to_string());
    }
    let mut longer = body.to_vec();
    longer.push(b'x');
    Bytes::from(longer)
}

/// Alters the first value that `change` can alter.
fn alter(value: &mut Value, change: &mut impl FnMut(&mut Value) -> bool) -> bool {
    match value {
        Value::Array(values) => values.iter_mut().any(|value| alter(value, change)),
        Value::Object(fields) => fields.values_mut().any(|value| alter(value, change)),
        value => change(value),
    }
}

fn add_one(value: &mut Value) -> bool {
    let more = match &*value {
        Value::Number(number) => number.as_i64().and_then(|number| number.checked_add(1)),
        _ => None,
    };
    more.map(|more| *value = more.into()).is_some()
}

fn lengthen(value: &mut Value) -> bool {
    match value {
        Value::String(text) => text.push('x'),
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_body_keeps_its_form() {
        for (body, expected) in [
            (r#"{"to":"a","amounts":[{"cents":7}]}"#, r#"{"amounts":[{"cents":8}],"to":"a"}"#),
            (r#"{"to":"a","sure":true}"#, r#"{"sure":true,"to":"ax"}"#),
            ("{}", "{}x"),
            ("a=1", "a=1x"),
            ("", "x"),
        ] {
            assert_eq!(changed(&Bytes::from(body)), expected);
        }
    }
}
