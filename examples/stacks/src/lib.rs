//! A payment that takes effect once per key, in a transaction of [SeaORM](sea_orm), [diesel-async](diesel_async) or
//! [tokio-postgres](tokio_postgres), through pgonce's SQL functions. This file has what the three share.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout_at};

pub mod diesel_async;
mod error;
pub mod sea_orm;
pub mod tokio_postgres;

pub use error::PayError;

/// What a call returns, first call or retry.
pub type Paid = Result<Payment, PayError>;

/// Tenant and operation.
pub const SCOPE: &str = "acme/payments.create";

/// Asks for the right to perform. Arguments: scope, key, customer, amount. The last two are the request.
pub const BEGIN: &str =
    "select answer, token::text, status, convert_from(response_body, 'UTF8') as response
  from pgonce.begin_operation($1, $2, pgonce.fingerprint(convert_to($3, 'UTF8'), int8send($4)))";

/// Finishes with a payment. Arguments: scope, key, token, response.
pub const COMPLETE: &str =
    "select from pgonce.complete($1, $2, $3::text::uuid, 201, null, convert_to($4, 'UTF8'))";

/// Finishes with a final failure, which every retry gets. Arguments: scope, key, token, reason.
pub const FAIL: &str =
    "select from pgonce.fail($1, $2, $3::text::uuid, 402, null, convert_to($4, 'UTF8'))";

/// What to pay.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whose account pays.
    pub customer: String,
    /// How much. At least 1.
    pub amount: i64,
}

impl Request {
    /// Refuses what no payment can be, before anything is sent.
    ///
    /// # Errors
    /// [`PayError::Invalid`], if the amount is less than 1: it would credit the account.
    pub fn check(&self) -> Result<(), PayError> {
        match self.amount {
            ..1 => Err(PayError::Invalid { field: "amount", value: self.amount, min: 1 }),
            _ => Ok(()),
        }
    }
}

/// What was paid. A retry gets the payment of the first call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// What is left in the account.
    pub balance: i64,
}

impl Payment {
    /// The payment that leaves this balance in the account. None: there is no account.
    ///
    /// # Errors
    /// The customer is unknown, or the balance too low.
    pub fn of(balance: Option<i64>) -> Paid {
        match balance.ok_or(PayError::NoCustomer)? {
            ..0 => Err(PayError::Declined("the balance is too low".to_owned())),
            balance => Ok(Self { balance }),
        }
    }

    /// The response to store.
    ///
    /// # Errors
    /// If serde fails.
    pub fn to_json(&self) -> Result<String, PayError> {
        serde_json::to_string(self).map_err(|error| PayError::database(false, error))
    }
}

/// A row of [`BEGIN`]: answer, token, status, response.
pub type Row = (String, Option<String>, Option<String>, Option<String>);

/// What [`BEGIN`] says to do.
#[derive(Debug)]
pub enum Begun {
    /// Do the work, and finish with this token.
    Started(String),
    /// Return what the first call returned.
    Replay(Paid),
}

impl Begun {
    /// Reads a row of [`BEGIN`].
    ///
    /// # Errors
    /// The answers that are neither a right to perform nor a replay.
    pub fn of((answer, token, status, response): Row) -> Result<Self, PayError> {
        match (answer.as_str(), token, status.as_deref(), response) {
            ("started", Some(token), _, _) => Ok(Self::Started(token)),
            ("replay", _, Some("failed"), Some(reason)) => {
                Ok(Self::Replay(Err(PayError::Declined(reason))))
            }
            ("replay", _, _, Some(json)) => match serde_json::from_str(&json) {
                Ok(payment) => Ok(Self::Replay(Ok(payment))),
                Err(error) => Err(PayError::database(false, error)),
            },
            ("replay", _, _, None) => Err(PayError::Omitted),
            ("in_progress", ..) => Err(PayError::InProgress),
            ("mismatch", ..) => Err(PayError::Mismatch),
            ("held", ..) => Err(PayError::Held),
            (other, ..) => Err(PayError::database(false, format!("unknown answer {other}"))),
        }
    }
}

/// Calls `pay` until it has an answer: again while another call is in progress, and after errors that a retry can cure.
/// Takes no longer than `wait`. A try that runs when the time is up is dropped. Uses no connection between two tries.
///
/// # Errors
/// The last error of `pay`, or [`PayError::TimedOut`] if the last try was dropped: whether it paid is then unknown.
pub async fn answered<F: Future<Output = Paid>>(wait: Duration, pay: impl Fn() -> F) -> Paid {
    let deadline = Instant::now() + wait;
    let mut pause = Duration::from_millis(5);
    loop {
        match timeout_at(deadline, pay()).await.unwrap_or(Err(PayError::TimedOut)) {
            Err(error) if error.is_retryable() && Instant::now() + pause < deadline => {}
            ended => return ended,
        }
        // At random, so that calls that collided do not collide again.
        sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}
