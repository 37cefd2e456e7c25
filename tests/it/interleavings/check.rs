//! The state of a key before an interleaving, and what must hold afterwards.

use sqlx::postgres::PgRow;
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::calls::{ATTEMPTS, FINGERPRINT};
use super::client::{Answer, Stage, Texts, text};
use super::lane::Case;
use super::programs::Program;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Absent,
    Finished,
    Failed,
    /// A leased claim past its lease. Its holder is the first leased program of the case.
    Lapsed,
    /// Finished once, and forgotten.
    Expired,
    /// A live leased claim. Its holder is the first leased program of the case.
    InProgress,
    Released,
}

impl State {
    pub const ALL: [Self; 7] = [
        Self::Absent,
        Self::Finished,
        Self::Failed,
        Self::Lapsed,
        Self::Expired,
        Self::InProgress,
        Self::Released,
    ];

    /// A message is never leased.
    pub const OF_MESSAGES: [Self; 6] =
        [Self::Absent, Self::Finished, Self::Failed, Self::Lapsed, Self::Expired, Self::Released];

    /// Status, whether it has a token, when its lease ends (minutes from now), when it is forgotten, whether it is
    /// leased.
    fn row(self) -> Option<(i16, bool, Option<i32>, i32, bool)> {
        match self {
            Self::Absent => None,
            Self::Finished => Some((2, false, None, 60, false)),
            Self::Failed => Some((3, false, None, 60, false)),
            Self::Lapsed => Some((1, true, Some(-1), 60, true)),
            Self::Expired => Some((2, false, None, -1, false)),
            Self::InProgress => Some((1, true, Some(60), 60, true)),
            Self::Released => Some((1, false, Some(-1), 60, true)),
        }
    }
}

const PLANTED: &str = "planted";

/// Plants the key. A finished key has its effect.
pub async fn plant(
    conn: &mut PgConnection,
    texts: &Texts,
    case: &Case,
    key: &str,
    token: Uuid,
) -> sqlx::Result<()> {
    let sql = |template: &str| AssertSqlSafe(template.replace("{}", &texts.schema));
    if case.shares_a_row {
        let account = sql("insert into {}.account (key) values ($1)");
        sqlx::query(account).bind(key).execute(&mut *conn).await?;
    }
    let Some((status, has_token, lease, expires, leased)) = case.state.row() else { return Ok(()) };
    let is_message = case.is_of_messages();
    let plant = sql(
        "with planted as (
           insert into {}.idempotency_keys
             (created_at, expires_at, lease_expires_at, token, status, scope, key, fingerprint, leased, response_body)
           select now() - interval '1 hour', now() + $4 * interval '1 minute', now() + $5 * interval '1 minute',
                  $6, $3, $1, $2, $7, nullif($8, false), $9),
         listed as (
           insert into {}.unfinished (try_at, scope, key)
           select now() + $5 * interval '1 minute', $1, $2 where $8 and $6 is not null)
         insert into {}.effect (key, who) select $2, $10 where $10 is not null",
    );
    sqlx::query(plant)
        .bind(case.scope())
        .bind(key)
        .bind(status)
        .bind(expires)
        .bind(lease)
        .bind(has_token.then_some(token))
        .bind((!is_message).then(|| FINGERPRINT.to_vec()))
        .bind(leased && !is_message)
        .bind((status != 1).then_some(PLANTED.as_bytes()))
        .bind((case.state == State::Finished).then_some(PLANTED))
        .execute(&mut *conn)
        .await?;
    Ok(())
}

struct Found {
    status: Option<i16>,
    token: Option<Uuid>,
    body: Option<String>,
    effects: Vec<String>,
    counted: Option<i32>,
    busy: i64,
}

impl Found {
    async fn read(
        conn: &mut PgConnection,
        texts: &Texts,
        case: &Case,
        key: &str,
        pids: &[i32],
    ) -> sqlx::Result<Self> {
        let found = "select k.status, k.token, k.response_body,
               array(select e.who from {}.effect e where e.key = $2 order by e.id) as effects,
               (select a.effects from {}.account a where a.key = $2) as counted,
               (select count(*) from pg_stat_activity a where a.pid = any ($3) and a.state <> 'idle') as busy
          from (values (1)) one(row)
          left join {}.idempotency_keys k on k.scope = $1 and k.key = $2";
        let found = AssertSqlSafe(found.replace("{}", &texts.schema));
        let row: PgRow =
            sqlx::query(found).bind(case.scope()).bind(key).bind(pids).fetch_one(conn).await?;
        Ok(Self {
            status: row.get("status"),
            token: row.get("token"),
            body: text(&row, "response_body"),
            effects: row.get("effects"),
            counted: row.get("counted"),
            busy: row.get("busy"),
        })
    }
}

/// Everything wrong at the end of an interleaving.
pub async fn check(
    conn: &mut PgConnection,
    texts: &Texts,
    case: &Case,
    key: &str,
    (planted, pids): (Uuid, &[i32]),
    (stage, answers): (&Stage, &[Answer]),
) -> sqlx::Result<Vec<String>> {
    let found = Found::read(conn, texts, case, key, pids).await?;
    if case.state == State::Expired {
        // Deletes the row, because a later reaper would find it.
        let gone = "delete from {}.idempotency_keys where scope = $1 and key = $2";
        let gone = AssertSqlSafe(gone.replace("{}", &texts.schema));
        sqlx::query(gone).bind(case.scope()).bind(key).execute(conn).await?;
    }
    let mut verdict = Verdict { case, stage, found, answers, wrong: stage.wrong.clone() };
    verdict.of_connections_and_claims(planted);
    verdict.of_effects();
    verdict.of_the_row();
    verdict.of_answers();
    Ok(verdict.wrong)
}

struct Verdict<'a> {
    case: &'a Case,
    stage: &'a Stage,
    found: Found,
    answers: &'a [Answer],
    wrong: Vec<String>,
}

type Finish = (i16, Option<String>);

impl Verdict<'_> {
    fn must(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.wrong.push(what());
        }
    }

    fn of_connections_and_claims(&mut self, planted: Uuid) {
        let Found { busy, status, token, .. } = self.found;
        self.must(busy == 0, || format!("{busy} connections are not idle"));
        let has_claim = status == Some(1) && token.is_some() && !self.case.is_of_messages();
        self.must(!has_claim || token == Some(planted), || "a claim is left behind".to_owned());
    }

    /// Checks that each program that reports an effect has one, and no other program has.
    fn of_effects(&mut self) {
        let mut told: Vec<String> = vec![];
        if self.case.state == State::Finished {
            told.push(PLANTED.to_owned());
        }
        for (i, answer) in self.answers.iter().enumerate() {
            if matches!(answer, Answer::Performed(_)) {
                told.push(self.case.name(i).to_string());
            }
        }
        let mut effects = self.found.effects.clone();
        told.sort();
        effects.sort();
        self.must(effects == told, || format!("effects of {effects:?}, but told {told:?}"));
        let own = effects.iter().filter(|who| *who != PLANTED).count();
        let counted = self.found.counted;
        self.must(counted.is_none_or(|counted| usize::try_from(counted) == Ok(own)), || {
            format!("the shared row counts {counted:?}")
        });
    }

    /// Checks that at most one program has finished the row, as it reported; otherwise the row is unchanged.
    fn of_the_row(&mut self) {
        let planted = || Some(PLANTED.to_owned());
        let mut finishes: Vec<Finish> = vec![];
        match self.case.state {
            State::Finished => finishes.push((2, planted())),
            State::Failed if !self.is_redriven() => finishes.push((3, planted())),
            _ => {}
        }
        for answer in self.answers {
            match answer {
                Answer::Performed(body) => finishes.push((2, body.clone())),
                Answer::Kept(body) => finishes.push((3, body.clone())),
                _ => {}
            }
        }
        self.must(finishes.len() <= 1, || format!("finished more than once: {finishes:?}"));
        let row = self.finish();
        if let Some(finish) = finishes.first() {
            self.must(row.as_ref() == Some(finish), || {
                format!("{finish:?} was told, the row is {row:?}")
            });
        } else {
            let is_old = self.case.state == State::Expired && row == Some((2, planted()));
            self.must(row.is_none() || is_old, || format!("the row is {row:?}, and no program's"));
            self.must(!self.one_should_have(), || "none has performed it".to_owned());
        }
    }

    fn finish(&self) -> Option<Finish> {
        let status = self.found.status.filter(|status| *status != 1)?;
        Some((status, self.found.body.clone()))
    }

    fn is_redriven(&self) -> bool {
        self.answers.contains(&Answer::Nothing("redriven".to_owned()))
    }

    /// The failed attempts at a message.
    fn attempts(&self) -> i32 {
        let is_counted = |answer: &&Answer| **answer == Answer::Nothing("counted".to_owned());
        let planted = i32::from(matches!(self.case.state, State::Lapsed | State::Released));
        self.answers.iter().filter(is_counted).fold(planted, |attempts, _| attempts + 1)
    }

    /// Whether the key was free and no program's work is made to fail.
    fn one_should_have(&self) -> bool {
        let perform = [
            Program::LockOnly,
            Program::LockOnlyLate,
            Program::LockOnlyWaiting,
            Program::VerbsWaiting,
        ];
        !matches!(self.case.state, State::Finished | State::Failed | State::InProgress)
            && self.case.programs.iter().all(|program| perform.contains(program))
    }

    fn of_answers(&mut self) {
        let row = self.finish();
        for (i, answer) in self.answers.iter().enumerate() {
            let name = self.case.name(i);
            match answer {
                Answer::Replay { status, body } => {
                    let told = (if status == "completed" { 2 } else { 3 }, body.clone());
                    let was = self.is_redriven() && told == (3, Some(PLANTED.to_owned()));
                    self.must(was || row.as_ref() == Some(&told), || {
                        format!("{name} was told {told:?}, the row is {row:?}")
                    });
                }
                Answer::Failed(failed_at) => {
                    let before = self.stage.decided_at.is_some_and(|at| at < *failed_at);
                    self.must(!before, || {
                        format!("{name} believed its error, though the key was finished before")
                    });
                }
                Answer::Nothing(why) if why == "lost" => {
                    // If work is outside of a transaction, only the first has the live claim's token.
                    let was_its = self.case.holder() == Some(i) || self.case.may_finish_twice();
                    let is_kept = was_its && self.case.state == State::InProgress && row.is_none();
                    self.must(!is_kept, || format!("{name} has lost a live claim to no program"));
                }
                Answer::Nothing(why) if why == "dead" => {
                    let used = self.attempts();
                    let is_dead = used >= ATTEMPTS || self.case.state == State::Failed;
                    self.must(is_dead, || format!("{name} was told dead after {used} attempts"));
                }
                Answer::Broken(why) => self.must(false, || format!("{name}: {why}")),
                Answer::Performed(_)
                | Answer::Kept(_)
                | Answer::InProgress
                | Answer::Nothing(_) => {}
            }
        }
    }
}
