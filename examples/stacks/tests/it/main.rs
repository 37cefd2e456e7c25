//! The three examples against a real PostgreSQL, with the same tests.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

mod answers;
mod cancel;
mod database;
mod failures;
mod proxy;
mod races;
mod stack;

/// The tests of one library.
macro_rules! suite {
    ($name:ident, $stack:ident: $($room:ident::{$($test:ident),+ $(,)?})+) => {
        mod $name {
            $($(
                #[tokio::test]
                async fn $test() {
                    crate::$room::$test::<crate::stack::$stack>().await;
                }
            )+)+
        }
    };
}

macro_rules! suites {
    ($($name:ident: $stack:ident),+) => {
        $(suite! { $name, $stack:
            answers::{
                a_retry_gets_the_first_payment,
                a_declined_payment_is_kept,
                an_amount_below_one_is_refused,
                failed_work_leaves_nothing,
                a_response_that_was_not_kept,
            }
            races::{
                fifty_calls_with_one_key_pay_once,
                fifty_keys_of_one_account_all_pay,
                a_deadlock_is_tried_again,
            }
            failures::{
                a_lost_connection_leaves_nothing,
                a_lost_claim_is_not_committed,
                a_commit_without_answer_is_found_again,
                a_call_ends_by_its_limit,
                an_error_of_the_library_is_returned_at_once,
            }
            cancel::{
                a_call_dropped_in_its_work_leaves_nothing,
                a_call_dropped_at_any_point_pays_once,
            }
        })+
    };
}

suites! { sea_orm: SeaOrm, diesel_async: DieselAsync, tokio_postgres: TokioPostgres }

#[test]
fn each_example_is_short() {
    let sea_orm = include_str!("../../src/sea_orm.rs");
    let diesel_async = include_str!("../../src/diesel_async.rs");
    let tokio_postgres = include_str!("../../src/tokio_postgres.rs");
    for example in [sea_orm, diesel_async, tokio_postgres] {
        assert!(example.lines().count() <= 60, "{example}");
    }
}
