//! Where a key may go.

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Redirect;
use axum::routing::post;
use pgonce_client::{RetryPolicy, client};

use crate::service::serve;

async fn echo(headers: HeaderMap) -> String {
    headers.get("idempotency-key").map(|key| key.to_str().unwrap().to_owned()).unwrap_or_default()
}

#[tokio::test]
async fn a_redirect_keeps_the_key_on_the_same_origin_and_is_not_followed_to_another() {
    let other = serve(Router::new().route("/", post(echo))).await;
    let here = serve(
        Router::new()
            .route("/", post(echo).get(echo))
            .route("/see", post(|| async { Redirect::to("/") }))
            .route("/same", post(|| async { Redirect::temporary("/") }))
            .route(
                "/other",
                post(move || async move { Redirect::permanent(&format!("http://{other}/")) }),
            ),
    )
    .await;
    let http = reqwest::Client::builder().no_proxy();
    let client = client(http, RetryPolicy::new()).unwrap();
    let send = async |path: &str| {
        let url = format!("http://{here}{path}");
        client.post(url).header("idempotency-key", "k").body("x").send().await.unwrap()
    };
    assert_eq!(send("/same").await.text().await.unwrap(), "k");
    assert_eq!(send("/other").await.status(), StatusCode::PERMANENT_REDIRECT);
    // A browser's redirect would make a GET of it, whose 200 says nothing about the POST.
    assert_eq!(send("/see").await.status(), StatusCode::SEE_OTHER);
}
