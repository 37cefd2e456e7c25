//! The body of both routes' requests.

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

/// An extractor, so that handlers see only valid orders. It refuses an order before the handler uses its transaction or
/// claim: nothing is stored, and the key stays free for the corrected order.
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
        let account = self.account.trim();
        if !(1..=64).contains(&account.len()) || account.chars().any(char::is_control) {
            return Err("account must have 1 to 64 bytes and no control characters".to_owned());
        }
        if self.amount <= 0 {
            return Err("amount must be a number of cents above zero".to_owned());
        }
        let letters = self.currency.chars().all(|c| c.is_ascii_alphabetic());
        if self.currency.len() != 3 || !letters {
            return Err("currency must be three letters, such as EUR".to_owned());
        }
        Ok(())
    }
}
