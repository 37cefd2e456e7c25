//! A consumer for NATS JetStream. `NATS_URL` has the address. The argument is the stream.
//!
//! - Ids: the header `Nats-Msg-Id`, by which JetStream also drops duplicates within its duplicate window. Without it:
//!   the message's number in the stream, which survives a redelivery, but not a publisher that sends twice.
//! - Redelivery: JetStream counts deliveries.
//! - Delays: per message.
//! - Dead letters: JetStream has none. They go to a second stream, with the reason in a header.

use std::time::Duration;

use anyhow::anyhow;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::stream::{self, RetentionPolicy};
use async_nats::jetstream::{self, AckKind, Context};
use brokers::AT_ONCE;
use futures_util::TryStreamExt;
use pgonce::{Inbox, Message, Verdict};
use sqlx::PgPool;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let queue = brokers::queue();
    let pool = brokers::database().await?;
    let inbox = brokers::inbox(&queue)?;
    let address = std::env::var("NATS_URL").unwrap_or_else(|_| "127.0.0.1:4222".to_owned());
    let jetstream = jetstream::new(async_nats::connect(address).await?);
    let stream = stream::Config {
        name: queue.clone(),
        subjects: vec![format!("{queue}.*")],
        retention: RetentionPolicy::WorkQueue, // acknowledged messages are deleted
        ..stream::Config::default()
    };
    let stream = jetstream.get_or_create_stream(stream).await?;
    let dead = stream::Config { name: dead_letters(&queue), ..stream::Config::default() };
    jetstream.get_or_create_stream(dead).await?;
    let consumer = pull::Config {
        durable_name: Some("consumer".to_owned()),
        // JetStream redelivers a message after this time, if its consumer has died, or is slow. The latter is harmless:
        // the inbox then says that the message is being handled.
        ack_wait: Duration::from_secs(30),
        // The inbox counts. After max_deliver deliveries, JetStream would silently stop delivering a message.
        max_deliver: -1,
        // Messages that wait for their next attempt count too. When this many wait, the others wait as well.
        max_ack_pending: 10_000,
        ..pull::Config::default()
    };
    let consumer: PullConsumer = stream.get_or_create_consumer("consumer", consumer).await?;
    consumer
        .stream()
        .max_messages_per_batch(AT_ONCE.into()) // time spent here unhandled counts toward ack_wait
        .messages()
        .await?
        .map_err(anyhow::Error::from)
        .try_for_each_concurrent(usize::from(AT_ONCE), |delivery| {
            handle(&pool, &inbox, &jetstream, &queue, delivery)
        })
        .await?;
    anyhow::bail!("JetStream has ended the subscription")
}

async fn handle(
    pool: &PgPool,
    inbox: &Inbox,
    jetstream: &Context,
    queue: &str,
    delivery: jetstream::Message,
) -> anyhow::Result<()> {
    let info = delivery.info().map_err(|error| anyhow!(error))?;
    let id = match delivery.headers.as_ref().and_then(|headers| headers.get(NATS_MESSAGE_ID)) {
        Some(id) => id.to_string(),
        None => format!("{}/{}", info.stream, info.stream_sequence),
    };
    let message = Message::new(&id).redelivered(info.delivered > 1);
    let work = async |tx: &mut _| brokers::place_order(tx, &id, &delivery.payload).await;
    let answer = match inbox.handle(pool, &message, work).await.verdict {
        Verdict::Ack => AckKind::Ack,
        Verdict::Retry(after) => AckKind::Nak(Some(after)),
        Verdict::DeadLetter(reason) => {
            let mut headers = delivery.headers.clone().unwrap_or_default();
            headers.insert(NATS_MESSAGE_ID, id.as_str()); // stored once, even if this line runs twice
            headers.insert("Reason", reason);
            let body = delivery.payload.clone();
            let published = jetstream.publish_with_headers(dead_letters(queue), headers, body);
            published.await?.await?; // the second wait is for the stream
            AckKind::Term
        }
    };
    delivery.ack_with(answer).await.map_err(|error| anyhow!(error))
}

fn dead_letters(queue: &str) -> String {
    format!("{queue}-dead")
}
