//! The client for reqwest.

use bytes::Bytes;
use http::Extensions;
use reqwest::{Request, Response, ResponseBuilderExt, redirect};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next as Chain};

use crate::Error;
use crate::call::{Call, Next, Outcome, is_read};
use crate::policy::RetryPolicy;

/// A client whose calls are keyed and tried again. Only 307 and 308 to the same origin are followed: a key must not get to
/// another server, and the other redirects would make a GET of a POST. Those are returned as they are.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = pgonce_client::client(reqwest::Client::builder(), pgonce_client::RetryPolicy::new())?;
/// let charge = client.post("https://api.example.com/charges").body(r#"{"cents": 1999}"#).send().await?;
/// println!("{}", charge.status());
/// # Ok(())
/// # }
/// ```
///
/// Without async code: make one runtime and block on it.
///
/// ```no_run
/// # fn example(client: reqwest_middleware::ClientWithMiddleware) -> Result<(), Box<dyn std::error::Error>> {
/// let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
/// let charge = runtime.block_on(client.post("https://api.example.com/charges").send())?;
/// # drop(charge);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// reqwest's, of a builder with bad settings.
///
/// # Cancel safety
/// A call that is dropped may have taken effect. Send it again under the same key: give the request its key yourself, or
/// use an [`IntentStore`](crate::IntentStore).
pub fn client(
    builder: reqwest::ClientBuilder,
    policy: RetryPolicy,
) -> reqwest::Result<ClientWithMiddleware> {
    let http = builder.redirect(redirect::Policy::custom(same_origin)).build()?;
    Ok(ClientBuilder::new(http).with(Retries(policy)).build())
}

fn same_origin(attempt: redirect::Attempt<'_>) -> redirect::Action {
    const MOST: usize = 10;
    let same =
        attempt.previous().first().is_some_and(|first| first.origin() == attempt.url().origin());
    match same {
        _ if attempt.previous().len() > MOST => attempt.error("too many redirects"),
        // After the others a POST would become a GET, and its answer would look like the POST's.
        true if matches!(attempt.status().as_u16(), 307 | 308) => attempt.follow(),
        _ => attempt.stop(),
    }
}

/// The middleware of [`client`], for a chain of your own. Put it outside of those that must see each try, such as
/// tracing. It cannot see redirects: reqwest sends the key to other origins, unless its redirects are off.
///
/// A response that can be tried again and is not, because tries, time or budget are at their end, is returned as it is.
/// Errors of reqwest are tried again, but not those of a bad request. If the last try had no answer, its error is
/// returned.
#[derive(Debug, Clone)]
pub struct Retries(pub RetryPolicy);

#[async_trait::async_trait]
impl Middleware for Retries {
    async fn handle(
        &self,
        mut request: Request,
        extensions: &mut Extensions,
        chain: Chain<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let method = request.method().clone();
        let mut call = Call::begin(&self.0, &method, request.headers_mut());
        if call.is_repeatable() && request.try_clone().is_none() {
            return Err(failed(Error::BodyNotRepeatable));
        }
        loop {
            let Some(time) = call.try_now() else { return Err(failed(call.over())) };
            let (this, again) = match request.try_clone() {
                Some(copy) => (copy, Some(request)),
                None => (request, None),
            };
            let sending = async { read(chain.clone().run(this, extensions).await).await };
            let (outcome, sent) = tokio::time::timeout(time, sending)
                .await
                .unwrap_or_else(|_| (Some(Outcome::default()), Err(failed(call.over()))));
            let next = match (outcome, again) {
                (Some(outcome), Some(again)) => match call.after(&outcome) {
                    Next::AgainAfter(pause) => Some((pause, again)),
                    Next::Return => None,
                },
                _ => None,
            };
            let Some((pause, again)) = next else {
                return sent.map(|mut response| {
                    let outcome = outcome.unwrap_or_default();
                    response.extensions_mut().insert(call.sent(&outcome));
                    response
                });
            };
            drop(sent);
            tokio::time::sleep(pause).await;
            request = again;
        }
    }
}

fn failed(error: Error) -> reqwest_middleware::Error {
    reqwest_middleware::Error::Middleware(anyhow::Error::new(error))
}

type Answered = reqwest_middleware::Result<Response>;

/// What came of a try; nothing for an error that another try cannot cure. A short response is read whole, and returned
/// unchanged.
async fn read(sent: Answered) -> (Option<Outcome>, Answered) {
    let response = match sent {
        Ok(response) => response,
        Err(reqwest_middleware::Error::Reqwest(error)) => {
            let curable = !error.is_builder() && !error.is_redirect() && !error.is_decode();
            return (curable.then(Outcome::default), Err(error.into()));
        }
        Err(error) => return (None, Err(error)),
    };
    let (status, headers) = (response.status(), response.headers().clone());
    if !is_read(status, &headers, response.content_length()) {
        return (Some(Outcome::of(status, &headers, None)), Ok(response));
    }
    let extensions = response.extensions().clone();
    let (version, url) = (response.version(), response.url().clone());
    let body: Bytes = match response.bytes().await {
        Ok(body) => body,
        Err(error) => return (Some(Outcome::broken(status, &headers)), Err(error.into())),
    };
    let outcome = Outcome::of(status, &headers, Some(&body));
    let whole = http::Response::builder().status(status).version(version).url(url).body(body);
    let whole = whole.map(|mut whole| {
        *whole.headers_mut() = headers;
        whole.extensions_mut().extend(extensions);
        Response::from(whole)
    });
    (Some(outcome), whole.map_err(|error| reqwest_middleware::Error::Middleware(error.into())))
}
