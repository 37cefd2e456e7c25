//! What prost makes of the messages.

/// What to pay.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Order {
    /// In cents.
    #[prost(int64, tag = "1")]
    pub cents: i64,
}

/// What was paid.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Payment {
    /// The payment's number.
    #[prost(int64, tag = "1")]
    pub id: i64,
}
