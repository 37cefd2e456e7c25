//! Where the page can be mounted.

use axum::Router;
use axum::body::Body;
use http::Request;
use http::header::LOCATION;
use http_body_util::BodyExt;
use pgonce_dashboard::Access;
use tower::ServiceExt;

use crate::kit::dashboard;
use crate::support::db::TestDb;

async fn status_and_location(router: &Router, path: &str) -> (u16, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let location = response.headers().get(LOCATION).map(|to| to.to_str().unwrap().to_owned());
    (response.status().as_u16(), location.unwrap_or_default())
}

#[tokio::test]
async fn under_any_path_with_or_without_a_slash() {
    let db = TestDb::new().await;
    let schema = &db.schema;
    let page = || dashboard(&db, db.options.clone(), Access::All).router();
    let root = page();
    assert_eq!(status_and_location(&root, "/").await, (303, format!("{schema}/overview")));
    let nested = Router::new().nest("/ops/keys", page());
    let without = status_and_location(&nested, "/ops/keys").await;
    assert_eq!(without, (303, format!("keys/{schema}/overview")));
    // As a service, axum lets it answer with a slash at the end, too.
    let service = dashboard(&db, db.options.clone(), Access::All).service();
    let mounted = Router::new().nest_service("/ops/keys", service);
    assert_eq!(status_and_location(&mounted, "/ops/keys").await, without);
    let with = status_and_location(&mounted, "/ops/keys/").await;
    assert_eq!(with, (303, format!("{schema}/overview")));
    assert_eq!(status_and_location(&mounted, &format!("/ops/keys/{schema}/overview")).await.0, 200);
    assert_eq!(status_and_location(&nested, &format!("/ops/keys/{schema}/overview")).await.0, 200);
    assert_eq!(status_and_location(&nested, "/ops/keys/-/page.css").await.0, 200);
    for nowhere in ["/ops/keys/other/overview", "/ops/keys/-/none", "/ops/keys/a/b/c"] {
        assert_eq!(status_and_location(&nested, nowhere).await.0, 404, "{nowhere}");
    }
}

#[tokio::test]
async fn as_a_tower_service_with_another_body() {
    let db = TestDb::new().await;
    let service = dashboard(&db, db.options.clone(), Access::All).service();
    let path = format!("/{}/overview", db.schema);
    let body = http_body_util::Full::new(bytes::Bytes::new());
    let request = Request::get(path).body(body).unwrap();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("Nothing waits for you"));
}

#[tokio::test]
async fn several_schemas_are_told_apart() {
    let (one, other) = (TestDb::new().await, TestDb::new().await);
    one.complete(&crate::support::db::op("k"), "body").await;
    let page = dashboard(&one, one.options.clone(), Access::All).schema(&other.once).router();
    for (schema, status) in [(&one.schema, 200), (&other.schema, 404)] {
        let path = format!("/{schema}/key?scope=test%2Fscope&key=k");
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = page.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let links =
            [&one.schema, &other.schema].map(|schema| format!("href=\"../{schema}/overview\""));
        let text = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(links.iter().filter(|link| text.contains(*link)).count(), 1, "{text}");
    }
}
