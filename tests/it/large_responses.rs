//! A response over the limit, or marked secret, is omitted: its headers and body are not sent to the database.

use pgonce::{Failure, Lease, Operation, PgOnce, Response, RunError, Status, Work};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool};

use crate::support::db::{PATIENCE, TestDb, lasting, op, started};
use crate::support::proxy::Proxy;

const LARGE: usize = 16 * 1024 * 1024;
/// Far more than all statements of an operation, far less than a large response.
const SMALL: u64 = 256 * 1024;

/// A database behind a proxy that counts bytes, with a limit of 1,000 bytes for responses.
struct Counted {
    db: TestDb,
    once: PgOnce,
    proxy: Proxy,
    pool: PgPool,
}

impl Counted {
    async fn new() -> Self {
        let db = TestDb::new().await;
        let proxy = Proxy::start(&db, None);
        let pool = PgPoolOptions::new().max_connections(3).connect_lazy_with(proxy.options());
        Self { once: db.once.clone().response_bytes_max(1000), db, proxy, pool }
    }

    /// Little was sent, and the key is done without its response.
    async fn is_omitted(&self, op: &Operation, status: Status, code: Option<i32>) {
        let sent = self.proxy.bytes_sent();
        assert!(sent < SMALL, "{sent} bytes were sent");
        let mut conn = self.db.conn().await;
        let found = self.once.inspect(&mut conn, op.scope(), op.key()).await.unwrap().unwrap();
        let (record, response) = (found.record, found.response);
        assert_eq!(record.status, status);
        assert!(record.response_omitted && response.is_omitted());
        assert_eq!(
            (response.code(), response.body(), response.headers()),
            (code, &[][..], &[][..])
        );
    }
}

fn large() -> String {
    "x".repeat(LARGE)
}

#[tokio::test]
async fn what_run_returns_is_not_sent_when_it_is_too_large() {
    let counted = Counted::new().await;
    let done = counted.once.run(&counted.pool, &op("k"), async |_| Ok::<_, Failure>(large())).await;
    assert_eq!(done.unwrap().len(), LARGE);
    counted.is_omitted(&op("k"), Status::Completed, None).await;
    let again =
        counted.once.run(&counted.pool, &op("k"), async |_| Ok::<_, Failure>(large())).await;
    assert!(matches!(again, Err(RunError::Omitted(_))), "{again:?}");
}

#[tokio::test]
async fn what_is_secret_is_not_sent_either() {
    let counted = Counted::new().await;
    let once = counted.once.clone().response_bytes_max(u32::MAX);
    let secret = op("run").secret();
    once.run(&counted.pool, &secret, async |_| Ok::<_, Failure>(large())).await.unwrap();
    counted.is_omitted(&secret, Status::Completed, None).await;
    let mut conn = PgConnection::connect_with(&counted.proxy.options()).await.unwrap();
    let claim =
        started(once.begin_leased(&counted.pool, &op("verb"), lasting(PATIENCE)).await.unwrap());
    let response = Response::bytes(large()).with_headers(large()).with_code(201).secret();
    claim.complete(&mut conn, response).await.unwrap();
    counted.is_omitted(&op("verb"), Status::Completed, Some(201)).await;
}

#[tokio::test]
async fn a_failure_that_is_kept_is_not_sent_when_it_is_too_large() {
    let counted = Counted::new().await;
    let fail = async |_: &mut PgConnection| {
        Err::<(), _>(Failure::keep(Response::bytes(large()).with_code(402)))
    };
    let failed = counted.once.run(&counted.pool, &op("run"), fail).await;
    let Err(RunError::Failed { response, .. }) = failed else { panic!("{failed:?}") };
    assert_eq!(response.body().len(), LARGE, "the caller gets it whole");
    counted.is_omitted(&op("run"), Status::Failed, Some(402)).await;
}

#[tokio::test]
async fn leased_work_does_not_send_it_either() {
    let counted = Counted::new().await;
    let lease = Lease::new(PATIENCE).unwrap();
    let run = counted
        .once
        .run_leased(&counted.pool, &op("plain"), lease, async |_: &mut Work| {
            Ok::<_, Failure>(large())
        })
        .await;
    run.unwrap();
    counted.is_omitted(&op("plain"), Status::Completed, None).await;
    let run = counted
        .once
        .run_leased(&counted.pool, &op("tx"), lease, async |work: &mut Work| {
            work.last_tx().await?;
            Ok::<_, Failure>(large())
        })
        .await;
    run.unwrap();
    counted.is_omitted(&op("tx"), Status::Completed, None).await;
    let run = counted
        .once
        .run_leased(&counted.pool, &op("failed"), lease, async |_: &mut Work| {
            Err::<(), _>(Failure::keep(Response::bytes(large())))
        })
        .await;
    assert!(matches!(run, Err(RunError::Failed { .. })));
    counted.is_omitted(&op("failed"), Status::Failed, None).await;
}

// More than PostgreSQL accepts in one message.
#[tokio::test]
async fn a_response_of_more_than_a_gigabyte_completes() {
    let counted = Counted::new().await;
    let mut conn = PgConnection::connect_with(&counted.proxy.options()).await.unwrap();
    let claim = started(
        counted.once.begin_leased(&counted.pool, &op("k"), lasting(PATIENCE)).await.unwrap(),
    );
    // Zeroed and never written, so it takes no memory.
    let response = Response::bytes(vec![0; 1_200_000_000]).with_code(200);
    claim.complete(&mut conn, response).await.unwrap();
    counted.is_omitted(&op("k"), Status::Completed, Some(200)).await;
}

// Headers and body count together. A response of exactly the limit fits.
#[tokio::test]
async fn what_fits_is_sent_and_kept() {
    let counted = Counted::new().await;
    let mut conn = counted.db.conn().await;
    for (headers, body, omitted) in
        [(500, 500, false), (500, 501, true), (0, 1000, false), (1001, 0, true)]
    {
        let op = op(&format!("{headers} {body}"));
        let claim = started(
            counted.once.begin_leased(&counted.pool, &op, lasting(PATIENCE)).await.unwrap(),
        );
        let response = Response::bytes(vec![b'b'; body]).with_headers(vec![b'h'; headers]);
        claim.complete(&mut conn, response.clone()).await.unwrap();
        let stored =
            counted.once.inspect(&mut conn, op.scope(), op.key()).await.unwrap().unwrap().response;
        assert_eq!((stored.is_omitted(), stored == response), (omitted, !omitted));
    }
}
