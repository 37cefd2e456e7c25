//! NATS JetStream from Debian's package, on its own port with its own data.

use std::collections::HashSet;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream::{self, RetentionPolicy, Stream};
use async_nats::jetstream::{self, Context};
use futures_util::TryStreamExt;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::database::{Database, PATIENCE};
use crate::kills::{self, Broker};
use crate::poison;
use crate::process::{Process, installed};

struct Nats {
    url: &'static str,
    queue: &'static str,
    jetstream: Context,
    stream: Stream,
    published: Vec<String>,
}

/// The server of all tests; it ends with this process. Returns its URL.
async fn server() -> &'static str {
    static SERVER: OnceCell<(Process, String)> = OnceCell::const_new();
    let start = async || {
        let program = installed(&["/usr/sbin/nats-server", "/usr/bin/nats-server"], "nats-server");
        let arguments = "-a 127.0.0.1 -p -1 --ports_file_dir . -l log -js -sd data";
        let arguments: Vec<_> = arguments.split(' ').collect();
        let mut process = Process::start(program, &arguments, []);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut files = std::fs::read_dir(process.dir()).unwrap();
            let ports = files.find_map(|file| {
                let path = file.unwrap().path();
                let is_ports = path.extension().is_some_and(|extension| extension == "ports");
                is_ports.then(|| std::fs::read_to_string(path).unwrap())
            });
            if let Some(url) = ports
                .iter()
                .flat_map(|ports| ports.split('"'))
                .find(|text| text.starts_with("nats://"))
            {
                return (process, url.to_owned());
            }
            assert!(Instant::now() < deadline, "nats-server does not start: {}", process.log());
            process.must_run();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    &SERVER.get_or_init(start).await.1
}

impl Nats {
    async fn new(queue: &'static str) -> Self {
        let url = server().await;
        let jetstream = jetstream::new(async_nats::connect(url).await.unwrap());
        // Like the example's, but redelivers sooner and has a shorter duplicate window.
        let config = stream::Config {
            name: queue.to_owned(),
            subjects: vec![format!("{queue}.*")],
            retention: RetentionPolicy::WorkQueue,
            duplicate_window: Duration::from_millis(100),
            ..stream::Config::default()
        };
        let stream = jetstream.create_stream(config).await.unwrap();
        let consumer = pull::Config {
            durable_name: Some("consumer".to_owned()),
            ack_wait: Duration::from_secs(2),
            max_deliver: -1,
            ..pull::Config::default()
        };
        stream.create_consumer(consumer).await.unwrap();
        Self { url, queue, jetstream, stream, published: Vec::new() }
    }
}

impl Broker for Nats {
    async fn publish(&mut self, messages: &[(String, String)]) {
        // JetStream drops a duplicate while its duplicate window is open, so duplicates come last.
        let mut left: Vec<_> = messages.iter().collect();
        while !left.is_empty() {
            let mut dropped = Vec::new();
            for message in left {
                let (id, body) = message;
                let mut headers = HeaderMap::new();
                headers.insert(NATS_MESSAGE_ID, id.as_str());
                let (subject, body) = (format!("{}.{id}", self.queue), body.clone().into());
                let sent = self.jetstream.publish_with_headers(subject, headers, body).await;
                if sent.unwrap().await.unwrap().duplicate {
                    dropped.push(message);
                } else {
                    self.published.push(id.clone());
                }
            }
            left = dropped;
        }
        let held = self.held().await;
        assert_eq!(held, self.published.len());
    }

    fn consumer(&self, db: &Database) -> Process {
        let environment = [
            ("DATABASE_URL", db.url.clone()),
            ("INBOX_ATTEMPTS", db.attempts.to_string()),
            ("NATS_URL", self.url.to_owned()),
        ];
        Process::start(env!("CARGO_BIN_EXE_nats"), &[self.queue], environment)
    }

    /// Every message has its own subject here, so JetStream tells which messages it has.
    async fn compare(&mut self, done: impl AsyncFnOnce() -> HashSet<String>) -> usize {
        let all = format!("{}.*", self.queue);
        let held: Vec<(String, usize)> =
            self.stream.info_with_subjects(all).await.unwrap().try_collect().await.unwrap();
        let prefix = format!("{}.", self.queue);
        let held: HashSet<_> =
            held.iter().map(|(subject, _)| subject.strip_prefix(&prefix).unwrap()).collect();
        let done = done().await;
        for id in &self.published {
            assert!(held.contains(id.as_str()) || done.contains(id), "{id} is gone, not committed");
        }
        done.iter().filter(|id| held.contains(id.as_str())).count()
    }

    async fn held(&mut self) -> usize {
        self.stream.info().await.unwrap().state.messages.try_into().unwrap()
    }

    async fn dead_letters(&mut self) -> Vec<(String, String)> {
        let name = format!("{}-dead", self.queue);
        let Ok(mut stream) = self.jetstream.get_stream(name).await else { return Vec::new() };
        let last = stream.info().await.unwrap().state.last_sequence;
        let mut dead = Vec::new();
        for number in 1..=last {
            let headers = stream.get_raw_message(number).await.unwrap().headers;
            let text = |name: &str| headers.get(name).unwrap().to_string();
            dead.push((text("Nats-Msg-Id"), text("Reason")));
        }
        dead
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_messages_take_effect_once() {
    kills::every_message_takes_effect_once(&mut Nats::new("kills").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_poison_is_put_aside() {
    poison::it_is_put_aside_while_others_pass(&mut Nats::new("poison").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_killers_are_put_aside() {
    poison::it_is_put_aside_though_it_kills_its_consumer(&mut Nats::new("killer").await).await;
}
