//! Scopes built from parts: different lists give different scopes, and no part is an error.

use pgonce::{Operation, Scope};
use proptest::prelude::*;

use crate::support::db::{TestDb, word};

/// Parts that look like a separator, an escape, or no name at all.
fn parts() -> impl Strategy<Value = Vec<String>> {
    let piece = prop::sample::select(vec![
        "/",
        "%",
        "2F",
        "25",
        "a",
        "B",
        " ",
        "\u{a0}",
        "\0",
        "\n",
        "\u{85}",
        "\u{e9}",
        "\u{1f511}",
        "%sha256:",
        ".",
        "~",
        "\\",
    ]);
    let part = prop::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat());
    prop::collection::vec(part, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// proptest prints the seed and the smallest failing input.
    #[test]
    fn two_lists_of_parts_give_one_scope_only_when_they_are_equal(a in parts(), b in parts()) {
        prop_assert_eq!(a == b, Scope::of(&a) == Scope::of(&b));
    }

    #[test]
    fn lists_around_the_longest_scope_keep_apart(
        a in parts(), b in parts(), filler in 100..300_usize, cut in 0..100_usize,
    ) {
        let long = |parts: &[String], tail: usize| {
            let filler = "x".repeat(filler);
            let parts = [std::slice::from_ref(&filler), parts, &[filler[..filler.len() - tail].to_owned()]];
            parts.concat()
        };
        let (left, right) = (long(&a, 0), long(&b, cut));
        prop_assert_eq!(left == right, Scope::of(&left) == Scope::of(&right));
    }

    #[test]
    fn whatever_is_in_a_part_the_scope_is_one(
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4), 0..4),
        repeated in 1..100_usize,
    ) {
        let parts: Vec<_> = parts.iter().map(|part| part.repeat(repeated)).collect();
        let scope = Scope::of(&parts);
        prop_assert!((1..=255).contains(&scope.as_str().len()));
        prop_assert!(scope.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
        prop_assert_eq!(Scope::new(scope.as_str()).unwrap(), scope);
    }
}

#[test]
fn what_needs_no_escape_stays_readable() {
    for (parts, scope) in [
        (vec!["acme", "payments.create"], "acme/payments.create"),
        (vec!["acme", "orders/{id}/refunds"], "acme/orders%2F{id}%2Frefunds"),
        (vec!["acme", "orders", "17", "refunds"], "acme/orders/17/refunds"),
        (vec!["Acme & Sons", "50%"], "Acme%20&%20Sons/50%25"),
        (vec!["caf\u{e9}"], "caf%C3%A9"),
        (vec!["", "a", ""], "%/a/%"),
        (vec![], "/"),
    ] {
        assert_eq!(Scope::of(parts).as_str(), scope);
    }
}

#[test]
fn a_scope_that_is_too_long_ends_in_a_digest_that_nobody_can_write() {
    let long = "x".repeat(300);
    let scope = Scope::of(["acme", long.as_str()]);
    let (readable, digest) = scope.as_str().split_once("%sha256:").unwrap();
    assert_eq!((scope.as_str().len(), readable), (255, format!("acme/{}", &long[..178]).as_str()));
    // `printf 'acme/xxx…' | sha256sum`
    assert_eq!(digest, "38e0a3a121594ed7803c341c6e4734da747eb9bb998d5b0a0e80111b8bfd2b1f");
    // A tenant named like the digest is another tenant.
    assert_ne!(Scope::of(scope.as_str().split('/')), scope);
    assert_eq!(Scope::of(["x".repeat(255)]).as_str(), "x".repeat(255));
}

#[tokio::test]
async fn the_database_takes_every_scope() {
    let db = TestDb::new().await;
    let mut conn = db.conn().await;
    let long = "\u{1f511}".repeat(500);
    for part in ["", " ", "\0", "a\nb", "\u{85}", "\u{feff}", "/", "%", &long] {
        let op = Operation::new(Scope::of(["acme", part]), "k").unwrap();
        assert_eq!(word(&db.once.begin(&mut conn, &op).await.unwrap()), "started");
    }
}
