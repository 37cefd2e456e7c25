//! A route's settings under the rollout modes.

use std::sync::{Arc, OnceLock};

use http::Extensions;

use super::layer::IdempotencyLayer;
use super::route::Presence;
use crate::rollout::RolloutMode;

/// The settings that the code gives, and those of each rollout mode, made when they are needed.
#[derive(Debug)]
pub(crate) struct Settings {
    of_code: Arc<IdempotencyLayer>,
    of_modes: [OnceLock<Arc<IdempotencyLayer>>; RolloutMode::ALL.len()],
}

impl Settings {
    pub(crate) fn new(of_code: Arc<IdempotencyLayer>) -> Self {
        Self { of_code, of_modes: Default::default() }
    }

    /// The settings for a request: the database's mode for its class, or else the code's.
    pub(crate) fn of(&self, extensions: &Extensions) -> Arc<IdempotencyLayer> {
        let code = &self.of_code;
        let rollout = code.once.rollout.as_ref();
        match rollout.and_then(|rollout| rollout.mode(&code.class_of(extensions))) {
            None => Arc::clone(code),
            Some(mode) => {
                let made = self.of_modes[mode as usize].get_or_init(|| Arc::new(under(code, mode)));
                Arc::clone(made)
            }
        }
    }
}

fn under(code: &IdempotencyLayer, mode: RolloutMode) -> IdempotencyLayer {
    IdempotencyLayer {
        observe: mode == RolloutMode::Observe,
        presence: match mode {
            RolloutMode::Off => Presence::Off,
            RolloutMode::Observe if code.presence == Presence::Required => Presence::Required,
            RolloutMode::Observe | RolloutMode::Optional => Presence::Optional,
            RolloutMode::Required => Presence::Required,
        },
        ..code.clone()
    }
}
