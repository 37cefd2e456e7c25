//! A consumer for RabbitMQ. `AMQP_URL` has the address. The argument is the queue.
//!
//! - Ids: `message_id`, set by the publisher. RabbitMQ sets none, so a message without one is dead.
//! - Redelivery: RabbitMQ says so if a consumer had the message and did not acknowledge it. A message from a delay
//!   queue is a copy, which RabbitMQ calls new; the header `x-death` shows that it is one.
//! - Delays: RabbitMQ has none. The message goes to a queue whose messages expire into the main queue.
//! - Dead letters: a second queue, with the reason in a header. RabbitMQ's own dead-lettering (`reject`) cannot carry
//!   the reason.
//!
//! If the broker goes away, the program ends, and a supervisor must restart it.

use std::time::Duration;

use anyhow::ensure;
use brokers::AT_ONCE;
use futures_util::TryStreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use pgonce::{Inbox, Message, Verdict};
use sqlx::PgPool;

/// In milliseconds, powers of two. The longest is at least the inbox's longest pause.
const SHORTEST_DELAY: u32 = 256;
const LONGEST_DELAY: u32 = 65_536;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let queue = brokers::queue();
    let pool = brokers::database().await?;
    let inbox = brokers::inbox(&queue)?;
    let address = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://127.0.0.1:5672".to_owned());
    let connection = Connection::connect(&address, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    // Without confirmations, a copy could be lost after its original was acknowledged.
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    // How many unacknowledged messages the broker sends, and so how many are handled at once.
    channel.basic_qos(AT_ONCE, BasicQosOptions::default()).await?;
    let durable = QueueDeclareOptions::durable();
    for name in [queue.clone(), dead_letters(&queue)] {
        channel.queue_declare(name.into(), durable, FieldTable::default()).await?;
    }
    declare_delay_queues(&channel, &queue).await?;
    let none = FieldTable::default();
    channel
        .basic_consume(queue.as_str().into(), "".into(), BasicConsumeOptions::default(), none)
        .await?
        .map_err(anyhow::Error::from)
        .try_for_each_concurrent(None, |delivery| handle(&pool, &inbox, &channel, &queue, delivery))
        .await?;
    anyhow::bail!("RabbitMQ has ended the subscription")
}

async fn handle(
    pool: &PgPool,
    inbox: &Inbox,
    channel: &Channel,
    queue: &str,
    delivery: Delivery,
) -> anyhow::Result<()> {
    let id = delivery.properties.message_id().as_ref().map_or("", ShortString::as_str);
    let message = Message::new(id).redelivered(delivery.redelivered || has_waited(&delivery));
    let body = delivery.data.as_slice();
    let work = async |tx: &mut _| brokers::place_order(tx, id, body).await;
    match inbox.handle(pool, &message, work).await.verdict {
        Verdict::Ack => {}
        Verdict::Retry(after) => {
            copy(channel, delay_queue(queue, after), &delivery, None).await?;
        }
        Verdict::DeadLetter(reason) => {
            copy(channel, dead_letters(queue), &delivery, Some(reason)).await?;
        }
    }
    // If the message could not be handled, another queue has a copy by now. If the process dies before this line, both
    // remain; the inbox treats them as one message.
    delivery.ack(BasicAckOptions::default()).await?;
    Ok(())
}

/// Whether the message comes from a delay queue. RabbitMQ calls that copy new; only this header tells.
fn has_waited(delivery: &Delivery) -> bool {
    let headers = delivery.properties.headers().as_ref();
    headers.is_some_and(|headers| headers.contains_key("x-death"))
}

fn dead_letters(queue: &str) -> String {
    format!("{queue}.dead")
}

/// Queues whose messages return to the main queue after a time. One queue per power of two milliseconds: only the head
/// of a queue expires, so a long wait would block a short one behind it.
async fn declare_delay_queues(channel: &Channel, queue: &str) -> anyhow::Result<()> {
    let mut milliseconds = SHORTEST_DELAY;
    while milliseconds <= LONGEST_DELAY {
        let mut arguments = FieldTable::default();
        arguments.insert("x-message-ttl".into(), AMQPValue::LongUInt(milliseconds));
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
        arguments.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString(queue.into()));
        let name = format!("{queue}.retry.{milliseconds}").into();
        channel.queue_declare(name, QueueDeclareOptions::durable(), arguments).await?;
        milliseconds *= 2;
    }
    Ok(())
}

fn delay_queue(queue: &str, after: Duration) -> String {
    let longest = Duration::from_millis(LONGEST_DELAY.into());
    let milliseconds = u32::try_from(after.min(longest).as_millis()).unwrap_or(LONGEST_DELAY);
    format!("{queue}.retry.{}", milliseconds.next_power_of_two().max(SHORTEST_DELAY))
}

/// Puts the message into another queue, and waits until the broker confirms it.
async fn copy(
    channel: &Channel,
    queue: String,
    delivery: &Delivery,
    reason: Option<String>,
) -> anyhow::Result<()> {
    let mut headers = delivery.properties.headers().clone().unwrap_or_default();
    if let Some(reason) = reason {
        headers.insert("reason".into(), AMQPValue::LongString(reason.into()));
    }
    // Without its expiration: the copy must not expire there.
    let mut properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    if let Some(id) = delivery.properties.message_id() {
        properties = properties.with_message_id(id.clone());
    }
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let confirmation = channel
        .basic_publish("".into(), queue.into(), options, &delivery.data, properties)
        .await?
        .await?;
    ensure!(confirmation == Confirmation::Ack(None), "RabbitMQ did not take the copy");
    Ok(())
}
