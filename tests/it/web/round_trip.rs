//! A replay is the same as the handler's response, byte for byte.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode};
use pgonce::web::{Answer, Settle};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use super::kit::{MODES, app};
use super::{Got, post, send};
use crate::support::db::TestDb;

/// Stored headers, and one that a route added.
const KEPT: [&str; 10] = [
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-location",
    "content-type",
    "etag",
    "last-modified",
    "link",
    "location",
    "x-own",
];

#[derive(Debug, Clone)]
struct Sent {
    status: StatusCode,
    settle: Option<Settle>,
    /// Names and values; some names occur several times, with others in between.
    headers: Vec<(&'static str, Vec<u8>)>,
    body: Vec<u8>,
}

impl Sent {
    fn response(&self) -> Response {
        let mut response = Response::new(Body::from(self.body.clone()));
        *response.status_mut() = self.status;
        for (name, value) in &self.headers {
            let value = HeaderValue::from_bytes(value).unwrap();
            response.headers_mut().append(HeaderName::from_static(name), value);
        }
        response.extensions_mut().extend(
            self.settle
                .map(|settle| {
                    let mut said = http::Extensions::new();
                    said.insert(settle);
                    said
                })
                .unwrap_or_default(),
        );
        response
    }
}

/// All that a header can contain: visible ASCII, tabs, and bytes that are no UTF-8; it may be empty.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let byte =
        prop_oneof![Just(b'\t'), 32..=126u8, 128..=255u8, Just(b':'), Just(b','), Just(b' ')];
    prop::collection::vec(byte, 0..40)
}

fn sent() -> impl Strategy<Value = Sent> {
    let succeeds = prop_oneof![200..206u16, 207..304u16, 305..400u16].prop_map(|code| (code, None));
    let refuses = (400..500u16).prop_map(|code| (code, Some(Settle::Fail)));
    let decided = (400..1000u16).prop_map(|code| (code, Some(Settle::Complete)));
    let header = (prop::sample::select(KEPT.as_slice()), value());
    let body = prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(any::<u8>(), 8000..20_000), // out of line, and compressed if possible
        (1..100_000usize).prop_map(|length| vec![0; length]),
    ];
    (
        prop_oneof![4 => succeeds, 2 => refuses, 1 => decided],
        prop::collection::vec(header, 0..12),
        body,
    )
        .prop_map(|((code, settle), headers, body)| Sent {
            status: StatusCode::from_u16(code).unwrap(),
            settle,
            headers,
            body,
        })
}

fn kept(got: &Got) -> Vec<Vec<Vec<u8>>> {
    let values = |name| got.headers.get_all(name).iter().map(|value| value.as_bytes().to_vec());
    KEPT.map(|name| values(name).collect()).to_vec()
}

async fn replays(db: &TestDb, key: &str, sent: &Sent) {
    for mode in MODES {
        let own = HeaderName::from_static("x-own");
        let answers = sent.clone();
        let idempotency = mode.layer(db).keep_header(own).unwrap();
        let app = app(db, idempotency, move |_| answers.response());
        let key = format!("{key}-{mode:?}");
        let first = send(&app.router, post(&key, "")).await;
        assert_eq!((first.status, first.answer), (sent.status, Some(Answer::Performed)));
        assert_eq!(first.body, sent.body);
        for (name, values) in KEPT.iter().zip(kept(&first)) {
            let own: Vec<_> =
                sent.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v).collect();
            assert_eq!(values.iter().collect::<Vec<_>>(), own, "{name}");
        }
        for _ in 0..2 {
            let replay = send(&app.router, post(&key, "")).await;
            assert!(replay.is_replay(), "{replay:?}");
            assert_eq!((replay.status, kept(&replay)), (first.status, kept(&first)));
            assert!(
                replay.body == first.body,
                "{} bytes became {}",
                first.body.len(),
                replay.body.len()
            );
            if let Some(length) = replay.header("content-length") {
                assert_eq!(length, sent.body.len().to_string());
            }
        }
        assert_eq!(app.calls(), 1);
    }
}

// Traps 46, 47, 49, 50, 58, 62.
#[test]
fn a_replay_is_the_first_answer_byte_for_byte() {
    let seed = std::env::var("PGONCE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("to repeat this run: PGONCE_SEED={seed}");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let db = runtime.block_on(TestDb::new());
    let config = Config {
        cases: 150,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    };
    let case = std::cell::Cell::new(0);
    TestRunner::new(config)
        .run(&sent(), |sent| {
            case.set(case.get() + 1);
            runtime.block_on(replays(&db, &format!("case-{}", case.get()), &sent));
            Ok(())
        })
        .unwrap();
}
