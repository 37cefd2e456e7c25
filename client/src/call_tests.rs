#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "tests")]

use super::*;
use crate::Budget;

fn call(policy: &RetryPolicy, method: Method) -> (Call, HeaderMap) {
    let mut headers = HeaderMap::new();
    let mut call = Call::begin(policy, &method, &mut headers);
    call.try_now().unwrap();
    (call, headers)
}

fn answer(code: u16, headers: &[(&'static str, &str)], problem: Option<&str>) -> Outcome {
    let mut map = HeaderMap::new();
    if problem.is_some() {
        map.insert(CONTENT_TYPE, "Application/Problem+JSON; charset=utf-8".parse().unwrap());
    }
    for (name, value) in headers {
        map.insert(*name, value.parse().unwrap());
    }
    Outcome::of(StatusCode::from_u16(code).unwrap(), &map, problem.map(str::as_bytes))
}

#[test]
fn the_servers_word_wins_and_else_the_status_decides() {
    let (no, yes) = (r#"{"retryable": false}"#, r#"{"retryable": true}"#);
    let cases = [
        (answer(200, &[], None), false),
        (answer(409, &[], None), true),
        (answer(409, &[("idempotent-replayed", "true")], None), false),
        (answer(409, &[("idempotent-replayed", "true")], Some(yes)), true),
        (answer(409, &[], Some(no)), false),
        (answer(409, &[], Some("no JSON")), true),
        (answer(400, &[], None), false),
        (answer(400, &[], Some(yes)), true),
        (answer(422, &[], None), false),
        (answer(401, &[], None), false),
        (answer(429, &[], None), true),
        (answer(500, &[], None), false),
        (answer(500, &[("stripe-should-retry", "true")], None), true),
        (answer(409, &[("stripe-should-retry", "false")], Some(yes)), false),
        (answer(502, &[], None), true),
        (answer(503, &[], None), true),
        (answer(503, &[], Some(no)), false),
        (answer(504, &[], None), true),
        (Outcome::default(), true), // a broken connection
        (answer(503, &[("idempotency-status", "ignored")], None), false),
    ];
    let policy = RetryPolicy::new();
    for (outcome, again) in cases {
        let (call, _) = call(&policy, Method::POST);
        assert_eq!(call.after(&outcome) != Next::Return, again, "{outcome:?}");
    }
}

#[test]
fn no_pause_is_shorter_than_the_server_says_nor_longer_than_the_deadline() {
    let policy = RetryPolicy::new().deadline(Duration::from_secs(10)).unwrap();
    for seconds in [0, 1, 5, 9, 10, 60, u64::MAX] {
        let (call, _) = call(&policy, Method::POST);
        match call.after(&answer(503, &[("retry-after", &seconds.to_string())], None)) {
            Next::AgainAfter(pause) => {
                assert!((seconds..10).contains(&pause.as_secs()), "{pause:?} for {seconds}");
            }
            Next::Return => assert!(seconds >= 9, "{seconds}"),
        }
    }
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let date = httpdate::fmt_http_date;
    let (later, earlier) = (date(now + Duration::from_secs(7)), date(now - Duration::from_secs(7)));
    let said = |value: &str, date: Option<&str>| {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, value.parse().unwrap());
        headers.extend(date.map(|date| (DATE, date.parse().unwrap())));
        pause(&headers, now)
    };
    assert_eq!(said(&later, None), Some(Duration::from_secs(7)));
    assert_eq!(said(&later, Some(&earlier)), Some(Duration::from_secs(14)), "the server's clock");
    assert_eq!(said(&earlier, None), Some(Duration::ZERO));
    assert_eq!(said("99999999999999999999999", None), Some(Duration::from_secs(u64::MAX)));
    for none in ["soon", "-1", "+1", "1.5", ""] {
        assert_eq!(said(none, None), None, "{none}");
    }
}

#[test]
fn pauses_double_up_to_their_longest_and_differ() {
    let policy = RetryPolicy::new();
    for tries in 1..=20 {
        let limit = Duration::from_millis(200 << (tries - 1).min(10)).min(Duration::from_secs(20));
        let mut pauses: Vec<_> = (0..50).map(|_| policy.jitter(tries)).collect();
        assert!(pauses.iter().all(|pause| *pause <= limit), "{tries}: {pauses:?}");
        assert!(pauses.iter().max().unwrap() > &(limit / 2));
        pauses.dedup();
        assert!(pauses.len() > 10);
    }
}

#[test]
fn a_key_is_given_once_and_only_where_it_is_needed() {
    let policy = RetryPolicy::new().correlation(http::HeaderName::from_static("x-request-id"));
    let (_, headers) = call(&policy, Method::POST);
    let key = headers.get("idempotency-key").unwrap();
    assert!(key.is_sensitive() && key.len() == 36);
    assert!(headers.contains_key("x-request-id"));
    let (get, headers) = call(&policy, Method::GET);
    assert!(!headers.contains_key("idempotency-key") && get.is_repeatable());
    let (lock, _) = call(&policy, Method::from_bytes(b"LOCK").unwrap());
    assert!(!lock.is_repeatable());
    assert_eq!(lock.after(&Outcome::default()), Next::Return);

    let mut own = HeaderMap::new();
    own.insert("idempotency-key", "order-17".parse().unwrap());
    drop(Call::begin(&policy, &Method::POST, &mut own));
    assert_eq!(own["idempotency-key"], "order-17");
    let (_, quoted) = call(&RetryPolicy::new().quoted(), Method::POST);
    assert_eq!(quoted["idempotency-key"].len(), 38);
}

#[test]
fn tries_and_the_budget_of_all_calls_end() {
    let policy = RetryPolicy::new().tries_max(3).unwrap();
    let (mut one, _) = call(&policy, Method::POST);
    for _ in 0..2 {
        assert_ne!(one.after(&Outcome::default()), Next::Return);
        one.try_now().unwrap();
    }
    assert_eq!(one.after(&Outcome::default()), Next::Return);

    let policy = RetryPolicy::new().budget(Budget::new(2));
    let calls = [(); 3].map(|()| call(&policy, Method::POST).0);
    let again = calls.each_ref().map(|call| call.after(&Outcome::default()) != Next::Return);
    assert_eq!(again, [true, true, false]);
    // An answer gives back what its call took.
    let [mut first, ..] = calls;
    first.try_now().unwrap();
    assert_eq!(first.after(&answer(200, &[], None)), Next::Return);
    let (next, _) = call(&policy, Method::POST);
    assert_ne!(next.after(&Outcome::default()), Next::Return);
    let (last, _) = call(&policy, Method::POST);
    assert_eq!(last.after(&Outcome::default()), Next::Return);
}

#[test]
fn only_problem_documents_and_short_bodies_are_read() {
    let of = |code: u16, kind: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, kind.parse().unwrap());
        has_problem(StatusCode::from_u16(code).unwrap(), &headers)
    };
    assert!(of(409, "application/problem+json"));
    assert!(of(409, "application/problem+json; charset=utf-8"));
    assert!(!of(409, "application/json"));
    assert!(!of(409, "application/problem+jsonx"));
    assert!(!of(200, "application/problem+json"));
    assert!(!has_problem(StatusCode::CONFLICT, &HeaderMap::new()));
    let read = |kind: &str, length| {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, kind.parse().unwrap());
        is_read(StatusCode::CONFLICT, &headers, length)
    };
    assert!(read("text/plain", Some(0)) && read("text/plain", Some(65_536)));
    assert!(!read("text/plain", Some(65_537)) && !read("text/plain", None));
    assert!(read("application/problem+json", None), "chunked, or unpacked");
}
