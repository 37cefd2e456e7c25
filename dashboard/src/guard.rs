//! What every request passes first: who asks, where a change comes from, and the headers of every answer.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE, HeaderName, HeaderValue,
    REFERRER_POLICY, SET_COOKIE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use uuid::Uuid;

use crate::access::{Access, Visitor};
use crate::app::App;
use crate::page::HTML;

/// What the guard found out, for the page.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) visitor: Visitor,
    /// Stands in the Content-Security-Policy and at each script and style sheet of this answer.
    pub(crate) nonce: String,
    /// Each form that changes something repeats the browser's cookie.
    pub(crate) token: String,
}

const TOKEN: &str = "pgonce_token";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

pub(crate) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let visitor = (app.decide)(&parts);
    let nonce = secret();
    if visitor.access == Access::None {
        return sealed(refused("You may not see this page."), &nonce, None);
    }
    if changes(&parts) && !is_same_origin(&parts.headers) {
        tracing::info!(
            target: "pgonce::audit",
            actor = visitor.name,
            action = "any",
            outcome = "cross-site request refused",
            "an operator's action"
        );
        let says = "Refused: this request does not come from the page itself. (The browser must send Sec-Fetch-Site.)";
        return sealed(refused(says), &nonce, None);
    }
    let known = cookie(&parts.headers);
    let token = known.clone().unwrap_or_else(secret);
    let new_token = known.is_none().then(|| token.clone());
    parts.extensions.insert(Asked { visitor, nonce: nonce.clone(), token });
    sealed(next.run(Request::from_parts(parts, body)).await, &nonce, new_token.as_deref())
}

fn changes(parts: &Parts) -> bool {
    !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Browsers set this header themselves; no page and no script can.
fn is_same_origin(headers: &HeaderMap) -> bool {
    headers.get(SEC_FETCH_SITE).is_some_and(|site| site == "same-origin")
}

/// 122 random bits.
fn secret() -> String {
    Uuid::new_v4().simple().to_string()
}

fn cookie(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let named = |pair: &str| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == TOKEN).then(|| value.to_owned())
    };
    let is_ours =
        |value: &String| value.len() == 32 && value.bytes().all(|b| b.is_ascii_hexdigit());
    cookies.flat_map(|value| value.split(';')).filter_map(named).find(is_ours)
}

fn refused(says: &'static str) -> Response {
    (StatusCode::FORBIDDEN, says).into_response()
}

/// The headers of every answer. Files set their own Cache-Control.
fn sealed(mut response: Response, nonce: &str, new_token: Option<&str>) -> Response {
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self'; \
         connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    let headers = response.headers_mut();
    // Hexadecimal digits are valid in a header.
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    // Without a path it is the browser's for this schema's pages, wherever they are mounted.
    let is_page = headers.get(CONTENT_TYPE).is_some_and(|kind| kind == HTML);
    let cookie = new_token
        .filter(|_| is_page)
        .map(|token| format!("{TOKEN}={token}; HttpOnly; SameSite=Strict"));
    if let Some(Ok(cookie)) = cookie.map(HeaderValue::try_from) {
        headers.append(SET_COOKIE, cookie);
    }
    response
}
