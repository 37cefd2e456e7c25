//! What is counted of an operation.

/// The events and the list of them in one place: a counter's place is its event's number.
macro_rules! events {
    ($($event:ident),* $(,)?) => {
        /// Something that happened to an operation. Each one is a counter of its class.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Event {
            $($event),*
        }

        #[cfg(feature = "metrics")]
        impl Event {
            pub(crate) const ALL: &[Self] = &[$(Self::$event),*];
            pub(crate) const COUNT: usize = Self::ALL.len();
        }
    };
}

events! {
    Begun,
    Started,
    Recovered,
    Replayed,
    Omitted,
    InProgress,
    Mismatch,
    Held,
    Completed,
    Failed,
    Released,
    ClaimLost,
    CommitUnknown,
    Restarted,
    LeaseRenewed,
    LeaseNotRenewed,
    Acknowledged,
    Retried,
    DeadLettered,
    Unkeyed,
    ObservedReplayed,
    ObservedInProgress,
    ObservedMismatch,
    ObservedHeld,
}
