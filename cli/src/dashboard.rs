//! `pgonce dashboard`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{CACHE_CONTROL, COOKIE, HOST, LOCATION, SET_COOKIE};
use http::{HeaderMap, StatusCode, Uri};
use pgonce::{PgOnce, SchemaName};
use pgonce_dashboard::{Access, Dashboard, Visitor};
use tokio::net::TcpListener;
use tracing_subscriber::filter::{Directive, LevelFilter};

use crate::exit::CliError;
use crate::hash::secret;
use crate::interrupt::Interrupt;
use crate::output;
use crate::session::{Global, connect};

/// Serve the operator's page on this machine, for the one who opens the printed address
#[derive(clap::Args)]
#[command(after_help = "\
The page shows keys and lets you release, resolve and redrive them. It listens on the loopback interface only.
The printed address works once: it gives its browser a session that ends with this command. For a database that
only another machine reaches, run the command there and forward its port: ssh -L 4000:127.0.0.1:4000 HOST.
Log lines show a hash in place of a key: the one that pgonce hash prints, if PGONCE_LOG_SECRET is set.

Example:
  pgonce dashboard --port 4000 --also billing_once")]
pub(crate) struct Args {
    /// The port to listen on; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 0)]
    port: u16,
    /// Another schema of the same database to show; may be repeated
    #[arg(long, value_name = "SCHEMA")]
    also: Vec<String>,
    /// Only look: change nothing, and show no stored responses
    #[arg(long)]
    read_only: bool,
    /// The name that audit lines show
    #[arg(long, value_name = "NAME", env = "USER", default_value = "operator")]
    name: String,
}

/// What is logged unless RUST_LOG asks for something else: each action.
pub(crate) fn logged() -> Directive {
    "pgonce::audit=info".parse().unwrap_or_else(|_| LevelFilter::INFO.into())
}

pub(crate) async fn run(global: &Global, args: &Args) -> Result<(), CliError> {
    let mut interrupt = Interrupt::listen()?;
    let options = global.database()?;
    // A pool would connect at the first visit, and then not say what is wrong.
    let mut conn = connect(&options).await?;
    let with_secret = |once: PgOnce| match secret() {
        Some(secret) => once.log_secret(secret),
        None => Ok(once),
    };
    let once = with_secret(global.once()?)?;
    let access = if args.read_only { Access::ReadOnly } else { Access::All };
    let visitor = Visitor::new(&args.name, access);
    let mut page = Dashboard::new(options, &once, move |_| visitor.clone());
    for schema in &args.also {
        let once = with_secret(PgOnce::new().schema(SchemaName::new(schema.as_str())?))?;
        once.takes_writes(&mut conn).await?;
        page = page.schema(&once);
    }
    once.takes_writes(&mut conn).await?;
    drop(conn);

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).await;
    let listener = listener.map_err(|error| CliError::failed("io", error))?;
    let address = listener.local_addr().map_err(|error| CliError::failed("io", error))?;
    let door = Arc::new(Door::new(address));
    output::line(format!("http://{address}/open?token={}", door.token()))?;
    eprintln!("The address works once. Ctrl-C ends the page and its session.");
    let app = Router::new()
        .merge(page.router())
        .layer(from_fn_with_state(Arc::clone(&door), only_with_session))
        .merge(Router::new().route("/open", get(open)).with_state(Arc::clone(&door)))
        .layer(from_fn_with_state(door, only_by_this_name));
    let stopped = async move { interrupt.received().await };
    let served = tokio::select! {
        served = async { axum::serve(listener, app).await } => served,
        () = stopped => Ok(()),
    };
    served.map_err(|error| CliError::failed("io", error))
}

/// Lets in the browser that brings the token, once.
struct Door {
    address: SocketAddr,
    token: Mutex<Option<String>>,
    session: String,
}

impl Door {
    fn new(address: SocketAddr) -> Self {
        let secret = || uuid::Uuid::new_v4().simple().to_string();
        Self { address, token: Mutex::new(Some(secret())), session: secret() }
    }

    fn token(&self) -> String {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
    }

    /// Takes the token away if it is the right one.
    fn unlock(&self, given: &str) -> bool {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        let is_right = token.as_deref() == Some(given);
        if is_right {
            *token = None;
        }
        is_right
    }

    /// Browsers send a cookie to all ports of a host: another such page has another name.
    fn cookie_name(&self) -> String {
        format!("pgonce_session_{}", self.address.port())
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|value| value.split(';')).map(str::trim);
        let name = self.cookie_name();
        pairs.any(|pair| pair.split_once('=') == Some((name.as_str(), self.session.as_str())))
    }
}

async fn open(State(door): State<Arc<Door>>, uri: Uri) -> Response {
    let token = uri.query().and_then(|query| query.strip_prefix("token=")).unwrap_or_default();
    if !door.unlock(token) {
        return refused("This address does not work, or no longer. Start pgonce dashboard again.");
    }
    let (name, session) = (door.cookie_name(), &door.session);
    let cookie = format!("{name}={session}; Path=/; HttpOnly; SameSite=Strict");
    let headers =
        [(LOCATION, "/".to_owned()), (SET_COOKIE, cookie), (CACHE_CONTROL, "no-store".to_owned())];
    (StatusCode::SEE_OTHER, headers).into_response()
}

async fn only_with_session(
    State(door): State<Arc<Door>>,
    request: Request,
    next: Next,
) -> Response {
    match door.knows(request.headers()) {
        true => next.run(request).await,
        false => refused("Open the address that pgonce dashboard has printed. It works once."),
    }
}

/// Another site's name that was pointed at this machine reaches nothing.
async fn only_by_this_name(
    State(door): State<Arc<Door>>,
    request: Request,
    next: Next,
) -> Response {
    let named = |host: &str| {
        let port = door.address.port();
        ["127.0.0.1", "localhost"].iter().any(|name| host == format!("{name}:{port}"))
    };
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    match host.is_some_and(named) {
        true => next.run(request).await,
        false => refused("Open the page as 127.0.0.1 or localhost."),
    }
}

fn refused(says: &'static str) -> Response {
    (StatusCode::FORBIDDEN, [(CACHE_CONTROL, "no-store")], says).into_response()
}
