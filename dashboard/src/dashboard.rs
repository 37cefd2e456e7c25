//! What an application builds and mounts.

use std::convert::Infallible;
use std::fmt;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use pgonce::PgOnce;
use pgonce::sqlx::postgres::PgConnectOptions;
use tower_service::Service;

use crate::access::Visitor;
use crate::app::{App, Decide};
use crate::database::Database;
use crate::{actions, assets, guard, pages};

/// The operator's page, to be built once and mounted in a service.
///
/// ```no_run
/// use pgonce::{PgOnce, sqlx::PgPool};
/// use pgonce_dashboard::{Access, Dashboard, Visitor};
///
/// # #[derive(Clone)] struct User { name: String, on_call: bool }
/// # fn example(pool: PgPool, once: PgOnce) -> axum::Router {
/// let page = Dashboard::new((*pool.connect_options()).clone(), &once, |request| {
///     // What your own login left in the request.
///     match request.extensions.get::<User>() {
///         Some(user) if user.on_call => Visitor::new(&user.name, Access::All),
///         Some(user) => Visitor::new(&user.name, Access::ReadOnly),
///         None => Visitor::nobody(),
///     }
/// });
/// axum::Router::new().nest("/operator", page.router())
/// # }
/// ```
#[must_use]
pub struct Dashboard {
    options: PgConnectOptions,
    statement_timeout: Duration,
    schemas: Vec<PgOnce>,
    decide: Decide,
}

const STATEMENT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);
const STATEMENT_TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(60);

impl Dashboard {
    /// A page over the keys of `once`. It makes a small pool of its own from these connect options (up to three
    /// connections, none while nobody looks), so that it never takes a connection from your service.
    ///
    /// `access` decides about each request, from its head: which actions the visitor may do, and the name that audit
    /// lines show. It runs before anything else and must not block. To look somebody up in a database, do it in your
    /// own middleware around the page, and read its result here, from the request's extensions.
    pub fn new(
        options: PgConnectOptions,
        once: &PgOnce,
        access: impl Fn(&Parts) -> Visitor + Send + Sync + 'static,
    ) -> Self {
        Self {
            options,
            statement_timeout: STATEMENT_TIMEOUT_DEFAULT,
            schemas: vec![once.clone()],
            decide: Arc::new(access),
        }
    }

    /// Adds another schema of the same database.
    pub fn schema(mut self, once: &PgOnce) -> Self {
        self.schemas.push(once.clone());
        self
    }

    /// How long a statement of the page may run: 100 ms to a minute (beyond that, the nearest of these); default two
    /// seconds. A page that the database does not answer in this time says so in a banner.
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout =
            timeout.clamp(*STATEMENT_TIMEOUTS.start(), *STATEMENT_TIMEOUTS.end());
        self
    }

    /// A router to nest under any path without a slash at its end: all links on the page are relative. (With
    /// `nest_service` and [`service`](Dashboard::service), axum answers with a slash at the end, too.) Must be called in a
    /// Tokio runtime.
    pub fn router(self) -> Router {
        let database = Database::new(self.options, self.statement_timeout);
        let app = Arc::new(App::new(&database, &self.schemas, self.decide));
        Router::new()
            .route("/", get(pages::root))
            .route("/-/{file}", get(assets::file))
            .route("/{schema}/overview", get(pages::overview::page))
            .route("/{schema}/scopes", get(pages::scopes::page))
            .route("/{schema}/keys", get(pages::keys::page))
            .route("/{schema}/key", get(pages::key::page))
            .route("/{schema}/waiting", get(pages::waiting::page))
            .route("/{schema}/inbox", get(pages::inbox::page))
            .route("/{schema}/health", get(pages::health::page))
            .route("/{schema}/release", get(actions::release::ask).post(actions::release::act))
            .route("/{schema}/resolve", get(actions::resolve::ask).post(actions::resolve::act))
            .route("/{schema}/redrive", get(actions::redrive::ask).post(actions::redrive::act))
            .route("/{schema}/reveal", get(actions::reveal::ask).post(actions::reveal::act))
            .fallback(pages::not_found)
            .layer(from_fn_with_state(Arc::clone(&app), guard::guard))
            .with_state(app)
    }

    /// The same as a tower service, for applications without axum. If you mount it under a path, strip that path from
    /// the request, and link to it with a slash at the end. Must be called in a Tokio runtime.
    #[must_use]
    pub fn service(self) -> DashboardService {
        DashboardService(self.router())
    }
}

impl fmt::Debug for Dashboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schemas: Vec<_> = self.schemas.iter().map(|once| once.schema_name().as_str()).collect();
        f.debug_struct("Dashboard").field("schemas", &schemas).finish_non_exhaustive()
    }
}

/// The operator's page as a tower service; see [`Dashboard::service`].
#[derive(Debug, Clone)]
pub struct DashboardService(Router);

impl<B> Service<Request<B>> for DashboardService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<B>>::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Box::pin(self.0.call(request))
    }
}
