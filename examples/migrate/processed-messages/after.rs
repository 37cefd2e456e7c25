//! Takes orders from a queue. pgonce stores message and order in one transaction.

use std::env;
use std::future::pending;
use std::time::Duration;

use pgonce::{Inbox, Lease, Message, PgOnce, Policy, Reaper, Verdict};
use sqlx::{PgConnection, PgPool};

use crate::queue::{Delivery, Queue, VISIBLE_AFTER};

mod queue;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = env::var("DATABASE_URL")?;
    let pool = PgPool::connect(&url).await?;
    sqlx::raw_sql(include_str!("schema.sql")).execute(&pool).await?;
    let once = PgOnce::new();
    let (reaper, reapers_pool) = (Reaper::new(&once), pool.clone());
    tokio::spawn(async move { reaper.run_until(reapers_pool, pending::<()>()).await });
    let policy = Policy::inbox().retention(Duration::from_secs(15 * 86_400))?;
    let inbox = Inbox::new(&once, "orders")?.policy(policy)?.lease(Lease::new(VISIBLE_AFTER)?)?;
    let inbox = inbox.outlasts(Duration::from_secs(14 * 86_400))?; // the broker's longest time
    let mut queue = Queue::connect(&url).await?;
    println!("ready");
    loop {
        let delivery = queue.deliver().await?;
        let message = Message::new(&delivery.message_id).redelivered(delivery.deliveries > 1);
        let handled =
            inbox.handle(&pool, &message, async |tx| place_order(tx, &delivery).await).await;
        if let (Err(error), Verdict::Retry(_)) = (&handled.result, &handled.verdict) {
            eprintln!("{}: {error}", delivery.message_id);
        }
        match handled.verdict {
            Verdict::Ack => queue.acknowledge(&delivery).await?,
            Verdict::Retry(pause) => queue.again_after(&delivery, pause).await?,
            Verdict::DeadLetter(reason) => queue.dead_letter(&delivery, &reason).await?,
        }
    }
}

async fn place_order(tx: &mut PgConnection, delivery: &Delivery) -> sqlx::Result<()> {
    let insert = "insert into orders (message_id, cents) values ($1, $2)";
    let insert = sqlx::query(insert).bind(&delivery.message_id).bind(delivery.cents);
    insert.execute(tx).await.map(drop)
}
