//! A visitor with a browser's manners, and keys in each state.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::header::{CONTENT_TYPE, COOKIE, LOCATION, SET_COOKIE};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use pgonce::{Failure, Inbox, OnLapse, Operation, Policy, Work};
use pgonce_dashboard::{Access, Dashboard, Visitor};
use sqlx::postgres::PgConnectOptions;
use tower::ServiceExt;

use crate::support::db::{PATIENCE, TestDb, lasting, on_lapse, op};

/// Keeps its cookie, as a browser does.
pub struct Browser {
    router: Router,
    schema: String,
    cookie: Option<String>,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn has(&self, what: &str) -> &Self {
        assert!(self.text.contains(what), "no {what:?} in {} {}", self.status, self.text);
        self
    }

    pub fn lacks(&self, what: &str) -> &Self {
        assert!(!self.text.contains(what), "{what:?} in {}", self.text);
        self
    }

    pub fn is(&self, status: u16) -> &Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
    }

    /// The value of a hidden field.
    pub fn field(&self, name: &str) -> String {
        let (_, rest) = self.text.split_once(&format!("name=\"{name}\" value=\"")).expect(name);
        rest.split('"').next().unwrap().to_owned()
    }

    pub fn location(&self) -> &str {
        self.headers[LOCATION].to_str().unwrap()
    }
}

pub fn dashboard(db: &TestDb, options: PgConnectOptions, access: Access) -> Dashboard {
    Dashboard::new(options, &db.once, move |_| Visitor::new("ada", access.clone()))
}

impl Browser {
    pub fn new(db: &TestDb, access: Access) -> Self {
        Self::with_options(db, db.options.clone(), access)
    }

    pub fn with_options(db: &TestDb, options: PgConnectOptions, access: Access) -> Self {
        // Beside other tests a machine is slow.
        Self::of(db, dashboard(db, options, access).statement_timeout(PATIENCE))
    }

    /// Whose page gives up as soon as it can.
    pub fn impatient(db: &TestDb) -> Self {
        Self::of(
            db,
            dashboard(db, db.options.clone(), Access::All).statement_timeout(Duration::ZERO),
        )
    }

    fn of(db: &TestDb, page: Dashboard) -> Self {
        let router = page.router();
        Self { router, schema: db.schema.clone(), cookie: None }
    }

    /// A page of the schema.
    pub async fn get(&mut self, page: &str) -> Answer {
        let path = format!("/{}/{page}", self.schema);
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// A form, as the page itself sends it.
    pub async fn post(&mut self, page: &str, fields: &[(&str, &str)]) -> Answer {
        self.post_from(page, fields, Some("same-origin")).await
    }

    pub async fn post_from(
        &mut self,
        page: &str,
        fields: &[(&str, &str)],
        site: Option<&str>,
    ) -> Answer {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(fields);
        let path = format!("/{}/{page}", self.schema);
        let mut request =
            Request::post(path).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let Some(site) = site {
            request = request.header("sec-fetch-site", site);
        }
        self.send(request.body(Body::from(form.finish())).unwrap()).await
    }

    pub async fn send(&mut self, mut request: Request<Body>) -> Answer {
        if let Some(cookie) = &self.cookie {
            request.headers_mut().insert(COOKIE, cookie.parse().unwrap());
        }
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        if let Some(set) = parts.headers.get(SET_COOKIE) {
            self.cookie = set.to_str().unwrap().split(';').next().map(str::to_owned);
        }
        let body = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    /// What the cookie says, which forms repeat.
    pub fn token(&self) -> String {
        self.cookie.as_ref().unwrap().split_once('=').unwrap().1.to_owned()
    }

    /// Opens the confirmation of an action and confirms it, with more fields.
    pub async fn confirm(&mut self, action: &str, key: &str, more: &[(&str, &str)]) -> Answer {
        let asked = self.get(&format!("{action}?scope=test%2Fscope&key={key}")).await;
        asked.is(200);
        let (token, seen) = (asked.field("token"), asked.field("seen"));
        let mut fields =
            vec![("scope", "test/scope"), ("key", key), ("token", &token), ("seen", &seen)];
        fields.extend_from_slice(more);
        self.post(action, &fields).await
    }
}

pub const BRIEF: Duration = Duration::from_millis(1);
pub const LONG: Duration = Duration::from_secs(3600);

/// A claim that has lapsed, under a policy that leaves it to an operator.
pub async fn hold(db: &TestDb, key: &str) -> Operation {
    let op = op(key).policy(on_lapse(OnLapse::Hold));
    drop(db.lease(&op, BRIEF).await);
    lapsed(db, key).await;
    op
}

/// A claim that has lapsed: anybody may continue.
pub async fn abandon(db: &TestDb, key: &str) {
    drop(db.lease(&op(key), BRIEF).await);
    lapsed(db, key).await;
}

async fn lapsed(db: &TestDb, key: &str) {
    db.until(&format!(
        "select lease_expires_at < {{}}._clock() from {{}}.idempotency_keys where key = '{key}'"
    ))
    .await;
}

/// Work that did a step and failed.
pub async fn half_done(db: &TestDb, key: &str, output: &str, error: &str) {
    let work = async |work: &mut Work| {
        work.progress(&serde_json::json!({ "percent": 40 })).await?;
        work.step("charge", async || Ok::<_, Failure>(output.to_owned())).await?;
        Err::<(), _>(Failure::from(std::io::Error::other(error.to_owned())))
    };
    let _ = db.once.run_leased(&db.pool, &op(key), lasting(LONG), work).await;
}

/// A message of consumer `test/scope` after so many failures; dead after three.
pub async fn fail_message(db: &TestDb, id: &str, failures: u32, error: &str) {
    let policy = Policy::inbox().max_attempts(3).unwrap();
    let inbox = Inbox::new(&db.once, "test/scope").unwrap().policy(policy).unwrap();
    for _ in 0..failures {
        inbox.failed(&db.pool, id, error).await.unwrap();
    }
}

/// The key's status and whether it has a token.
pub async fn row(db: &TestDb, key: &str) -> String {
    db.ask(&format!(
        "select status || ' ' || (token is not null) from {{}}.idempotency_keys where key = '{key}'"
    ))
    .await
}
