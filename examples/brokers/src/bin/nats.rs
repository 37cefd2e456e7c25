//! A consumer of NATS JetStream. `NATS_URL` says where it is; the argument is the stream.
//!
//! - Ids: the header `Nats-Msg-Id`, by which JetStream also drops what is published twice within its duplicate
//!   window; without it the message's number in the stream, which survives redelivery but no publisher that
//!   sends twice.
//! - Redelivery: JetStream counts deliveries.
//! - Delays: it has them, per message.
//! - Dead letters: it has none. They go to a stream beside the first one, with the reason in a header.

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
        retention: RetentionPolicy::WorkQueue, // what is acknowledged is gone
        ..stream::Config::default()
    };
    let stream = jetstream.get_or_create_stream(stream).await?;
    let dead = stream::Config { name: dead_letters(&queue), ..stream::Config::default() };
    jetstream.get_or_create_stream(dead).await?;
    let consumer = pull::Config {
        durable_name: Some("consumer".to_owned()),
        // When a consumer has died, its messages are delivered again after this time; and also when it takes
        // longer over one, which does no harm, because then the inbox says that it is being handled.
        ack_wait: Duration::from_secs(30),
        // The inbox counts. After max_deliver JetStream would let a message lie, and tell nobody.
        max_deliver: -1,
        // Messages that wait for their next attempt count: so many may wait before the others do.
        max_ack_pending: 10_000,
        ..pull::Config::default()
    };
    let consumer: PullConsumer = stream.get_or_create_consumer("consumer", consumer).await?;
    consumer
        .stream()
        .max_messages_per_batch(AT_ONCE.into()) // what lies here unhandled uses up its ack_wait
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
            headers.insert(NATS_MESSAGE_ID, id.as_str()); // once there, also if this line runs twice
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
