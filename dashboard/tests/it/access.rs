//! Who may see and do what, and the headers of every answer.

use std::collections::HashSet;

use axum::body::Body;
use http::{Method, Request};
use pgonce_dashboard::{Access, Action};

use crate::kit::{Browser, abandon, fail_message, half_done, hold, row};
use crate::support::db::TestDb;
use crate::support::roles::{as_role, with_roles};

const PAGES: [&str; 13] = [
    "overview",
    "scopes",
    "keys",
    "keys?scope=test%2Fscope",
    "waiting",
    "inbox",
    "inbox?consumer=test%2Fscope",
    "health",
    "key?scope=test%2Fscope&key=held",
    "release?scope=test%2Fscope&key=held",
    "resolve?scope=test%2Fscope&key=held",
    "redrive?scope=test%2Fscope&key=dead",
    "reveal?scope=test%2Fscope&key=held",
];
const ACTIONS: [(&str, &str); 4] =
    [("release", "held"), ("resolve", "held"), ("redrive", "dead"), ("reveal", "held")];

async fn staged() -> TestDb {
    let db = TestDb::new().await;
    hold(&db, "held").await;
    fail_message(&db, "dead", 3, "no such product").await;
    db
}

#[tokio::test]
async fn nobody_sees_anything() {
    let db = staged().await;
    let mut nobody = Browser::new(&db, Access::None);
    for page in PAGES {
        nobody.get(page).await.is(403).lacks("held");
    }
    for (action, key) in ACTIONS {
        let fields = [("scope", "test/scope"), ("key", key)];
        nobody.post(action, &fields).await.is(403);
    }
    for path in ["/", "/-/page.css", "/nowhere"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        nobody.send(request).await.is(403);
    }
}

#[tokio::test]
async fn each_action_needs_its_right() {
    let db = staged().await;
    let all = [Action::Release, Action::Resolve, Action::Redrive, Action::Reveal];
    for (allowed, access) in all
        .into_iter()
        .map(|action| (vec![action], Access::Actions(vec![action])))
        .chain([(all.to_vec(), Access::All), (vec![], Access::ReadOnly)])
    {
        let mut browser = Browser::new(&db, access.clone());
        browser.get("overview").await.is(200);
        for (name, key) in ACTIONS {
            let may = allowed.iter().any(|action| action.as_str() == name);
            let asked = browser.get(&format!("{name}?scope=test%2Fscope&key={key}")).await;
            asked.is(if may { 200 } else { 403 });
            if !may {
                // Without the confirmation, with a right token and seen.
                let page = browser.get("overview").await;
                page.is(200);
                let token = browser.token();
                let seen: String =
                    db.ask(&format!("select seen from {{}}.keys where key = '{key}'")).await;
                let before = row(&db, key).await;
                let fields = [
                    ("scope", "test/scope"),
                    ("key", key),
                    ("token", &token),
                    ("seen", &seen),
                    ("decision", "release"),
                ];
                browser.post(name, &fields).await.is(403).has("not do this");
                assert_eq!(row(&db, key).await, before, "{access:?} {name}");
            }
        }
        let key_page = browser.get("key?scope=test%2Fscope&key=held").await;
        for (name, action) in [("Release", Action::Release), ("Resolve", Action::Resolve)] {
            let offered = key_page.text.contains(&format!(">{name}</a>"));
            assert_eq!(offered, allowed.contains(&action), "{access:?} {name}");
        }
    }
}

#[tokio::test]
async fn every_answer_has_a_strict_policy_with_a_nonce_of_its_own() {
    let db = staged().await;
    half_done(&db, "half", "output", "error").await;
    abandon(&db, "gone").await;
    let mut browser = Browser::new(&db, Access::All);
    let mut nonces = HashSet::new();
    for page in PAGES.into_iter().chain(["key?scope=test%2Fscope&key=none", "key?scope=&key="]) {
        let answer = browser.get(page).await;
        let header = |name: &str| answer.headers[name].to_str().unwrap().to_owned();
        let policy = header("content-security-policy");
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        for part in [
            "default-src 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'self'",
        ] {
            assert!(policy.contains(part), "{policy}");
        }
        let (_, rest) = policy.split_once("script-src 'nonce-").unwrap();
        let nonce = rest.split('\'').next().unwrap().to_owned();
        assert_eq!(nonce.len(), 32);
        assert_eq!(header("cache-control"), "no-store");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "no-referrer");
        assert_eq!(header("x-frame-options"), "DENY");
        // What the policy would block.
        answer
            .lacks(" style=")
            .lacks(" onclick")
            .lacks("javascript:")
            .lacks("http://")
            .lacks("https://");
        for tag in ["<script", "<link rel=\"stylesheet\""] {
            for (_, rest) in answer.text.match_indices(tag).map(|(at, _)| answer.text.split_at(at))
            {
                let tag = rest.split('>').next().unwrap();
                assert!(
                    tag.contains(&format!("nonce=\"{nonce}\"")) && !tag.contains("inline"),
                    "{tag}"
                );
            }
        }
        assert!(nonces.insert(nonce), "a nonce was used twice");
    }
}

#[tokio::test]
async fn a_change_from_another_site_is_refused() {
    let db = staged().await;
    let mut browser = Browser::new(&db, Access::All);
    for (action, key) in ACTIONS {
        let asked = browser.get(&format!("{action}?scope=test%2Fscope&key={key}")).await;
        let (token, before) = (asked.field("token"), row(&db, key).await);
        let seen: String = db.ask(&format!("select seen from {{}}.keys where key = '{key}'")).await;
        let fields = [
            ("scope", "test/scope"),
            ("key", key),
            ("token", &token),
            ("seen", &seen),
            ("decision", "release"),
        ];
        for site in [None, Some("cross-site"), Some("same-site"), Some("none"), Some("")] {
            browser.post_from(action, &fields, site).await.is(403);
        }
        // Of the same origin, but without the form's token, or with another one.
        let mut wrong = fields;
        for token in ["", "0123456789abcdef0123456789abcdef"] {
            wrong[2].1 = token;
            browser.post(action, &wrong).await.is(403).has("no valid token");
        }
        assert_eq!(row(&db, key).await, before, "{action}");
        let done = browser.post(action, &fields).await;
        assert!(done.status.is_redirection() || done.status.is_success(), "{}", done.text);
        if action == "release" {
            hold(&db, "held again").await;
        }
        // For the next action.
        db.execute("delete from {}.idempotency_keys where key = 'held'; delete from {}.unfinished where key = 'held'").await;
        hold(&db, "held").await;
    }
}

#[tokio::test]
async fn other_methods_change_nothing() {
    let db = staged().await;
    let mut browser = Browser::new(&db, Access::All);
    for method in [Method::PUT, Method::DELETE, Method::PATCH] {
        for site in ["same-origin", "cross-site"] {
            let path = format!("/{}/release?scope=test%2Fscope&key=held", db.schema);
            let request =
                Request::builder().method(&method).uri(path).header("sec-fetch-site", site);
            let answer = browser.send(request.body(Body::empty()).unwrap()).await;
            assert!(answer.status.is_client_error());
        }
    }
    assert_eq!(row(&db, "held").await, "1 true");
}

#[tokio::test]
async fn the_roles_of_the_security_page_suffice() {
    let db = with_roles().await;
    hold(&db, "held").await;
    half_done(&db, "half", "output", "error").await;
    fail_message(&db, "dead", 3, "error").await;
    for name in ["viewer", "operator"] {
        let mut browser = Browser::with_options(&db, as_role(&db, name), Access::All);
        for page in PAGES {
            browser.get(page).await.is(200).lacks("role=\"alert\"");
        }
        let asked = browser.get("reveal?scope=test%2Fscope&key=half&step=charge").await;
        let token = asked.field("token");
        let fields =
            [("scope", "test/scope"), ("key", "half"), ("step", "charge"), ("token", &token)];
        browser.post("reveal", &fields).await.is(200).has("output");
        for (action, key) in &ACTIONS[..3] {
            let done = browser.confirm(action, key, &[("decision", "release")]).await;
            match name {
                "operator" => done.is(303),
                _ => done.is(403).has("lacks a right: permission denied for table"),
            };
        }
    }
}
