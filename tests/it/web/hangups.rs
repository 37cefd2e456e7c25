//! The client hangs up: at every stage of the exchange, in every way. Trap 34.

use axum::Router;
use axum::routing::post as on_post;
use http::StatusCode;
use pgonce::web::{OnceClaim, OnceTx};
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use super::wire::{self, Count, Http2, Server, Stream, Wire, head};
use super::{layer, lease};
use crate::support::db::{PATIENCE, TestDb, effect, waits};

const BODY: (&str, &str) = ("amount=", "100");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connected,
    HalfAHead,
    Head,
    HalfABody,
    HandlerWaits,
    HandlerWrites,
    Commits,
    AnswerBegun,
}

/// The protocol, and how the client hangs up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Http1,
    Http1Chunked,
    Http2Reset,
    Http2Close,
}

enum Client {
    Http1(Wire),
    Http2(Http2, Option<Stream>),
}

impl Client {
    async fn connect(server: &Server, way: Way) -> Self {
        match way {
            Way::Http1 | Way::Http1Chunked => Self::Http1(Wire::connect(server.addr).await),
            Way::Http2Reset | Way::Http2Close => {
                Self::Http2(Http2::connect(server.addr).await, None)
            }
        }
    }

    async fn send_head(&mut self, way: Way) {
        match self {
            Self::Http1(wire) if way == Way::Http1Chunked => {
                wire.send(format!("{}transfer-encoding: chunked\r\n\r\n", head("k"))).await;
            }
            Self::Http1(wire) => {
                let length = BODY.0.len() + BODY.1.len();
                wire.send(format!("{}content-length: {length}\r\n\r\n", head("k"))).await;
            }
            Self::Http2(http2, stream) => *stream = Some(http2.begin("k").await),
        }
    }

    async fn send_body(&mut self, way: Way, part: &'static str, last: bool) {
        match self {
            Self::Http1(wire) if way == Way::Http1Chunked => {
                let end = if last { "0\r\n\r\n" } else { "" };
                wire.send(format!("{:x}\r\n{part}\r\n{end}", part.len())).await;
            }
            Self::Http1(wire) => wire.send(part).await,
            Self::Http2(_, stream) => {
                stream.as_mut().unwrap().1.send_data(part.into(), last).unwrap();
            }
        }
    }

    async fn answer_begun(&mut self) {
        match self {
            Self::Http1(wire) => drop(wire.exactly(1).await),
            Self::Http2(_, stream) => {
                let (response, _) = stream.as_mut().unwrap();
                assert_eq!(response.await.unwrap().status(), StatusCode::CREATED);
            }
        }
    }

    /// After a stream reset, the HTTP/2 connection stays open.
    fn hang_up(self, way: Way) -> Option<Http2> {
        match self {
            Self::Http1(wire) => drop(wire),
            Self::Http2(http2, stream) if way == Way::Http2Reset => {
                if let Some(stream) = stream {
                    wire::reset(stream);
                }
                return Some(http2);
            }
            Self::Http2(http2, _) => http2.close(),
        }
        None
    }
}

/// A server whose handler waits for the test, and whose writes and commits can be blocked.
struct Site {
    db: TestDb,
    server: Server,
    entered: Count,
    go: Count,
}

impl Site {
    async fn start(leased: bool) -> Self {
        let db = TestDb::with_connections(2).await;
        db.execute(
            "create table {}.hold ();
             create function {}.hold() returns trigger language plpgsql as
               'begin perform from {}.hold; return null; end';
             create constraint trigger hold after insert on {}.effect deferrable initially deferred
               for each row execute function {}.hold()",
        )
        .await;
        let (entered, go) = (Count::new(), Count::new());
        let (schema, layer) = (db.schema.clone(), layer(&db));
        let (came, may) = (entered.clone(), go.clone());
        let handler = if leased {
            let handler = async move |claim: OnceClaim| {
                came.add();
                may.until(1).await;
                let mut tx = claim.begin().await.unwrap();
                let id = effect(&mut tx, &schema, "paid").await.unwrap();
                (StatusCode::CREATED, format!("payment {id}"))
            };
            on_post(handler).layer(layer.leased(lease(PATIENCE)).unwrap())
        } else {
            let handler = async move |mut tx: OnceTx| {
                came.add();
                may.until(1).await;
                let id = effect(&mut tx, &schema, "paid").await.unwrap();
                (StatusCode::CREATED, format!("payment {id}"))
            };
            on_post(handler).layer(layer)
        };
        let server = Server::start(Router::new().route("/", handler)).await;
        Self { db, server, entered, go }
    }

    /// Locks a table until the connection is dropped.
    async fn hold(&self, table: &str) -> PgConnection {
        let mut conn = self.db.conn().await;
        let sql = format!("begin; lock table {{}}.{table} in access exclusive mode");
        sqlx::raw_sql(self.db.sql(&sql)).execute(&mut conn).await.unwrap();
        conn
    }

    /// Takes a client through the exchange up to this stage. Returns the connection that blocks it, if any.
    async fn bring(&self, client: &mut Client, way: Way, stage: Stage) -> Option<PgConnection> {
        match stage {
            Stage::Connected => return None,
            Stage::HalfAHead => {
                let Client::Http1(wire) = client else { panic!("a head is one frame in HTTP/2") };
                wire.send("POST / HTTP/1.1\r\nhost: test\r\nidempotency-k").await;
                return None;
            }
            _ => client.send_head(way).await,
        }
        self.server.entered.until(1).await;
        if stage == Stage::Head {
            return None;
        }
        client.send_body(way, BODY.0, false).await;
        if stage == Stage::HalfABody {
            return None;
        }
        client.send_body(way, BODY.1, true).await;
        self.entered.until(1).await;
        if stage == Stage::HandlerWaits {
            return None;
        }
        let held = match stage {
            Stage::HandlerWrites => Some(self.hold("effect").await),
            Stage::Commits => Some(self.hold("hold").await),
            _ => None,
        };
        self.go.add();
        match held {
            Some(_) => self.db.until_waiting(1).await,
            None => client.answer_begun().await,
        }
        held
    }

    async fn until_idle(&self) {
        self.db
            .until(&format!(
                "select not exists (select from pg_stat_activity where application_name = '{}'
                   and xact_start is not null and pid <> pg_backend_pid())",
                self.db.schema
            ))
            .await;
    }

    /// No transaction is open, and all connections of the pool are free.
    async fn is_clean(&self, case: &str) {
        self.until_idle().await;
        let both = async {
            let _one = self.db.pool.acquire().await.unwrap();
            let _two = self.db.pool.acquire().await.unwrap();
        };
        timeout(PATIENCE, both).await.unwrap_or_else(|_| panic!("{case}: a connection leaked"));
    }
}

async fn hang_up(leased: bool, way: Way, stage: Stage) {
    let case = format!("{way:?}, {stage:?}, leased: {leased}");
    let site = Site::start(leased).await;
    let mut client = Client::connect(&site.server, way).await;
    let held = site.bring(&mut client, way, stage).await;
    let open = client.hang_up(way);
    if !matches!(stage, Stage::Connected | Stage::HalfAHead | Stage::AnswerBegun) {
        site.server.left.until(1).await;
    }
    let survives = leased && !matches!(stage, Stage::Head | Stage::HalfABody);
    let busy = held.is_some() || (survives && stage == Stage::HandlerWaits);
    if busy {
        let retry = site.server.post("k", "amount=100").await;
        assert_eq!((retry.status, retry.code()), (StatusCode::CONFLICT, "in_progress".into()));
    }
    if let Some(held) = held {
        held.close().await.unwrap();
    }
    if stage == Stage::Commits {
        // A retry that looks just before the COMMIT may run its handler, and roll it back.
        site.until_idle().await;
    }
    site.go.add();
    let retry = site.server.post_until_told("k", "amount=100").await;
    assert_eq!(retry.status, StatusCode::CREATED, "{case}: {retry:?}");
    let replayed = match stage {
        Stage::Connected | Stage::HalfAHead | Stage::Head | Stage::HalfABody => false,
        Stage::HandlerWaits | Stage::HandlerWrites => leased,
        Stage::Commits | Stage::AnswerBegun => true,
    };
    assert_eq!(retry.is_replay(), replayed, "{case}");
    assert_eq!(site.db.effects().await, 1, "{case}");
    let entries = match stage {
        Stage::HandlerWaits | Stage::HandlerWrites if !leased => 2,
        _ => 1,
    };
    assert_eq!(site.entered.get(), entries, "{case}");
    if let Some(mut http2) = open {
        assert!(http2.post("k", "amount=100").await.is_replay(), "{case}: on the same connection");
    }
    site.is_clean(&case).await;
}

const BEFORE_THE_BODY: [Stage; 3] = [Stage::Connected, Stage::HalfAHead, Stage::Head];
const FROM_THE_BODY_ON: [Stage; 5] = [
    Stage::HalfABody,
    Stage::HandlerWaits,
    Stage::HandlerWrites,
    Stage::Commits,
    Stage::AnswerBegun,
];

#[tokio::test]
async fn a_transactional_http1_client_may_hang_up_at_any_stage() {
    for stage in BEFORE_THE_BODY.into_iter().chain(FROM_THE_BODY_ON) {
        hang_up(false, Way::Http1, stage).await;
    }
    hang_up(false, Way::Http1Chunked, Stage::HalfABody).await;
}

#[tokio::test]
async fn a_leased_http1_client_may_hang_up_at_any_stage() {
    for stage in BEFORE_THE_BODY.into_iter().chain(FROM_THE_BODY_ON) {
        hang_up(true, Way::Http1, stage).await;
    }
    hang_up(true, Way::Http1Chunked, Stage::HalfABody).await;
}

#[tokio::test]
async fn a_transactional_http2_stream_may_be_reset_or_lost_at_any_stage() {
    for stage in [Stage::Head].into_iter().chain(FROM_THE_BODY_ON) {
        hang_up(false, Way::Http2Reset, stage).await;
        hang_up(false, Way::Http2Close, stage).await;
    }
}

#[tokio::test]
async fn a_leased_http2_stream_may_be_reset_or_lost_at_any_stage() {
    for stage in [Stage::Head].into_iter().chain(FROM_THE_BODY_ON) {
        hang_up(true, Way::Http2Reset, stage).await;
        hang_up(true, Way::Http2Close, stage).await;
    }
}

#[tokio::test]
async fn a_waiter_that_hangs_up_leaves_its_place_to_another() {
    let db = TestDb::with_connections(2).await;
    let (entered, go) = (Count::new(), Count::new());
    let (came, may, schema) = (entered.clone(), go.clone(), db.schema.clone());
    let handler = async move |mut tx: OnceTx| {
        came.add();
        may.until(1).await;
        effect(&mut tx, &schema, "paid").await.unwrap().to_string()
    };
    let layer = layer(&db).policy(waits(PATIENCE)).unwrap().waiters_max(1);
    let server =
        Server::start(Router::new().route("/", on_post(handler).layer(layer.clone()))).await;
    let mut first = Wire::connect(server.addr).await;
    first.send(wire::whole("k", "1")).await;
    entered.until(1).await;
    let mut waiting = Wire::connect(server.addr).await;
    waiting.send(wire::whole("k", "1")).await;
    server.entered.until(2).await; // and it waits in the queue for the last connection
    while server.post("k", "1").await.status != StatusCode::CONFLICT {}
    let left = server.left.get();
    drop(waiting);
    server.left.until(left + 1).await;
    let mut waiting = Wire::connect(server.addr).await;
    waiting.send(wire::whole("k", "1")).await;
    server.entered.until(left + 3).await; // the two at work and the one that left
    go.add();
    assert!(waiting.answer().await.is_replay());
    assert!(!first.answer().await.is_replay());
    assert_eq!((entered.get(), db.effects().await), (1, 1));
}
