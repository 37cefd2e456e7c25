//! Concurrent clients on the same keys.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use pgonce::{Done, Policy, RunError};
use sqlx::PgConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::process::PATIENCE;
use crate::stage::{Stage, effect, op};

pub const CLIENTS: usize = 8;
const KEYS: usize = 40;

#[derive(Debug, Default)]
pub struct Ends {
    performed: usize,
    replayed: usize,
    pub errors: BTreeMap<String, usize>,
}

/// Each client runs every key, in its own order, and waits for other callers. Fails if a key took effect twice.
pub async fn storm(stage: &Stage, options: &PgConnectOptions, name: &str) -> Ends {
    let seed = fastrand::u64(..);
    println!("{name}: seed {seed}");
    let together = Arc::new(Barrier::new(CLIENTS));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (once, name, together) = (stage.once.clone(), name.to_owned(), Arc::clone(&together));
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(PATIENCE);
        let pool = pool.connect_lazy_with(options.clone());
        clients.spawn(async move {
            // All at once, so that each client prepares its statements in another server session.
            let first = format!("{name} {client} alone");
            let apart = async |conn: &mut PgConnection| {
                together.wait().await;
                work(conn, &first, client).await
            };
            once.run(&pool, &op(&first), apart).await.expect("a session for each client");
            let mut keys: Vec<_> = (0..KEYS).map(|n| format!("{name} {n}")).collect();
            fastrand::Rng::with_seed(seed.wrapping_add(client as u64)).shuffle(&mut keys);
            let mut ends = Ends::default();
            for key in keys {
                let op = op(&key).policy(Policy::new().wait(PATIENCE / 2).unwrap());
                let ran = once.run(&pool, &op, async |conn: &mut _| work(conn, &key, client).await);
                ends.count(ran.await);
            }
            ends
        });
    }
    let ended = tokio::time::timeout(PATIENCE * 3, clients.join_all()).await;
    let ends = ended.expect("a storm that ends").into_iter().fold(Ends::default(), Ends::and);
    println!("{ends:?}");
    // Only this storm's keys: the work's own statement is swapped too, and then inserts another key.
    let doubles: Vec<String> = sqlx::query_scalar(
        "select key from effect where key like $1 || ' %' group by key having count(*) > 1",
    )
    .bind(name)
    .fetch_all(&stage.direct)
    .await
    .unwrap();
    assert!(doubles.is_empty(), "seed {seed}: twice: {doubles:?}");
    ends
}

/// Every second client adds a statement. It has the name that the other clients give to the key's INSERT, and takes and
/// returns the same types: a pooler that runs it instead of the INSERT gets no error.
async fn work(conn: &mut PgConnection, key: &str, client: usize) -> sqlx::Result<String> {
    let done = effect(conn, key).await?;
    if client % 2 == 1 {
        let (text, bytes) = ("another", b"another".as_slice());
        let like_the_insert = sqlx::query(
            "select 'another scope', 'another key'
               from (values ($1::text, $2::text, $3::bytea, $4::int8, $5::int2, $6::int4,
                             $7::bytea, $8::bytea, $9::bool, $10::bool, $11::int8)) v",
        );
        let query = like_the_insert.bind(text).bind(text).bind(bytes).bind(0_i64).bind(0_i16);
        let query =
            query.bind(0_i32).bind(bytes).bind(bytes).bind(true).bind(true).bind(None::<i64>);
        query.execute(conn).await?;
    }
    Ok(done)
}

impl Ends {
    fn count<E>(&mut self, ended: Result<Done<String>, RunError<E>>) {
        match ended {
            Ok(done) if done.is_replay() => self.replayed += 1,
            Ok(_) => self.performed += 1,
            Err(error) => {
                let cause = error.source().map(ToString::to_string).unwrap_or_default();
                *self.errors.entry(format!("{error}: {cause}")).or_default() += 1;
            }
        }
    }

    fn and(mut self, other: Self) -> Self {
        self.performed += other.performed;
        self.replayed += other.replayed;
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
        self
    }

    /// Checks that every call got an answer, and that the first call of each key performed it.
    pub fn are_all_answers(&self) {
        assert!(self.errors.is_empty(), "{self:?}");
        assert_eq!((self.performed, self.replayed), (KEYS, KEYS * (CLIENTS - 1)));
    }
}
