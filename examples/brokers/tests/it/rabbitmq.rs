//! RabbitMQ from Debian's package, on its own ports with its own data.

use std::collections::HashSet;

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Queue};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::database::{Database, PATIENCE};
use crate::kills::{self, Broker};
use crate::poison;
use crate::process::{Process, free_ports, installed};

struct RabbitMq {
    queue: &'static str,
    url: &'static str,
    connection: Connection,
    published: Vec<String>,
    dead: Vec<(String, String)>,
}

/// The server of all tests; it ends with this process. Returns its URL.
async fn server() -> &'static str {
    static SERVER: OnceCell<(Process, String)> = OnceCell::const_new();
    let start = async || {
        let place = "/usr/lib/rabbitmq/bin/rabbitmq-server"; // the one in /usr/sbin changes the user
        installed(&[place], "rabbitmq-server");
        let [amqp, distribution, epmd] = free_ports();
        let environment = [
            ("RABBITMQ_NODENAME", format!("pgonce-{amqp}@localhost")),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODE_PORT", amqp.to_string()),
            ("RABBITMQ_DIST_PORT", distribution.to_string()),
            ("ERL_EPMD_PORT", epmd.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
        ];
        // In the foreground: as a daemon, epmd would leave the session and outlive it. Without the settings and plugins
        // of the machine's own server.
        let script = r#"
            export RABBITMQ_MNESIA_BASE=$PWD/data RABBITMQ_LOG_BASE=$PWD RABBITMQ_LOGS=-
            export RABBITMQ_CONF_ENV_FILE=/dev/null RABBITMQ_CONFIG_FILE=$PWD/none
            export RABBITMQ_ADVANCED_CONFIG_FILE=$PWD/none RABBITMQ_ENABLED_PLUGINS_FILE=/dev/null
            export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}'
            export RUNNING_UNDER_SYSTEMD=true # so that it replaces its shell
            epmd -address 127.0.0.1 -port "$ERL_EPMD_PORT" &
            exec "$0""#;
        let mut process = Process::start("/bin/sh", &["-c", script, place], environment);
        let url = format!("amqp://127.0.0.1:{amqp}");
        let deadline = Instant::now() + PATIENCE;
        while Connection::connect(&url, ConnectionProperties::default()).await.is_err() {
            assert!(Instant::now() < deadline, "RabbitMQ does not start: {}", process.log());
            process.must_run();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        (process, url)
    };
    &SERVER.get_or_init(start).await.1
}

impl RabbitMq {
    async fn new(queue: &'static str) -> Self {
        let url = server().await;
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let durable = QueueDeclareOptions::durable();
        channel.queue_declare(queue.into(), durable, FieldTable::default()).await.unwrap();
        Self { queue, url, connection, published: Vec::new(), dead: Vec::new() }
    }

    async fn channel(&self) -> Channel {
        self.connection.create_channel().await.unwrap()
    }

    /// A queue that a consumer has declared.
    async fn queue(&self, name: &str) -> Queue {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let channel = self.channel().await;
        channel.queue_declare(name.into(), passive, FieldTable::default()).await.unwrap()
    }
}

impl Broker for RabbitMq {
    async fn publish(&mut self, messages: &[(String, String)]) {
        let channel = self.channel().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        for (id, body) in messages {
            let properties = BasicProperties::default()
                .with_message_id(id.as_str().into())
                .with_delivery_mode(2);
            let options = BasicPublishOptions::default();
            let (queue, body) = (self.queue.into(), body.as_bytes());
            channel.basic_publish("".into(), queue, options, body, properties).await.unwrap();
            self.published.push(id.clone());
        }
        channel.wait_for_confirms().await.unwrap();
    }

    fn consumer(&self, db: &Database) -> Process {
        let environment = [
            ("DATABASE_URL", db.url.clone()),
            ("INBOX_ATTEMPTS", db.attempts.to_string()),
            ("AMQP_URL", self.url.to_owned()),
        ];
        Process::start(env!("CARGO_BIN_EXE_rabbitmq"), &[self.queue], environment)
    }

    /// RabbitMQ tells only how many messages a queue has, not which.
    async fn compare(&mut self, done: impl AsyncFnOnce() -> HashSet<String>) -> usize {
        // The broker takes back a dead consumer's messages in the step in which it forgets the consumer.
        while self.queue(self.queue).await.consumer_count() > 0 {}
        let acknowledged = self.published.len().saturating_sub(self.held().await);
        let done = done().await;
        let covered = self.published.iter().filter(|id| done.contains(*id)).count();
        assert!(acknowledged <= covered, "{acknowledged} acknowledged, only {covered} committed");
        covered - acknowledged
    }

    async fn held(&mut self) -> usize {
        let mut held = 0;
        // In the direction in which messages move: a moving message is counted twice rather than missed.
        for power in 8..=16 {
            let name = format!("{}.retry.{}", self.queue, 1 << power);
            held += self.queue(&name).await.message_count();
        }
        held += self.queue(self.queue).await.message_count();
        held.try_into().unwrap()
    }

    async fn dead_letters(&mut self) -> Vec<(String, String)> {
        let name = format!("{}.dead", self.queue);
        let channel = self.channel().await;
        let options = BasicGetOptions { no_ack: true };
        while let Some(got) = channel.basic_get(name.as_str().into(), options).await.unwrap() {
            let properties = &got.delivery.properties;
            let reason = match properties.headers().as_ref().unwrap().inner().get("reason") {
                Some(AMQPValue::LongString(reason)) => reason.to_string(),
                other => panic!("{other:?}"),
            };
            self.dead.push((properties.message_id().as_ref().unwrap().to_string(), reason));
        }
        self.dead.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_messages_take_effect_once() {
    kills::every_message_takes_effect_once(&mut RabbitMq::new("kills").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_poison_is_put_aside() {
    poison::it_is_put_aside_while_others_pass(&mut RabbitMq::new("poison").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_killers_are_put_aside() {
    poison::it_is_put_aside_though_it_kills_its_consumer(&mut RabbitMq::new("killer").await).await;
}
