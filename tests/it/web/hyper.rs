//! The example without axum runs.

use tokio::net::TcpListener;

use super::Got;
use super::wire::{Wire, head};
use crate::support::db::TestDb;

#[path = "../../../examples/hyper.rs"]
mod example;

#[tokio::test]
async fn the_hyper_example_pays_once() {
    let db = TestDb::with_connections(1).await;
    let options = db.options.clone().options([("search_path", db.schema.as_str())]);
    let db = TestDb::open(&db.schema, options, 1).await;
    example::prepare(&db.pool, &db.once).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(example::serve(listener, db.pool.clone(), db.once.clone()));
    let send = async |tenant: &str, amount: &str| -> Got {
        let mut wire = Wire::connect(addr).await;
        let length = amount.len();
        wire.send(format!("{}{tenant}content-length: {length}\r\n\r\n{amount}", head("k"))).await;
        wire.answer().await
    };
    let acme = "authorization: Bearer acme\r\n";
    assert_eq!(send("", "100").await.status, 401);
    assert_eq!(send(acme, "ten").await.status, 400, "and the key stays free");
    let first = send(acme, "100").await;
    assert_eq!((first.status.as_u16(), first.header("location")), (201, Some("/payments/1")));
    let retry = send(acme, "100").await;
    assert!(retry.is_replay());
    assert_eq!((retry.status, &retry.body), (first.status, &first.body));
    assert_eq!(retry.header("location"), first.header("location"));
    assert_eq!(send(acme, "200").await.code(), "mismatch");
    assert!(!send("authorization: Bearer globex\r\n", "100").await.is_replay());
    assert_eq!(db.ask::<i64>("select count(*) from {}.hyper_payment").await, 2);
}
