//! The payment provider and the letter service: two remotes, one with idempotency keys and one without.

use pgonce::{Failure, Key, Response};

#[derive(Debug, Clone)]
pub(crate) struct Provider {
    http: reqwest::Client,
    url: String,
}

impl Provider {
    pub(crate) fn new(url: String) -> Self {
        Self { http: reqwest::Client::new(), url }
    }

    /// The receipt. The provider charges once per key. A declined card is final.
    pub(crate) async fn charge(&self, key: &Key, cents: i64) -> Result<String, Failure> {
        let request = self.http.post(format!("{}/charges", self.url));
        let answer = request.header("idempotency-key", key.as_str()).body(cents.to_string());
        let answer = answer.send().await?;
        if answer.status() == 402 {
            return Err(Failure::keep(Response::bytes("the card was declined").with_code(402)));
        }
        Ok(answer.error_for_status()?.text().await?)
    }

    /// The letter service knows no keys: each call sends a letter.
    pub(crate) async fn send_letter(&self, text: &str) -> Result<String, reqwest::Error> {
        let letter = self.http.post(format!("{}/letters", self.url)).body(text.to_owned());
        letter.send().await?.error_for_status()?.text().await
    }
}
