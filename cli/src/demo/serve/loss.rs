//! The lossy connection: what becomes of a request between the browser and the payment server.

use std::hash::{DefaultHasher, Hash, Hasher};

use fastrand::Rng;
use serde::Deserialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Answered,
    /// The server does the work; its answer is lost.
    AnswerLost,
    /// The request never reaches the server.
    RequestLost,
}

/// One request of the page: its payment, the click that sent it, and how often that click has sent it.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Sent {
    payment: i64,
    click: u32,
    attempt: u32,
    /// The slider's position, 0 to 1.
    loss: f64,
}

/// Of the losses. Most people do not fear these, since nothing was done; the client cannot tell them from the others.
const REQUESTS_LOST: f64 = 0.25;

impl Sent {
    /// Depends on nothing but the request, so that both services suffer the same losses.
    pub(super) fn fate(&self) -> Fate {
        let mut hasher = DefaultHasher::new();
        (self.payment, self.click, self.attempt).hash(&mut hasher);
        let mut rng = Rng::with_seed(hasher.finish());
        if rng.f64() >= self.loss {
            Fate::Answered
        } else if rng.f64() < REQUESTS_LOST {
            Fate::RequestLost
        } else {
            Fate::AnswerLost
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_follow_the_slider() {
        let lost = |loss| {
            let fates =
                (0..1000).map(|payment| Sent { payment, click: 0, attempt: 1, loss }.fate());
            let fates = fates.collect::<Vec<_>>();
            let count = |fate| fates.iter().filter(|one| **one == fate).count();
            (count(Fate::AnswerLost), count(Fate::RequestLost))
        };
        assert_eq!(lost(0.0), (0, 0));
        let (answers, requests) = lost(0.4);
        assert!(
            (250..350).contains(&answers) && (60..140).contains(&requests),
            "{answers} {requests}"
        );
        let (answers, requests) = lost(1.0);
        assert_eq!(answers + requests, 1000);
    }
}
