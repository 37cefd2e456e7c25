//! A queue that delivers at least once, as a broker does: a message that is not acknowledged in time comes again. It
//! is a table, over its own connection, to keep the example small.

#![allow(dead_code, reason = "the old consumer has no pauses and no dead letters")]

use std::time::Duration;

use sqlx::{Connection, PgConnection};

pub(crate) const VISIBLE_AFTER: Duration = Duration::from_secs(2);

pub(crate) struct Queue(PgConnection);

#[derive(sqlx::FromRow)]
pub(crate) struct Delivery {
    pub(crate) message_id: String,
    pub(crate) cents: i64,
    /// 1 for the first.
    pub(crate) deliveries: i32,
}

impl Queue {
    pub(crate) async fn connect(url: &str) -> sqlx::Result<Self> {
        PgConnection::connect(url).await.map(Self)
    }

    /// Takes the next message, and hides it from other consumers for a while.
    pub(crate) async fn deliver(&mut self) -> sqlx::Result<Delivery> {
        let next =
            "update queue set deliveries = deliveries + 1, visible_at = clock_timestamp() + $1
                     where message_id = (select message_id from queue
                                          where visible_at <= clock_timestamp() and dead is null
                                          order by visible_at limit 1 for update skip locked)
                    returning message_id, cents, deliveries";
        loop {
            let next = sqlx::query_as(next).bind(VISIBLE_AFTER).fetch_optional(&mut self.0).await?;
            match next {
                Some(delivery) => return Ok(delivery),
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    pub(crate) async fn acknowledge(&mut self, of: &Delivery) -> sqlx::Result<()> {
        let delete = sqlx::query("delete from queue where message_id = $1").bind(&of.message_id);
        delete.execute(&mut self.0).await.map(drop)
    }

    pub(crate) async fn again_after(&mut self, of: &Delivery, pause: Duration) -> sqlx::Result<()> {
        let hide = "update queue set visible_at = clock_timestamp() + $2 where message_id = $1";
        let hide = sqlx::query(hide).bind(&of.message_id).bind(pause);
        hide.execute(&mut self.0).await.map(drop)
    }

    pub(crate) async fn dead_letter(&mut self, of: &Delivery, reason: &str) -> sqlx::Result<()> {
        let dead = sqlx::query("update queue set dead = $2 where message_id = $1");
        dead.bind(&of.message_id).bind(reason).execute(&mut self.0).await.map(drop)
    }
}
