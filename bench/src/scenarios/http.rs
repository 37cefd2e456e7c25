//! http: the layer against a handler that calls `run`. In process, without sockets.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::routing::post;
use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use http_body_util::BodyExt;
use pgonce::sqlx::{self, PgConnection, PgPool, SqlStr};
use pgonce::web::{IdempotencyLayer, OnceClaim, OnceTx};
use pgonce::{Fingerprint, Lease, Operation, PgOnce, Scope};
use tower_service::Service;

use crate::Bench;
use crate::arena::Stage;
use crate::figures::{BARE, Outcome, Row};
use crate::load::{Fault, Subject, Work, interleave};
use crate::meter;
use crate::orders::key;
use crate::progress::Progress;

const ABOUT: &str = "An axum handler, called in process, with bodies of 1 kB. Look at the layer to run in the handler.";
const BODY_BYTES: usize = 1000;
const RUN: &str = "run in the handler";
const LAYER: &str = "layer";
const LEASED: &str = "layer, leased";
const REPLAYS: &str = "layer, replays";
/// Row, path, and the number of requests after which keys repeat.
const VARIANTS: [(&str, &str, u64); 5] = [
    (BARE, "/bare", u64::MAX),
    (RUN, "/run", u64::MAX),
    (LAYER, "/layer", u64::MAX),
    (LEASED, "/leased", u64::MAX),
    (REPLAYS, "/layer", REPLAYED),
];
/// How many keys are replayed; they differ from the fresh ones.
const REPLAYED: u64 = 50;
const REPLAYED_FROM: u64 = 1 << 33;

#[derive(Clone)]
struct App {
    pool: PgPool,
    once: PgOnce,
    insert: SqlStr,
}

struct Requests {
    router: Router,
    path: &'static str,
    again_after: u64,
}

impl App {
    async fn pay(&self, conn: &mut PgConnection) -> sqlx::Result<String> {
        let insert = sqlx::query(self.insert.clone()).bind(7_i64).bind(1200_i64);
        insert.bind("EUR").bind("paid").bind("x".repeat(120)).execute(conn).await?;
        Ok("y".repeat(BODY_BYTES))
    }
}

type Answer = Result<(StatusCode, String), StatusCode>;

fn wrong<E>(_: E) -> StatusCode {
    StatusCode::INTERNAL_SERVER_ERROR
}

async fn bare(State(app): State<App>, _body: Bytes) -> Answer {
    let mut tx = app.pool.begin().await.map_err(wrong)?;
    let paid = app.pay(&mut tx).await.map_err(wrong)?;
    tx.commit().await.map_err(wrong)?;
    Ok((StatusCode::CREATED, paid))
}

async fn by_run(State(app): State<App>, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(wrong)?.to_bytes();
    let key = parts.headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let key = key.ok_or(StatusCode::BAD_REQUEST)?.to_owned();
    let op = Operation::new("bench/run", key).map_err(wrong)?;
    let op = op.fingerprint(Fingerprint::of_bytes(&body));
    let work = async |tx: &mut PgConnection| app.pay(tx).await;
    let paid = app.once.run(&app.pool, &op, work).await.map_err(wrong)?;
    Ok((StatusCode::CREATED, paid.into_inner()))
}

async fn layered(State(app): State<App>, mut tx: OnceTx, _body: Bytes) -> Answer {
    Ok((StatusCode::CREATED, app.pay(&mut tx).await.map_err(wrong)?))
}

async fn leased(State(app): State<App>, claim: OnceClaim, _body: Bytes) -> Answer {
    let mut tx = claim.begin().await.map_err(wrong)?;
    Ok((StatusCode::CREATED, app.pay(&mut tx).await.map_err(wrong)?))
}

fn router(stage: &Stage, pool: PgPool, lease: Lease) -> Router {
    let insert =
        "insert into :schema.orders_bare (customer_id, amount_cents, currency, status, note)
        values ($1, $2, $3, $4, $5)";
    let (once, insert) = (stage.once.clone(), stage.sql(insert));
    let scope = |request: &Parts| Scope::new(format!("bench{}", request.uri.path())).ok();
    let layer = IdempotencyLayer::new(once.clone(), pool.clone(), scope);
    let of_leased = layer.clone().leased(lease).expect("the lease is shorter than a day");
    Router::new()
        .route("/bare", post(bare))
        .route("/run", post(by_run))
        .route("/leased", post(leased).layer(of_leased))
        .route("/layer", post(layered).layer(layer))
        .with_state(App { pool, once, insert })
}

impl Work for Requests {
    async fn perform(&self, number: u64) -> Result<(), Fault> {
        let number = match self.again_after {
            u64::MAX => number,
            count => REPLAYED_FROM + number % count,
        };
        let request = Request::post(self.path)
            .header("idempotency-key", format!("\"{}\"", key(number)))
            .body(Body::from("z".repeat(BODY_BYTES)))?;
        let response = self.router.clone().call(request).await?;
        if response.status() != StatusCode::CREATED {
            anyhow::bail!("{} answered {}", self.path, response.status());
        }
        response.into_body().collect().await?;
        Ok(())
    }
}

pub(crate) async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let (lease, mut costs) = (Lease::new(Duration::from_secs(30))?, [None; VARIANTS.len()]);
    for clients in bench.args.clients.clone() {
        let stage = bench.stage("http").await?;
        let pool = stage.pool(clients).await?;
        let mut subjects = Vec::new();
        for ((name, path, again_after), cost) in VARIANTS.into_iter().zip(&mut costs) {
            let make = |pool| Requests { router: router(&stage, pool, lease), path, again_after };
            let counted = match *cost {
                Some(counted) => counted,
                None => meter::count(&stage, bench.args.counted, make).await?,
            };
            *cost = Some(counted);
            let requests = make(pool.clone());
            if again_after != u64::MAX {
                meter::repeat(&requests, 0, again_after).await?;
            }
            subjects.push(Subject::new(Row::new(name, counted), requests));
        }
        stage.checkpoint().await?;
        interleave(&mut subjects, clients, bench.rounds(), &Progress::of("http")).await?;
        pool.close().await;
        let rows = subjects.into_iter().map(|subject| subject.row).collect();
        let mut outcome = Outcome::new("http", clients, ABOUT, rows, LAYER);
        let to_run = outcome.ratio_of(LAYER, RUN);
        outcome
            .notes
            .extend(to_run.map(|ratio| format!("The layer to run in the handler: {ratio}.")));
        outcome.figures.push(("ratio_to_run", to_run.map(|ratio| ratio.median).into()));
        bench.tell(outcome);
    }
    Ok(())
}
