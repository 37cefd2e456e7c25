//! librdkafka's mock cluster: brokers with the real protocol, in this process.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{DefaultProducerContext, FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::util::Timeout;

use crate::database::{Database, PATIENCE};
use crate::kills::{self, Broker};
use crate::poison;
use crate::process::Process;

const TOPIC: &str = "orders";
const DEAD: &str = "orders.dead";
const PARTITIONS: i32 = 4;

struct Kafka {
    /// Reads offsets, as a member of the consumer's group that takes no messages.
    group: BaseConsumer,
    dead: BaseConsumer,
    dead_letters: Vec<(String, String)>,
    /// Partition, offset and id.
    published: Vec<(i32, i64, String)>,
    /// Dropped last: a client that cannot log off takes a minute to close.
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl Kafka {
    fn new() -> Self {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, PARTITIONS, 1).unwrap();
        cluster.create_topic(DEAD, 1, 1).unwrap();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", TOPIC);
        let group = config.create().unwrap();
        let dead: BaseConsumer = config.set("group.id", "another").create().unwrap();
        let mut beginning = TopicPartitionList::new();
        beginning.add_partition_offset(DEAD, 0, Offset::Beginning).unwrap();
        dead.assign(&beginning).unwrap();
        Self { cluster, group, dead, dead_letters: Vec::new(), published: Vec::new() }
    }

    /// The offset from which each partition would be redelivered.
    fn committed(&self) -> Vec<i64> {
        let mut all = TopicPartitionList::new();
        all.add_partition_range(TOPIC, 0, PARTITIONS - 1);
        let committed = self.group.committed_offsets(all, PATIENCE).unwrap();
        let offset = |partition| match committed.find_partition(TOPIC, partition).unwrap().offset()
        {
            Offset::Offset(offset) => offset,
            Offset::Invalid => 0, // no offset yet
            other => panic!("{other:?}"),
        };
        (0..PARTITIONS).map(offset).collect()
    }
}

impl Broker for Kafka {
    async fn publish(&mut self, messages: &[(String, String)]) {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.cluster.bootstrap_servers());
        let producer: FutureProducer = config.create().unwrap();
        let sent = messages.iter().map(async |(id, body)| {
            let headers = OwnedHeaders::new().insert(Header { key: "id", value: Some(id) });
            let record = FutureRecord::to(TOPIC).key(id).payload(body).headers(headers);
            let sent = producer.send(record, Timeout::Never).await.unwrap();
            (sent.partition, sent.offset, id.clone())
        });
        self.published.extend(join_all(sent).await);
    }

    fn consumer(&self, db: &Database) -> Process {
        let brokers = self.cluster.bootstrap_servers();
        let environment = [
            ("DATABASE_URL", db.url.clone()),
            ("INBOX_ATTEMPTS", db.attempts.to_string()),
            ("KAFKA_BROKERS", brokers),
        ];
        // Short, so that the group soon notices a killed member. Not shorter: the mock makes the first member wait
        // three seconds, and it must not seem dead by then. And offsets are committed often, so that there is something
        // to compare.
        let arguments = [
            TOPIC,
            "session.timeout.ms=3200",
            "heartbeat.interval.ms=200",
            "auto.commit.interval.ms=20",
        ];
        Process::start(env!("CARGO_BIN_EXE_kafka"), &arguments, environment)
    }

    async fn compare(&mut self, done: impl AsyncFnOnce() -> HashSet<String>) -> usize {
        let committed = self.committed();
        let done = done().await;
        let mut again = 0;
        for (partition, offset, id) in &self.published {
            let acknowledged = *offset < committed[usize::try_from(*partition).unwrap()];
            let is_done = done.contains(id);
            assert!(is_done || !acknowledged, "{id} is behind the offset, not committed");
            again += usize::from(is_done && !acknowledged);
        }
        again
    }

    async fn held(&mut self) -> usize {
        let committed = self.committed();
        let held = self.published.iter().filter(|(partition, offset, _)| {
            *offset >= committed[usize::try_from(*partition).unwrap()]
        });
        held.count()
    }

    async fn dead_letters(&mut self) -> Vec<(String, String)> {
        while let Some(message) = self.dead.poll(Duration::from_millis(100)) {
            let message = message.unwrap();
            let headers = message.headers().unwrap();
            let text = |name: &str| {
                let header = headers.iter().find(|header| header.key == name).unwrap();
                String::from_utf8(header.value.unwrap().to_vec()).unwrap()
            };
            self.dead_letters.push((text("id"), text("reason")));
        }
        self.dead_letters.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_messages_take_effect_once() {
    kills::every_message_takes_effect_once(&mut Kafka::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_poison_is_put_aside() {
    poison::it_is_put_aside_while_others_pass(&mut Kafka::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_killers_are_put_aside() {
    poison::it_is_put_aside_though_it_kills_its_consumer(&mut Kafka::new()).await;
}
