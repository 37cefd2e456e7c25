//! A schema with connections that plays cases one after the other.

use std::sync::Arc;

use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::check::{State, check, plant};
use super::client::{Client, Event, Isolation, Texts};
use super::orders::Orders;
use super::play::Play;
use super::programs::{Program, run};
use crate::support::db::TestDb;

#[derive(Debug, Clone)]
pub struct Case {
    pub state: State,
    pub programs: Vec<Program>,
    pub isolation: Vec<Isolation>,
    pub shares_a_row: bool,
}

impl Case {
    pub fn is_of_messages(&self) -> bool {
        let of_messages = |p: &Program| Program::ON_MESSAGES.contains(p) && *p != Program::Reap;
        self.programs.iter().any(of_messages)
    }

    pub fn scope(&self) -> &'static str {
        if self.is_of_messages() { "consumer" } else { "orders" }
    }

    /// The program that holds the claim of the initial state.
    pub fn holder(&self) -> Option<usize> {
        self.programs.iter().position(|program| program.is_leased())
    }

    /// Whether all holders finish one claim, like a caller that repeats its begin. Not if an effect is outside of the
    /// transaction.
    pub fn may_finish_twice(&self) -> bool {
        !self.programs.contains(&Program::LeasedAlone)
    }

    /// Whether the server may have to resolve a deadlock: the holder of a lapsed claim finishes its work and waits for
    /// the key's row, which a caller that took over the claim wrote before its own work. See the module.
    pub fn may_deadlock(&self) -> bool {
        self.shares_a_row && self.state == State::Lapsed && self.programs.contains(&Program::Holder)
    }

    pub fn name(&self, program: usize) -> char {
        ['A', 'B', 'C'][program]
    }
}

/// A schema, and connections that play one interleaving after the other in it.
pub struct Lane {
    control: PgConnection,
    texts: Arc<Texts>,
    seats: Vec<Seat>,
    played: u64,
}

struct Seat {
    conn: Option<PgConnection>,
    pid: i32,
    settings: String,
}

impl Seat {
    async fn take(&mut self, isolation: Isolation, may_deadlock: bool) -> PgConnection {
        let mut conn = self.conn.take().expect("a free seat");
        // A deadlock must be visible, not resolved.
        let timeout = if may_deadlock { "10ms" } else { "5min" };
        let settings = format!(
            "set default_transaction_isolation = '{}'; set deadlock_timeout = '{timeout}'",
            isolation.name()
        );
        if self.settings != settings {
            let set = sqlx::raw_sql(AssertSqlSafe(settings.clone()));
            set.execute(&mut conn).await.unwrap();
            self.settings = settings;
        }
        conn
    }
}

impl Lane {
    /// `change` is applied to each statement that `run` sends.
    pub async fn open(db: &TestDb, change: impl Fn(&str) -> String) -> Self {
        db.execute(
            "alter table {}.effect add column who text not null;
             create index on {}.effect (key);
             create table {}.account (key text primary key, effects int not null default 0)",
        )
        .await;
        let mut seats = vec![];
        for _ in 0..3 {
            let mut conn = db.conn().await;
            let pid = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut conn);
            let pid = pid.await.unwrap();
            seats.push(Seat { conn: Some(conn), pid, settings: String::new() });
        }
        let render = |text: &str| change(text).replace(":\"schema\"", &db.schema);
        let texts = Texts {
            schema: db.schema.clone(),
            look: render(include_str!("../../../sql/statements/look.sql")),
            insert: render(include_str!("../../../sql/statements/insert_finished.sql")),
        };
        Self { control: db.conn().await, texts: Arc::new(texts), seats, played: 0 }
    }

    /// Plays the case once.
    ///
    /// # Errors
    /// The error, with everything that was sent. The lane is unusable then.
    pub async fn play(&mut self, case: &Case, orders: &mut Orders) -> Result<(), String> {
        self.played += 1;
        let key = format!("k{}", self.played);
        let tokens: Vec<_> =
            case.programs.iter().map(|_| Uuid::from_u128(fastrand::u128(..))).collect();
        let planted = case.holder().map_or(Uuid::from_u128(1), |holder| tokens[holder]);
        plant(&mut self.control, &self.texts, case, &key, planted).await.unwrap();

        let pids = self.seats[..case.programs.len()].iter().map(|seat| seat.pid).collect();
        let (events, told) = unbounded_channel();
        let mut play = Play::new(pids, told, case.may_deadlock());
        let mut programs = JoinSet::new();
        for (me, token) in tokens.into_iter().enumerate() {
            let program = case.programs[me];
            let token =
                if program == Program::Holder && case.may_finish_twice() { planted } else { token };
            let mut client = self.client(case, &key, me, token, &mut play, &events).await;
            programs.spawn(async move {
                let answer = run(program, &mut client).await;
                let _ = client.events.send((client.me, Event::Ended(answer))); // or the interleaving is over
                (client.me, client.conn)
            });
        }
        drop(events);
        let answers = play.play_to_end(&mut self.control, orders).await;
        let answers = answers.map_err(|wrong| play.report(case, &[wrong]))?;
        while let Some(program) = programs.join_next().await {
            let (me, conn) = program.unwrap();
            self.seats[me].conn = Some(conn);
        }
        let stage = play.stage.lock().unwrap().clone();
        let ends = (planted, &play.pids[..]);
        let wrong =
            check(&mut self.control, &self.texts, case, &key, ends, (&stage, &answers)).await;
        let wrong = wrong.unwrap();
        if wrong.is_empty() { Ok(()) } else { Err(play.report(case, &wrong)) }
    }

    async fn client(
        &mut self,
        case: &Case,
        key: &str,
        me: usize,
        token: Uuid,
        play: &mut Play,
        events: &UnboundedSender<(usize, Event)>,
    ) -> Client {
        let is_live = case.state == State::InProgress;
        let client = Client {
            me,
            conn: self.seats[me].take(case.isolation[me], case.may_deadlock()).await,
            isolation: case.isolation[me],
            texts: Arc::clone(&self.texts),
            scope: case.scope(),
            key: key.to_owned(),
            token,
            shares_a_row: case.shares_a_row,
            stage: Arc::clone(&play.stage),
            turns: play.turns_of_next(),
            events: events.clone(),
            in_transaction: false,
            has_snapshot: false,
            has_lock: false,
            others_may_lock: false,
            others_lease: false,
            may_deadlock: case.may_deadlock(),
            planted_is_live: is_live && case.holder().is_none(),
        };
        client.holds_a_lease(is_live && case.holder() == Some(me)); // one is enough
        client
    }
}
