//! From a lock and cached responses in Redis.

use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use crate::database::{Database, PATIENCE};
use crate::process::{Process, free_ports, installed};
use crate::service::Service;
use crate::storm;

const SCHEMA: &str = include_str!("../../redis-lock/schema.sql");
const BEFORE: &str = "redis-lock-before";
const BOTH: &str = "redis-lock-both";
const AFTER: &str = "redis-lock-after";

/// A Redis of its own. It ends when this is dropped.
struct Redis {
    url: String,
    connection: MultiplexedConnection,
    _process: Process,
}

impl Redis {
    async fn start() -> Self {
        let place = installed(&["/usr/bin/redis-server"], "redis-server");
        let [port] = free_ports();
        let port = port.to_string();
        let arguments =
            ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        let mut process = Process::start(place, &arguments, []);
        let url = format!("redis://127.0.0.1:{port}");
        let client = redis::Client::open(url.clone()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let connection = loop {
            match client.get_multiplexed_async_connection().await {
                Ok(connection) => break connection,
                Err(error) => assert!(Instant::now() < deadline, "Redis does not start: {error}"),
            }
            process.must_run();
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        };
        Self { url, connection, _process: process }
    }

    async fn send(&self, command: &str) {
        let mut words = command.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        command.query_async::<redis::Value>(&mut self.connection.clone()).await.unwrap();
    }

    /// Waits until the killed program's connection is gone.
    async fn until_alone(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let list = redis::cmd("CLIENT").arg("LIST").to_owned();
            let list: String = list.query_async(&mut self.connection.clone()).await.unwrap();
            if list.lines().count() == 1 {
                return;
            }
            assert!(Instant::now() < deadline, "{list}");
        }
    }

    /// As if the time of all locks were over. Kept responses stay.
    async fn let_locks_expire(&self) {
        let script = "for _, key in ipairs(redis.call('KEYS', '*')) do
                        if redis.call('GET', key) == 'running' then redis.call('DEL', key) end
                      end";
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(0);
        command.query_async::<()>(&mut self.connection.clone()).await.unwrap();
    }

    fn environment(&self) -> [(&'static str, String); 1] {
        [("REDIS_URL", self.url.clone())]
    }
}

/// Kills the program between the payment's commit and the response in Redis, and pays again. Returns the payments.
async fn killed_before_the_response_is_kept(program: &str) -> i64 {
    let (db, redis) = (Database::new(SCHEMA).await, Redis::start().await);
    let service = Service::start(program, &db, &redis.environment()).await;
    let held = db.hold_payments().await;
    let paying = service.paying("a", 1);
    db.until_waiting(1).await;
    redis.send("CLIENT PAUSE 60000 WRITE").await;
    drop(held);
    db.until("select count(*) from payment", 1).await;
    if program == AFTER {
        assert_eq!(paying.await.unwrap().status, 201, "it needs no Redis");
    } else {
        paying.abort();
    }
    service.kill();
    redis.until_alone().await;
    redis.send("CLIENT UNPAUSE").await;
    redis.let_locks_expire().await;
    let service = Service::start(program, &db, &redis.environment()).await;
    assert_eq!(service.pay("a", 1).await.status, 201);
    db.payments().await
}

#[tokio::test]
async fn before_pays_twice_when_killed_between_payment_and_response() {
    assert_eq!(killed_before_the_response_is_kept(BEFORE).await, 2);
}

#[tokio::test]
async fn after_pays_once_when_killed_between_payment_and_response() {
    assert_eq!(killed_before_the_response_is_kept(AFTER).await, 1);
}

/// The work takes longer than the lock.
async fn lock_expires_during_the_work(program: &str) -> i64 {
    let (db, redis) = (Database::new(SCHEMA).await, Redis::start().await);
    let service = Service::start(program, &db, &redis.environment()).await;
    let held = db.hold_payments().await;
    let first = service.paying("a", 1);
    db.until_waiting(1).await;
    redis.let_locks_expire().await;
    let second = service.paying("a", 1);
    if program == BEFORE {
        db.until_waiting(2).await;
        drop(held);
        assert_eq!(second.await.unwrap().status, 201);
    } else {
        assert_eq!(second.await.unwrap().status, 409);
        drop(held);
    }
    assert_eq!(first.await.unwrap().status, 201);
    db.payments().await
}

#[tokio::test]
async fn before_pays_twice_when_the_work_outlasts_the_lock() {
    assert_eq!(lock_expires_during_the_work(BEFORE).await, 2);
}

#[tokio::test]
async fn after_pays_once_however_long_the_work_takes() {
    assert_eq!(lock_expires_during_the_work(AFTER).await, 1);
}

/// As after an eviction, or a failover to a replica that lags.
async fn redis_forgets(program: &str) -> i64 {
    let (db, redis) = (Database::new(SCHEMA).await, Redis::start().await);
    let service = Service::start(program, &db, &redis.environment()).await;
    let first = service.pay("a", 1).await;
    assert_eq!(service.pay("a", 1).await, first, "the ordinary retry");
    redis.send("FLUSHALL").await;
    assert_eq!(service.pay("a", 1).await.status, 201);
    db.payments().await
}

#[tokio::test]
async fn before_pays_twice_when_redis_forgets() {
    assert_eq!(redis_forgets(BEFORE).await, 2);
}

#[tokio::test]
async fn after_pays_once_when_redis_forgets() {
    assert_eq!(redis_forgets(AFTER).await, 1);
}

#[tokio::test]
async fn after_pays_once_under_kills() {
    storm::pays_once(AFTER, &Database::new(SCHEMA).await, &[]).await;
}

#[tokio::test]
async fn both_pays_once_under_kills_when_it_is_switched_on() {
    let (db, redis) = (Database::new(SCHEMA).await, Redis::start().await);
    db.pgonce(&["mode", "/payments", "optional"]).await;
    let after_kill = async || redis.let_locks_expire().await;
    storm::pays_once_and(BOTH, &db, &redis.environment(), after_kill).await;
}

#[tokio::test]
async fn old_and_new_processes_share_redis_and_the_switch_forgets_no_key() {
    let (db, redis) = (Database::new(SCHEMA).await, Redis::start().await);
    let old = Service::start(BEFORE, &db, &redis.environment()).await;
    let new = Service::start(BOTH, &db, &redis.environment()).await;
    let a = old.pay("a", 1).await;
    assert_eq!(new.pay("a", 1).await, a);
    let b = new.pay("b", 2).await;
    assert_eq!(old.pay("b", 2).await, b, "also the way back to the old program");
    old.kill();
    new.kill();

    // b is known to pgonce though it was paid in the mode observe; a only to Redis, until its day is over.
    db.pgonce(&["mode", "/payments", "optional"]).await;
    let both = Service::start(BOTH, &db, &redis.environment()).await;
    assert_eq!(both.pay("a", 1).await, a);
    redis.send("FLUSHALL").await;
    assert_eq!(both.pay("b", 2).await, b);
    let after = Service::start(AFTER, &db, &[]).await;
    assert_eq!(after.pay("b", 2).await, b);
    assert_eq!(after.pay("b", 3).await.status, 422);
    let c = after.pay("c", 3).await;
    assert_eq!(both.pay("c", 3).await, c, "the way back");
    assert_eq!(db.payments().await, 3);
}
