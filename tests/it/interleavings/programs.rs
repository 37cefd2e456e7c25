//! The programs: what a caller sends, and what it decides in between.

use super::client::{Answer, Client, Isolation, Tried};
use super::{lock_only, others, wrong};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `run`: begin, look, work, INSERT, commit.
    LockOnly,
    /// The same, with a longer time between the look and its lock.
    LockOnlyLate,
    /// Lock only, but first waits for another caller.
    LockOnlyWaiting,
    /// Without the look.
    Optimistic,
    /// Lock only, with work that fails.
    Failing,
    /// Optimistic, with work that fails.
    OptimisticFailing,
    /// Lock only, with work that fails with a failure to keep.
    Keep,
    Verbs,
    VerbsWaiting,
    /// Works before it begins, and so never waits.
    VerbsAfterWork,
    VerbsRelease,
    /// Finishes in a transaction with its work.
    Leased,
    /// Finishes by a procedure.
    LeasedAlone,
    /// The holder of the initial claim finishes it, perhaps too late.
    Holder,
    Reap,
    /// An operator finishes a key without a live holder.
    TakeOver,
    Receive,
    ReceiveWaiting,
    /// Its work fails, and it counts the attempt.
    ReceiveFailing,
    Redrive,
    /// Planted: sends COMMIT whatever the INSERT returned.
    CommitsBlindly,
    /// Planted: optimistic work fails, and the next look is in the old transaction.
    LooksBeforeRollback,
    /// Planted: takes "no row" for the right to continue, and sends COMMIT whatever the INSERT returned.
    IgnoresTheLock,
}

impl Program {
    pub const ON_KEYS: [Self; 16] = [
        Self::LockOnly,
        Self::LockOnlyLate,
        Self::LockOnlyWaiting,
        Self::Optimistic,
        Self::Failing,
        Self::OptimisticFailing,
        Self::Keep,
        Self::Verbs,
        Self::VerbsWaiting,
        Self::VerbsAfterWork,
        Self::VerbsRelease,
        Self::Leased,
        Self::LeasedAlone,
        Self::Holder,
        Self::Reap,
        Self::TakeOver,
    ];

    /// Only the inbox uses a consumer's scope.
    pub const ON_MESSAGES: [Self; 5] =
        [Self::Receive, Self::ReceiveWaiting, Self::ReceiveFailing, Self::Redrive, Self::Reap];

    pub fn is_leased(self) -> bool {
        matches!(self, Self::Leased | Self::LeasedAlone | Self::Holder)
    }

    /// The program that it becomes when it restarts.
    fn again(self) -> Self {
        match self {
            Self::Optimistic => Self::LockOnly,
            Self::OptimisticFailing => Self::Failing,
            other => other,
        }
    }

    /// The errors after which it restarts.
    fn may_start_again(self, code: &str, client: &Client) -> bool {
        match code {
            "40001" => client.isolation != Isolation::ReadCommitted,
            "40P01" => client.may_deadlock,
            "IK004" => true,
            "55P03" => self != self.again(), // optimistic
            _ => false,
        }
    }
}

/// The limit of a caller's starts. No interleaving of two or three programs should need so many.
const STARTS: usize = 20;

pub async fn run(mut program: Program, client: &mut Client) -> Answer {
    for _ in 0..STARTS {
        let came = start(program, client).await;
        let ended = client.rollback().await;
        match (came, ended) {
            (Ok(Some(answer)), Ok(())) => return answer,
            (Ok(None), Ok(())) => {}
            (Err(code), Ok(())) if program.may_start_again(&code, client) => {}
            (Err(code), Ok(())) | (_, Err(code)) => return Answer::Broken(code),
        }
        program = program.again();
    }
    Answer::Broken(format!("started {STARTS} times"))
}

/// `None`: restart.
async fn start(program: Program, client: &mut Client) -> Tried<Option<Answer>> {
    match program {
        Program::LockOnly => lock_only::lock_only(client).await,
        Program::LockOnlyLate => lock_only::lock_only_late(client).await,
        Program::LockOnlyWaiting => lock_only::lock_only_waiting(client).await,
        Program::Optimistic => lock_only::optimistic(client).await,
        Program::Failing => lock_only::failing(client).await,
        Program::OptimisticFailing => lock_only::optimistic_failing(client).await,
        Program::Keep => lock_only::keep(client).await,
        Program::Verbs => others::verbs(client, 0).await,
        Program::VerbsWaiting => others::verbs(client, 20_000).await,
        Program::VerbsAfterWork => others::verbs_after_work(client).await,
        Program::VerbsRelease => others::verbs_release(client).await,
        Program::Leased => others::leased(client).await,
        Program::LeasedAlone => others::leased_alone(client).await,
        Program::Holder => others::holder(client).await,
        Program::Reap => client.reap().await.map(|()| others::nothing("reaped")),
        Program::TakeOver => others::take_over(client).await,
        Program::Receive => others::receive(client, 0).await,
        Program::ReceiveWaiting => others::receive(client, 20_000).await,
        Program::ReceiveFailing => others::receive_failing(client).await,
        Program::Redrive => others::redrive(client).await,
        Program::CommitsBlindly => wrong::commits_blindly(client).await,
        Program::LooksBeforeRollback => wrong::looks_before_rollback(client).await,
        Program::IgnoresTheLock => wrong::ignores_the_lock(client).await,
    }
}
