//! Keys, scopes, bodies and error texts stay out of logs and debug output.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgonce::{
    Begin, Failure, Filter, Fingerprint, FingerprintSecret, Inbox, Key, Lease, Listed, Message,
    Operation, Policy, Reaper, Recovery, Response, RunError, Step, UnfinishedFilter, Work,
};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tracing_subscriber::fmt::MakeWriter;

use crate::support::db::{TestDb, effect, lasting, server, started};

pub const CANARY: &str = "canary7f3a";

/// Everything logged in this process; `None` once the test has closed it.
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

    /// What this thread logs at this level and above, until the guard is dropped.
    pub fn of_thread(level: tracing::Level) -> (Self, tracing::subscriber::DefaultGuard) {
        // With a single subscriber, a log line that another test's thread reaches first is disabled for all, because
        // that thread has no subscriber. With two, all are asked.
        static SECOND: std::sync::OnceLock<tracing::Dispatch> = std::sync::OnceLock::new();
        SECOND.get_or_init(|| {
            tracing::Dispatch::new(
                tracing_subscriber::fmt()
                    .with_max_level(tracing::Level::TRACE)
                    .with_writer(std::io::sink)
                    .finish(),
            )
        });
        let log = Self::new();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_writer(log.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// Returns the log so far and stops logging.
    pub fn close(&self) -> String {
        let log = self.0.lock().unwrap().take().unwrap();
        String::from_utf8_lossy(&log).into_owned()
    }
}

/// Handles keys, bodies and errors in every way. Returns their `Debug` and `Display` output.
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
    show(&replay.parse_json::<u32>().unwrap_err());
    show(&Response::bytes(CANARY).with_headers(CANARY));
    show(
        &db.once
            .begin(&mut conn, &op.clone().fingerprint(Fingerprint::of_bytes("x")))
            .await
            .unwrap(),
    );
    let other = Operation::new(format!("scope {CANARY}"), format!("other {CANARY}")).unwrap();
    drop(started(
        db.once.begin_leased(&db.pool, &other, lasting(Duration::from_millis(1))).await.unwrap(),
    ));
    show(&db.once.inspect(&mut conn, other.scope(), other.key()).await.unwrap());
    show_failing_work(db, &mut show).await;
    // An error with the row in its DETAIL.
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

/// Closures that fail, each with a new key.
async fn show_failing_work(db: &TestDb, show: &mut impl FnMut(&dyn std::fmt::Debug)) {
    let op = |key: &str| Operation::new(format!("scope {CANARY}"), format!("{key} {CANARY}"));
    // The caller's text: `Debug` may show it; pgonce's `Display` and log must not.
    let telling = op("telling").unwrap();
    let error = db.once.run(&db.pool, &telling, async |_| Err::<u32, _>(CANARY)).await.unwrap_err();
    assert!(matches!(&error, RunError::Work { error: text, .. } if *text == CANARY));
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
    let RunError::Work { error: cause, .. } = &error else { panic!("{error}") };
    assert!(format!("{cause:?}").contains(&twice), "there is something to hide");
    show(&error);
    show(&format!("{error}"));
    let RunError::Work { error: cause, .. } = error else { unreachable!() };
    show(&Failure::from(cause));
    // A kept failure, then its replay.
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

/// Everything that commits by itself or runs in the background, and the operators' functions.
pub async fn exercise_the_rest(db: &TestDb) -> String {
    let mut shown = String::new();
    let mut show = |thing: &dyn std::fmt::Debug| shown.push_str(&format!("{thing:?}\n"));
    let op = |key: &str| {
        let op = Operation::new(format!("scope {CANARY}"), format!("{key} {CANARY}")).unwrap();
        op.fingerprint(Fingerprint::of_bytes(CANARY))
    };
    let lease = Lease::new(Duration::from_secs(60)).unwrap();
    // Leased work that ends in every way, and continues with its steps.
    let (work_op, kept_op) = (op("work"), op("work kept"));
    for end in ["fails", "ends", "replayed"] {
        let run = db.once.run_leased(&db.pool, &work_op, lease, async |work: &mut Work| {
            let step = Step::new(format!("step {CANARY}")).made_from(CANARY)?;
            work.step(step, async || Ok::<_, Failure>(CANARY.to_owned())).await?;
            work.step_tx(format!("tx {CANARY}").as_str(), async |tx| {
                effect(tx, &db.schema, &format!("{end} {CANARY}")).await.map(|_| CANARY.to_owned())
            })
            .await?;
            work.progress(CANARY).await?;
            effect(work.last_tx().await?, &db.schema, &format!("last {end} {CANARY}")).await?;
            if end == "fails" { Err(Failure::from(CANARY)) } else { Ok(CANARY.to_owned()) }
        });
        match run.await {
            Ok(done) => show(&done.is_replay()),
            Err(error) => show(&error.to_string()),
        }
    }
    let kept = db.once.run_leased(&db.pool, &kept_op, lease, async |_: &mut Work| {
        Err::<u32, _>(Failure::keep(Response::bytes(CANARY).with_headers(CANARY)))
    });
    show(&kept.await.unwrap_err());
    for (key, end) in [("done", 0), ("failed", 1), ("released", 2)] {
        let begun =
            db.once.begin_leased(&db.pool, &op(key), lasting(Duration::from_secs(60))).await;
        let mut claim = started(begun.unwrap());
        show(&claim);
        claim.extend(&db.pool, lasting(Duration::from_secs(90))).await.unwrap();
        let response = Response::bytes(CANARY).with_headers(CANARY);
        match end {
            0 => claim.complete_leased(&db.pool, response).await,
            1 => claim.fail_leased(&db.pool, response).await,
            _ => claim.release_leased(&db.pool).await,
        }
        .unwrap();
    }
    show_inbox(db, &mut show).await;
    let abandoned = op("abandoned");
    let short = Duration::from_millis(1);
    drop(started(db.once.begin_leased(&db.pool, &abandoned, lasting(short)).await.unwrap()));
    let recovery = Recovery::new(&db.once, &format!("scope {CANARY}%")).unwrap();
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    let tell = Mutex::new(Some(tell));
    let handler = |_: Listed| {
        drop(tell.lock().unwrap().take());
        async { Err::<(), _>(CANARY) }
    };
    let recovery = recovery.interval(Duration::from_millis(1)).unwrap();
    show(&recovery.run_until(db.pool.clone(), handler, told).await);
    let mut conn = db.conn().await;
    show(&db.once.list(&mut conn, &Filter::default(), 9).await.unwrap().len());
    show(&db.once.abandoned(&mut conn, 9).await.unwrap().len());
    show(&db.once.status(&mut conn, abandoned.scope(), abandoned.key()).await);
    let seen = db.seen(&abandoned).await;
    let mut tx = conn.begin().await.unwrap();
    let taken = db.once.take_over_claim(&mut tx, abandoned.scope(), abandoned.key(), &seen).await;
    let (_, claim) = (show(&taken.is_ok()), taken.unwrap());
    claim.release(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    let _ = db.once.revoke_claim(&mut conn, abandoned.scope(), abandoned.key(), &seen).await;
    Reaper::new(&db.once).run_until(db.pool.clone(), std::future::ready(())).await;
    db.once.reap_once(&mut conn, 10).await.unwrap();
    shown
}

/// Messages that are handled, fail and die.
async fn show_inbox(db: &TestDb, show: &mut impl FnMut(&dyn std::fmt::Debug)) {
    let inbox = Inbox::new(&db.once, format!("consumer {CANARY}"))
        .unwrap()
        .policy(Policy::inbox().max_attempts(1).unwrap())
        .unwrap();
    for (id, fails) in [("good", false), ("good", false), ("bad", true), ("bad", true)] {
        let message = Message::new(format!("{id} {CANARY}")).redelivered(true);
        let handled = inbox.handle(&db.pool, &message, async |tx: &mut PgConnection| {
            effect(tx, &db.schema, &format!("{id} {CANARY}")).await?;
            if fails { Err(Failure::from(CANARY)) } else { Ok(CANARY.to_owned()) }
        });
        show(&handled.await.verdict);
    }
    let first = Message::new(format!("first {CANARY}")).redelivered(false);
    let work = async |_: &mut PgConnection| Ok::<_, Failure>(CANARY.to_owned());
    show(&inbox.handle(&db.pool, &first, work).await.verdict);
    let mut tx = db.pool.begin().await.unwrap();
    show(&inbox.receive(&mut tx, &format!("received {CANARY}")).await.unwrap());
    tx.commit().await.unwrap();
    // Error texts are kept for operators; their authors must keep them clean.
    show(&inbox.failed(&db.pool, &format!("bad {CANARY}"), "clean").await.is_ok());
    let dead = Operation::new(format!("consumer {CANARY}"), format!("bad {CANARY}")).unwrap();
    let seen = db.seen(&dead).await;
    let mut conn = db.conn().await;
    let consumers = db.once.consumers(&mut conn).await.unwrap();
    let scopes = db.once.scopes(&mut conn, None, None, 9).await.unwrap();
    assert!(!consumers.is_empty() && !scopes.is_empty());
    show(&(consumers, scopes));
    show(&db.once.unfinished(&mut conn, &UnfinishedFilter::default(), 9).await.unwrap());
    inbox.redrive(&mut conn, dead.key().as_str(), &seen).await.unwrap();
}

/// A line that contains the canary as hex digits of its bytes.
pub fn with_digits(logged: &str) -> Option<&str> {
    let digits: String = CANARY.bytes().map(|byte| format!("{byte:02x}")).collect();
    logged.lines().find(|line| line.replace(['\\', 'x'], "").contains(&digits))
}

/// A schema on which the driver logs every statement as slow.
async fn slow(name: &str) -> TestDb {
    let options = server().await.connect_options();
    let options = options.log_slow_statements("warn".parse().unwrap(), Duration::ZERO);
    TestDb::create(name, options, 10).await
}

#[tokio::test]
async fn nothing_secret_is_logged_or_shown() {
    let log = Log::new();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    // For the whole process: with a subscriber only for this thread, other tests' threads could disable the driver's
    // log statements before this thread reaches them.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    #[allow(unused_mut, reason = "without the HTTP layer")]
    let mut shown = String::new();
    // With the driver's default logging, and with slow statements logged.
    for db in [TestDb::new().await, slow("secrets_slow").await] {
        shown.push_str(&exercise_the_rest(&db).await);
        shown.push_str(&exercise(&db).await);
    }
    // Traps 61, 67.
    for db in [TestDb::new().await, slow("secrets_slow_web").await] {
        shown.push_str(&crate::web::secrets::exercise(&db, CANARY).await);
    }
    let logged = log.close();
    assert!(logged.contains("claim dropped unfinished"), "the log was captured: {logged}");
    for level in ["DEBUG sqlx::query", "WARN sqlx::query"] {
        let is_call = |line: &str| line.contains(level) && line.contains(".begin_leased(");
        assert!(logged.lines().any(is_call), "down to the driver's statements: {level}");
    }
    assert!(logged.contains("slow statement"), "and to its slow ones");
    assert_eq!(with_digits(&logged), None, "a value is part of a statement's text");
    // As a derived `Debug` would show its bytes.
    let bytes = format!("{:?}", CANARY.as_bytes());
    let bytes = bytes.trim_matches(['[', ']']);
    for (place, text) in [("log", &logged), ("debug output", &shown)] {
        let leak = text.lines().find(|line| line.contains(CANARY) || line.contains(bytes));
        assert_eq!(leak, None, "leaked into the {place}");
    }
}
