//! Keys, scopes, bodies and error texts stay out of logs and debug output.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgonce::{
    Begin, Failure, Fingerprint, FingerprintSecret, Key, Operation, Reaper, Response, RunError,
};
use sqlx::PgConnection;
use tracing_subscriber::fmt::MakeWriter;

use crate::harness::{TestDb, effect, started};

const CANARY: &str = "canary7f3a";

/// What has been logged by anybody in this process; `None` once the test has seen enough.
#[derive(Clone)]
pub struct Log(Arc<Mutex<Option<Vec<u8>>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(log) = self.0.lock().unwrap().as_mut() {
            log.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Log {
    type Writer = Self;
    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

impl Log {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(Vec::new()))))
    }

    /// What this thread logs at this level and above, while the guard is there.
    pub fn of_thread(level: tracing::Level) -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::new();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_writer(log.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// The log so far; nothing is kept from now on.
    pub fn close(&self) -> String {
        let log = self.0.lock().unwrap().take().unwrap();
        String::from_utf8_lossy(&log).into_owned()
    }
}

/// Everything that handles a key, a body or an error; returns what `Debug` and `Display` show of it.
async fn exercise(db: &TestDb) -> String {
    let mut shown = String::new();
    let mut show = |thing: &dyn std::fmt::Debug| shown.push_str(&format!("{thing:?}\n"));
    let key = format!("key {CANARY}");
    let op = Operation::new(format!("scope {CANARY}"), key.as_str())
        .unwrap()
        .fingerprint(Fingerprint::of_bytes(CANARY));
    show(&op);
    show(&Key::new(key.as_str()).unwrap());
    show(&FingerprintSecret::new(format!("secret {CANARY}")).unwrap());
    show(&Key::new(format!("{CANARY}\n")).unwrap_err());
    show(
        &db.once
            .run(&db.pool, &op, async |tx| {
                effect(tx, &db.schema, CANARY).await.map(|_| CANARY.to_owned())
            })
            .await
            .map(|done| done.is_replay()),
    );
    show(&db.once.run(&db.pool, &op, async |_| Ok::<u32, Failure>(1)).await.unwrap_err());
    let mut conn = db.conn().await;
    let Begin::Replay(replay) = db.once.begin(&mut conn, &op).await.unwrap() else { panic!() };
    show(&replay);
    show(&replay.json::<u32>().unwrap_err());
    show(&Response::bytes(CANARY).with_headers(CANARY));
    show(
        &db.once
            .begin(&mut conn, &op.clone().fingerprint(Fingerprint::of_bytes("x")))
            .await
            .unwrap(),
    );
    let other = Operation::new(format!("scope {CANARY}"), format!("other {CANARY}")).unwrap();
    drop(started(db.once.begin_leased(&db.pool, &other, Duration::from_millis(1)).await.unwrap()));
    show(&db.once.inspect(&mut conn, other.scope(), other.key()).await.unwrap());
    show_failing_work(db, &mut show).await;
    // An error that carries the row in its DETAIL.
    db.execute(
        "alter table {}.idempotency_keys add constraint strict check (status > 3) not valid",
    )
    .await;
    let refused = Operation::new(format!("scope {CANARY}"), format!("refused {CANARY}")).unwrap();
    let error = db.once.begin(&mut conn, &refused).await.unwrap_err();
    show(&error);
    show(&format!("{error}"));
    let error = db.once.run(&db.pool, &refused, async |_| Ok::<u32, Failure>(1)).await.unwrap_err();
    show(&error);
    show(&format!("{error}"));
    let _ = Reaper::new(&db.once).pass(&mut conn).await.unwrap();
    shown
}

/// Closures that run and fail, each on a fresh key.
async fn show_failing_work(db: &TestDb, show: &mut impl FnMut(&dyn std::fmt::Debug)) {
    let op = |key: &str| Operation::new(format!("scope {CANARY}"), format!("{key} {CANARY}"));
    // The text is the caller's: `Debug` may show it, our `Display` and our log may not.
    let telling = op("telling").unwrap();
    let error = db.once.run(&db.pool, &telling, async |_| Err::<u32, _>(CANARY)).await.unwrap_err();
    assert!(matches!(&error, RunError::Work(text) if text.to_string() == CANARY));
    show(&format!("{error}"));
    // The driver's error, whose DETAIL quotes the row.
    db.execute("create unique index on {}.effect (key)").await;
    let twice = format!("twice {CANARY}");
    let error = db
        .once
        .run(&db.pool, &op("twice").unwrap(), async |tx| {
            effect(tx, &db.schema, &twice).await?;
            effect(tx, &db.schema, &twice).await
        })
        .await
        .unwrap_err();
    let RunError::Work(cause) = &error else { panic!("{error}") };
    assert!(format!("{cause:?}").contains(&twice), "there is something to hide");
    show(&error);
    show(&format!("{error}"));
    let RunError::Work(cause) = error else { unreachable!() };
    show(&Failure::from(cause));
    // A failure that is kept, and then replayed.
    show(&Failure::keep(Response::bytes(CANARY).with_headers(CANARY)));
    let kept = op("kept").unwrap();
    for _ in ["performed", "replayed"] {
        let work = async |_: &mut PgConnection| {
            Err::<u32, _>(Failure::keep(Response::bytes(CANARY).with_headers(CANARY)))
        };
        let error = db.once.run(&db.pool, &kept, work).await.unwrap_err();
        assert!(matches!(&error, RunError::Failed { .. }));
        show(&error);
        show(&format!("{error}"));
    }
}

#[tokio::test]
async fn nothing_secret_is_logged_or_shown() {
    let log = Log::new();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .finish();
    // For the whole process: with a subscriber for this thread only, other tests' threads could
    // switch the driver's log statements off before this one reaches them.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    #[allow(unused_mut, reason = "without the HTTP layer")]
    let mut shown = exercise(&TestDb::new().await).await;
    // Traps 61, 67.
    #[cfg(feature = "axum")]
    shown.push_str(&crate::web::secrets::exercise(&TestDb::new().await, CANARY).await);
    let logged = log.close();
    assert!(logged.contains("claim dropped unfinished"), "the log was captured: {logged}");
    assert!(logged.contains(".begin_leased("), "down to the driver's statements");
    // As a derived `Debug` of its bytes would show it.
    let bytes = format!("{:?}", CANARY.as_bytes());
    let bytes = bytes.trim_matches(['[', ']']);
    for (place, text) in [("log", &logged), ("debug output", &shown)] {
        let leak = text.lines().find(|line| line.contains(CANARY) || line.contains(bytes));
        assert_eq!(leak, None, "leaked into the {place}");
    }
}
