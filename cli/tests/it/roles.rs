//! What each role of src/docs/security.md can do with the program.

use pgonce::{Inbox, Policy};

use crate::commands::pgonce_with;
use crate::support::db::{PATIENCE, TestDb, op, server};
use crate::support::roles::{role, step_and_fail, with_roles};

/// Arguments, exit code, part of the output.
type Case<'a> = (&'a [&'a str], i32, &'a str);

const DENIED: &str = "permission denied";

async fn runs(db: &TestDb, name: &str, cases: &[Case<'_>]) {
    let user = format!("user={}", role(db, name));
    let url = server().await.url().replace("user=postgres", &user);
    for (args, code, says) in cases {
        let said = pgonce_with(db, args, &[("DATABASE_URL", url.as_str())]).await;
        let printed = said.stdout + &said.stderr;
        assert_eq!(said.code, *code, "{name} {args:?}: {printed}");
        assert!(printed.contains(says), "{name} {args:?}: {printed}");
        let private = printed.contains("secret") || printed.contains("charge");
        assert!(["app", "operator"].contains(&name) || !private, "{name} {args:?}: {printed}");
    }
}

/// Roles, and a key in each state that they are asked about.
async fn planted() -> TestDb {
    let db = with_roles().await;
    db.once.audit_on(&mut db.conn().await, 30).await.unwrap();
    db.complete(&op("k"), "secret body").await;
    assert!(!step_and_fail(&db, &db.pool, &op("half done")).await);
    drop(db.lease(&op("live"), PATIENCE).await);
    let inbox = Inbox::new(&db.once, "orders")
        .unwrap()
        .policy(Policy::inbox().max_attempts(1).unwrap())
        .unwrap();
    inbox.failed(&db.pool, "1", "an error").await.unwrap();
    db
}

#[tokio::test]
async fn each_role_has_its_commands() {
    let auditor: &[Case<'_>] = &[
        (&["check"], 0, "is up to date"),
        (&["migrate"], 0, "is up to date"),
        (&["doctor", "--horizon", "test/scope=1h"], 0, "remembers messages for 1day"),
        (&["audit", "test/scope", "k"], 0, "begun"),
        (&["migrate", "--audit", "7"], 1, DENIED),
        (&["stats"], 0, "completed"),
        (&["list"], 0, "half done"),
        (&["list", "--claim", "lapsed"], 0, "SCOPE"),
        (&["get", "test/scope", "k"], 0, "hidden from this role"),
        (&["get", "test/scope", "k", "--json"], 0, "\"status\":\"completed\""),
        (&["get", "test/scope", "half done"], 0, "in_progress"),
        (&["get", "test/scope", "unknown"], 3, "no such key"),
        (&["get", "test/scope", "k", "--body", "-"], 1, DENIED),
        (&["list", "--abandoned"], 1, DENIED),
        (&["release", "test/scope", "half done", "--yes"], 1, DENIED),
        (&["resolve", "test/scope", "half done", "--release"], 1, DENIED),
        (&["inbox", "redrive", "orders", "1"], 1, DENIED),
        (&["reap"], 1, DENIED),
    ];
    let operator: &[Case<'_>] = &[
        (&["check"], 0, "is up to date"),
        (&["stats"], 0, "completed"),
        (&["doctor", "--horizon", "test/scope=1h"], 0, "remembers messages for 1day"),
        (&["audit", "test/scope", "k"], 0, "begun"),
        (&["list", "--abandoned"], 0, "half done"),
        (&["get", "test/scope", "half done"], 0, "charge"),
        (&["get", "test/scope", "k", "--body", "-"], 0, "secret body"),
        (&["inbox", "redrive", "orders", "1"], 0, "redriven"),
        (&["resolve", "test/scope", "half done", "--release"], 0, "released"),
        (&["release", "test/scope", "live", "--yes"], 0, "released"),
        (&["migrate", "--audit", "7"], 1, DENIED),
        (&["mode", "payments", "off"], 1, DENIED),
        (&["reap"], 1, DENIED),
    ];
    let app: &[Case<'_>] = &[
        (&["check"], 0, "is up to date"),
        (&["doctor", "--horizon", "test/scope=1h"], 0, "remembers messages for 1day"),
        (&["stats"], 0, "completed"),
        (&["list", "--abandoned"], 0, "half done"),
        (&["get", "test/scope", "half done"], 0, "charge"),
        (&["get", "test/scope", "k", "--body", "-"], 0, "secret body"),
        (&["inbox", "redrive", "orders", "1"], 0, "redriven"),
        (&["resolve", "test/scope", "half done", "--release"], 0, "released"),
        (&["audit", "test/scope", "k"], 1, DENIED),
        (&["reap"], 1, DENIED),
    ];
    let reaper: &[Case<'_>] = &[
        (&["check"], 0, "is up to date"),
        (&["stats"], 0, "completed"),
        (&["reap"], 0, "deleted"),
        (&["release", "test/scope", "half done", "--yes"], 1, DENIED),
    ];
    for (name, cases) in
        [("auditor", auditor), ("operator", operator), ("app", app), ("reaper", reaper)]
    {
        runs(&planted().await, name, cases).await;
    }
}
