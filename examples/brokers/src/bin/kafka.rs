//! A consumer for Kafka. `KAFKA_BROKERS` has the address. The arguments are the topic, and settings of librdkafka such
//! as `session.timeout.ms=10000`.
//!
//! - Ids: the header `id`, set by the publisher. Without it: topic, partition and offset, which survive a redelivery,
//!   but not a publisher that sends twice.
//! - Redelivery: Kafka does not tell, so the inbox counts every attempt before it begins, with one more commit.
//! - Delays: Kafka has none. The message waits in this process while others pass it.
//! - Dead letters: Kafka has none. They go to a second topic, with the reason in a header.
//!
//! Kafka keeps one offset per partition: everything before it is done. This consumer handles messages of a partition
//! concurrently, in any order, and sets the offset before the oldest unfinished message. If you need their order,
//! handle a partition's messages one after the other, and let each wait for the previous one.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use anyhow::Context;
use brokers::AT_ONCE;
use pgonce::{Inbox, Message, Verdict};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message as _, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// The maximum of messages in this process, including those that wait for their turn or next attempt. If all of them
/// wait, everything behind them waits, until their attempts are used up at the latest.
const IN_FLIGHT: usize = 25 * AT_ONCE as usize;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let topic = brokers::queue();
    let pool = brokers::database().await?;
    let inbox = brokers::inbox(&topic)?;
    let mut config = ClientConfig::new();
    let brokers = std::env::var("KAFKA_BROKERS").unwrap_or_else(|_| "127.0.0.1:9092".to_owned());
    config.set("bootstrap.servers", brokers);
    let producer: FutureProducer = config.clone().set("enable.idempotence", "true").create()?;
    config
        .set("group.id", &topic)
        .set("auto.offset.reset", "earliest")
        // librdkafka commits from time to time the offsets that `store_offset` has stored: those of finished messages.
        // By default it would store the offset of every message that it delivers.
        .set("enable.auto.offset.store", "false")
        .set("auto.commit.interval.ms", "1000");
    for argument in std::env::args().skip(2) {
        let (name, value) = argument.split_once('=').context("a setting is name=value")?;
        config.set(name, value);
    }
    let consumer: StreamConsumer = config.create()?;
    consumer.subscribe(&[&topic])?;

    let at_once = Arc::new(Semaphore::new(AT_ONCE.into()));
    let mut partitions = HashMap::<i32, Partition>::new();
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            message = consumer.recv(), if tasks.len() < IN_FLIGHT => {
                let message = match message {
                    Ok(message) => message.detach(),
                    Err(error @ KafkaError::MessageConsumptionFatal(_)) => return Err(error.into()),
                    Err(error) => {
                        eprintln!("{error}"); // librdkafka recovers
                        continue;
                    }
                };
                partitions.entry(message.partition()).or_default().begin(message.offset());
                let at_once = Arc::clone(&at_once);
                tasks.spawn(handle(pool.clone(), inbox.clone(), at_once, producer.clone(), message));
            }
            Some(handled) = tasks.join_next() => {
                let (number, offset) = handled??;
                let partition = partitions.entry(number).or_default();
                if let Some(done) = partition.done(offset)
                    && let Err(error) = consumer.store_offset(&topic, number, done)
                {
                    // The partition was assigned to another consumer, which gets the message again.
                    eprintln!("partition {number}: {error}");
                }
            }
        }
    }
}

/// The messages of a partition that are in progress.
#[derive(Default)]
struct Partition {
    in_flight: BTreeSet<i64>,
    last: i64,
}

impl Partition {
    fn begin(&mut self, offset: i64) {
        self.in_flight.insert(offset);
        self.last = self.last.max(offset);
    }

    /// The last offset up to which everything is done, if any.
    fn done(&mut self, offset: i64) -> Option<i64> {
        self.in_flight.remove(&offset);
        let done = self.in_flight.first().map_or(self.last, |oldest| oldest - 1);
        (done >= 0).then_some(done)
    }
}

/// Returns partition and offset once the message is done or put aside.
async fn handle(
    pool: PgPool,
    inbox: Inbox,
    at_once: Arc<Semaphore>,
    producer: FutureProducer,
    delivery: OwnedMessage,
) -> anyhow::Result<(i32, i64)> {
    let (partition, offset) = (delivery.partition(), delivery.offset());
    let header = delivery.headers().and_then(|headers| {
        headers.iter().find(|header| header.key == "id").and_then(|header| header.value)
    });
    let id = match header {
        Some(id) => String::from_utf8_lossy(id).into_owned(),
        None => format!("{}/{partition}/{offset}", delivery.topic()),
    };
    let body = delivery.payload().unwrap_or_default();
    let message = Message::new(&id);
    loop {
        // A message needs a turn to be handled, not to wait. Begin only with a turn: a message that merely waits must
        // not count an attempt if this process dies.
        let turn = at_once.acquire().await?;
        let work = async |tx: &mut _| brokers::place_order(tx, &id, body).await;
        let handled = inbox.handle(&pool, &message, work).await;
        drop(turn);
        match handled.verdict {
            Verdict::Ack => return Ok((partition, offset)),
            Verdict::Retry(after) => tokio::time::sleep(after).await,
            Verdict::DeadLetter(reason) => {
                dead_letter(&producer, &delivery, &id, &reason).await?;
                return Ok((partition, offset));
            }
        }
    }
}

/// Puts the message into the dead-letter topic, and waits until the brokers confirm it.
async fn dead_letter(
    producer: &FutureProducer,
    delivery: &OwnedMessage,
    id: &str,
    reason: &str,
) -> anyhow::Result<()> {
    let topic = format!("{}.dead", delivery.topic());
    let headers = OwnedHeaders::new()
        .insert(Header { key: "id", value: Some(id) })
        .insert(Header { key: "reason", value: Some(reason) });
    let mut record = FutureRecord::<[u8], [u8]>::to(&topic).headers(headers);
    record.key = delivery.key();
    record.payload = delivery.payload();
    producer.send(record, Timeout::Never).await.map_err(|(error, _)| error)?;
    Ok(())
}
