//! Takes orders from a queue. A table has the messages that were processed.

use std::env;

use sqlx::{PgConnection, PgPool};

use crate::queue::{Delivery, Queue};

mod queue;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = env::var("DATABASE_URL")?;
    let pool = PgPool::connect(&url).await?;
    sqlx::raw_sql(include_str!("schema.sql")).execute(&pool).await?;
    let mut queue = Queue::connect(&url).await?;
    println!("ready");
    loop {
        let delivery = queue.deliver().await?;
        match handle(&pool, &delivery).await {
            Ok(()) => queue.acknowledge(&delivery).await?,
            Err(error) => eprintln!("{}: {error}", delivery.message_id), // it comes again
        }
    }
}

async fn handle(pool: &PgPool, delivery: &Delivery) -> sqlx::Result<()> {
    let look = "select exists (select from processed_messages where message_id = $1)";
    let look = sqlx::query_scalar(look).bind(&delivery.message_id);
    if look.fetch_one(pool).await? {
        return Ok(());
    }
    let mut tx = pool.begin().await?;
    place_order(&mut tx, delivery).await?;
    tx.commit().await?;
    let note = "insert into processed_messages (message_id) values ($1) on conflict do nothing";
    sqlx::query(note).bind(&delivery.message_id).execute(pool).await.map(drop)
}

async fn place_order(tx: &mut PgConnection, delivery: &Delivery) -> sqlx::Result<()> {
    let insert = "insert into orders (message_id, cents) values ($1, $2)";
    let insert = sqlx::query(insert).bind(&delivery.message_id).bind(delivery.cents);
    insert.execute(tx).await.map(drop)
}
