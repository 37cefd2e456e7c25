//! What both routes take.

use axum::Json;
use axum::extract::{FromRequest, Request};
use serde::Deserialize;

use crate::error::ApiError;

#[derive(Debug, Clone, Deserialize)]
pub struct Order {
    pub account: String,
    /// In cents.
    pub amount: i64,
    pub currency: String,
}

const CURRENCIES: [&str; 3] = ["EUR", "GBP", "USD"];

/// An extractor, so a handler never sees an order that makes no sense. It says so before the handler
/// has used its transaction or claim: nothing is stored, and the key is still free for the order that
/// was meant.
impl<S: Send + Sync> FromRequest<S> for Order {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Json(order) = Json::<Self>::from_request(request, state).await?;
        order.check().map_err(ApiError::Invalid)?;
        Ok(order)
    }
}

impl Order {
    fn check(&self) -> Result<(), String> {
        let fits = |c: char| c.is_alphanumeric() || "-_.".contains(c);
        if !(1..=64).contains(&self.account.len()) || !self.account.chars().all(fits) {
            return Err(
                "account takes 1 to 64 bytes of letters, digits, `.`, `-` and `_`".to_owned()
            );
        }
        if self.amount <= 0 {
            return Err("amount takes a number of cents above zero".to_owned());
        }
        if !CURRENCIES.contains(&self.currency.as_str()) {
            return Err(format!("currency takes one of {}", CURRENCIES.join(", ")));
        }
        Ok(())
    }
}
