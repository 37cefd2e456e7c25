//! The stores of intents, each with the same rules.

use std::time::{Duration, SystemTime};

use pgonce_client::{FileIntentStore, IntentError, IntentStore, PgIntentStore};

use crate::service::Service;

const DAY: Duration = Duration::from_secs(86_400);

async fn follows_the_rules(store: &impl IntentStore) {
    let first = store.begin("order 1").await.unwrap();
    assert_eq!(store.begin("order 1").await.unwrap(), first, "the same key");
    let second = store.begin("order 2").await.unwrap();
    assert_ne!(first.key(), second.key());
    assert!(first.begun_at().elapsed().unwrap() < Duration::from_secs(60));
    assert_eq!(store.unknown().await.unwrap(), [first.clone(), second.clone()]);
    store.finish(&first).await.unwrap();
    assert_eq!(store.unknown().await.unwrap(), std::slice::from_ref(&second));
    assert_eq!(store.begin("order 1").await.unwrap(), first, "finished, and still the same key");
    store.forget(&first).await.unwrap();
    assert_ne!(store.begin("order 1").await.unwrap().key(), first.key());
    // The first is another's now: what was known of the old one does not touch it.
    let renewed = store.begin("order 1").await.unwrap();
    store.finish(&first).await.unwrap();
    store.forget(&first).await.unwrap();
    assert_eq!(store.begin("order 1").await.unwrap(), renewed);
    assert!(store.unknown().await.unwrap().contains(&renewed));
    for bad in [String::new(), "x".repeat(256)] {
        let error = store.begin(&bad).await.unwrap_err();
        assert!(error.to_string().contains("it takes 1 to 255"), "{error}");
    }
    let shown = format!("{second:?}");
    assert!(!shown.contains(second.key()) && !shown.contains("order"), "{shown}");
}

async fn refuses_an_old_intent(store: &impl IntentStore) {
    assert!(matches!(store.begin("old").await, Err(IntentError::TooOld(_))));
    let [old] = &store.unknown().await.unwrap()[..] else { panic!("one is listed") };
    store.forget(old).await.unwrap();
    assert_ne!(store.begin("old").await.unwrap().key(), old.key());
}

#[tokio::test]
async fn intents_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("intents.jsonl");
    follows_the_rules(&FileIntentStore::open(&path, DAY).unwrap()).await;
    let path = folder.path().join("old.jsonl");
    let days_ago = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() - 2 * DAY;
    let line = format!(
        "{{\"begun\":{{\"name\":\"old\",\"key\":\"k\",\"at_ms\":{}}}}}\n",
        days_ago.as_millis()
    );
    std::fs::write(&path, &line).unwrap();
    refuses_an_old_intent(&FileIntentStore::open(&path, DAY).unwrap()).await;
    // The clock was set back by two days: the intent may be older than any retention.
    let path = folder.path().join("future.jsonl");
    let in_two_days = days_ago + 4 * DAY;
    let line =
        line.replace(&days_ago.as_millis().to_string(), &in_two_days.as_millis().to_string());
    std::fs::write(&path, line).unwrap();
    refuses_an_old_intent(&FileIntentStore::open(&path, DAY).unwrap()).await;
}

#[tokio::test]
async fn intents_in_postgres() {
    let service = Service::start().await;
    let store = PgIntentStore::new(service.pool.clone(), DAY).unwrap();
    store.migrate().await.unwrap();
    store.migrate().await.unwrap();
    follows_the_rules(&store).await;
    sqlx::query("truncate pgonce_intent").execute(&service.pool).await.unwrap();
    let old = "insert into pgonce_intent values ('old', 'k', now() - interval '2 days', false)";
    sqlx::query(old).execute(&service.pool).await.unwrap();
    refuses_an_old_intent(&store).await;
    sqlx::query("truncate pgonce_intent").execute(&service.pool).await.unwrap();
    let future = "insert into pgonce_intent values ('old', 'k', now() + interval '2 days', false)";
    sqlx::query(future).execute(&service.pool).await.unwrap();
    refuses_an_old_intent(&store).await;

    let mut tx = service.pool.begin().await.unwrap();
    store.begin_in(&mut tx, "rolled back").await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!(
        service.number("select count(*) from pgonce_intent where name = 'rolled back'").await,
        0
    );
}

#[tokio::test]
async fn fifty_processes_begin_one_intent_with_one_key() {
    let service = Service::start().await;
    let store = PgIntentStore::new(service.pool.clone(), DAY).unwrap();
    store.migrate().await.unwrap();
    let begins = (0..50).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.begin("order 1").await.unwrap().key().to_owned() })
    });
    let mut keys = Vec::new();
    for begin in begins.collect::<Vec<_>>() {
        keys.push(begin.await.unwrap());
    }
    keys.dedup();
    assert_eq!(keys.len(), 1);
}

#[tokio::test]
async fn a_file_survives_restarts_belongs_to_one_and_mends_a_line_that_was_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("intents.jsonl");
    let store = FileIntentStore::open(&path, DAY).unwrap();
    let first = store.begin("order 1").await.unwrap();
    assert!(matches!(FileIntentStore::open(&path, DAY), Err(IntentError::InUse)));
    drop(store);
    let again = FileIntentStore::open(&path, DAY).unwrap();
    assert_eq!(again.begin("order 1").await.unwrap().key(), first.key(), "after a restart");
    assert_eq!(again.unknown().await.unwrap().len(), 1);
    drop(again);
    // A crash in the middle of a line, at each of its bytes.
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        std::fs::write(&path, [&whole[..], &whole[..cut]].concat()).unwrap();
        let store = FileIntentStore::open(&path, DAY).unwrap();
        assert_eq!(store.begin("order 1").await.unwrap().key(), first.key());
        let second = store.begin("order 2").await.unwrap();
        drop(store);
        let store = FileIntentStore::open(&path, DAY).unwrap();
        assert_eq!(store.begin("order 2").await.unwrap(), second);
    }
    // A last line whose first block was not written.
    let torn = [&[0; 20][..], &whole[20..]].concat();
    std::fs::write(&path, [&whole[..], &torn].concat()).unwrap();
    let store = FileIntentStore::open(&path, DAY).unwrap();
    assert_eq!(store.begin("order 1").await.unwrap().key(), first.key());
    drop(store);
    std::fs::write(&path, "something else\nand more\n").unwrap();
    assert!(matches!(FileIntentStore::open(&path, DAY), Err(IntentError::Store(_))));
}
