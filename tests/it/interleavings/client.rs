//! A program's connection. Each statement waits for its turn, is sent and is recorded.

use std::fmt;
use std::sync::{Arc, Mutex};

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

/// A statement's result, or its SQLSTATE (for a lost claim, with its message).
pub type Tried<T> = Result<T, String>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

impl Isolation {
    pub const ALL: [Self; 3] = [Self::ReadCommitted, Self::RepeatableRead, Self::Serializable];

    pub fn name(self) -> &'static str {
        match self {
            Self::ReadCommitted => "read committed",
            Self::RepeatableRead => "repeatable read",
            Self::Serializable => "serializable",
        }
    }
}

/// Whether the order of a statement among those of other programs can matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It reads what others write, or writes or locks what others may touch.
    Shared,
    /// No other program can touch it, once its transaction has its snapshot.
    Own,
}

#[derive(Debug)]
pub enum Event {
    /// The program is ready to send its next statement.
    Ready(Reach),
    Ended(Answer),
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The effect is committed, with a finished row that has this body.
    Performed(Option<String>),
    /// A failure with this body is stored.
    Kept(Option<String>),
    Replay {
        status: String,
        body: Option<String>,
    },
    InProgress,
    /// Its work's error is final. The number is the moment when the work failed.
    Failed(usize),
    /// It reports nothing about the effect: a release, a reaper, a refused operator.
    Nothing(String),
    /// It started too often, or met an error that no rule allows.
    Broken(String),
}

/// What all programs of one interleaving see.
#[derive(Debug, Default, Clone)]
pub struct Stage {
    pub trace: Vec<String>,
    /// One entry per program.
    pub working: Vec<Working>,
    /// Errors, reported by the programs that noticed them.
    pub wrong: Vec<String>,
    /// When the first effect or failure was committed, as a position in the trace.
    pub decided_at: Option<usize>,
}

/// Why a program may keep another one from the key.
#[derive(Debug, Default, Clone, Copy)]
pub struct Working {
    /// The statement that waits for its answer.
    pub sends: Option<&'static str>,
    pub in_transaction: bool,
    pub answered: bool,
    pub leased: bool,
}

impl Working {
    fn may_have_the_lock(self) -> bool {
        self.sends.is_some() || (self.in_transaction && !self.answered)
    }
}

/// The statements' texts in the schema of a lane.
#[derive(Debug, Clone)]
pub struct Texts {
    pub schema: String,
    pub look: String,
    pub insert: String,
}

pub struct Client {
    pub me: usize,
    pub conn: PgConnection,
    pub isolation: Isolation,
    pub texts: Arc<Texts>,
    pub scope: &'static str,
    pub key: String,
    /// The token of a leased claim, chosen by the client.
    pub token: Uuid,
    /// Whether the work also writes a row that all programs' work shares.
    pub shares_a_row: bool,
    pub stage: Arc<Mutex<Stage>>,
    pub turns: UnboundedReceiver<()>,
    pub events: UnboundedSender<(usize, Event)>,
    pub in_transaction: bool,
    pub has_snapshot: bool,
    pub has_lock: bool,
    /// Whether, around the last statement, another program may have had the key's lock, or a live claim.
    pub others_may_lock: bool,
    pub others_lease: bool,
    pub may_deadlock: bool,
    /// Whether there is a live claim that belongs to no program.
    pub planted_is_live: bool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client {}", self.name())
    }
}

impl Client {
    pub fn name(&self) -> char {
        ['A', 'B', 'C'][self.me]
    }

    /// The body of this program's response.
    pub fn body(&self) -> String {
        format!("of {}", self.name())
    }

    pub fn stage<T>(&self, change: impl FnOnce(&mut Stage) -> T) -> T {
        change(&mut self.stage.lock().unwrap())
    }

    fn see_others(&mut self) {
        let (lock, lease) = self.stage(|stage| {
            let others = stage.working.iter().enumerate().filter(|(i, _)| *i != self.me);
            others.fold((false, false), |(lock, lease), (_, other)| {
                (lock || other.may_have_the_lock(), lease || other.leased)
            })
        });
        self.others_may_lock |= lock;
        self.others_lease |= lease;
    }

    fn working(&self, change: impl FnOnce(&mut Working)) {
        self.stage(|stage| change(&mut stage.working[self.me]));
    }

    /// Adds the meaning of a statement's rows to the trace.
    pub fn note(&self, text: &str) {
        self.stage(|stage| {
            if let Some(last) = stage.trace.last_mut() {
                last.push_str(" -> ");
                last.push_str(text);
            }
        });
    }

    pub fn moment(&self) -> usize {
        self.stage(|stage| stage.trace.len())
    }

    pub fn is_wrong(&self, what: &str) {
        let what = format!("{}: {what}", self.name());
        self.stage(|stage| stage.wrong.push(what));
    }

    /// A row has answered. Unless it has waited for the lock, this program no longer keeps others from the key.
    pub fn answered(&self) {
        if !self.has_lock {
            self.working(|working| working.answered = true);
        }
    }

    pub fn holds_a_lease(&self, holds: bool) {
        self.working(|working| working.leased = holds);
    }

    /// Allowed only while another program has the lock of the key or its row.
    pub fn refused(&self, what: &str) {
        if !self.others_may_lock {
            self.is_wrong(&format!("{what}, but no other program was at work on the key"));
        }
    }

    /// The same, but also allowed while there is a live claim.
    pub fn refused_by_claim(&self) {
        if !self.others_lease && !self.planted_is_live {
            self.refused("in progress");
        }
    }

    /// Waits for this program's turn.
    async fn turn(&mut self, statement: &'static str, reach: Reach) {
        let snapshots = self.isolation != Isolation::ReadCommitted;
        let takes_one = snapshots && self.in_transaction && !self.has_snapshot;
        let reach = if takes_one { Reach::Shared } else { reach };
        self.events.send((self.me, Event::Ready(reach))).unwrap();
        self.turns.recv().await.expect("the interleaving goes on");
        self.others_may_lock = false;
        // An old snapshot shows the past.
        self.others_lease &= snapshots && self.has_snapshot;
        self.see_others();
        self.working(|working| working.sends = Some(statement));
    }

    fn told<T>(&mut self, statement: &str, result: sqlx::Result<T>) -> Tried<T> {
        self.see_others();
        self.working(|working| working.sends = None);
        let result = result.map_err(|error| match error.as_database_error() {
            // With the message, which an operator gets.
            Some(error) if error.code().as_deref() == Some("IK002") => {
                format!("IK002: {}", error.message())
            }
            Some(error) => error.code().unwrap_or_default().into_owned(),
            None => panic!("{statement}: {error:?}"),
        });
        let line = match &result {
            Ok(_) => format!("{}: {statement}", self.name()),
            Err(code) => format!("{}: {statement} -> {code}", self.name()),
        };
        self.stage(|stage| stage.trace.push(line));
        result
    }

    /// Sends a statement without values.
    async fn send(&mut self, text: &'static str, reach: Reach) -> Tried<()> {
        self.turn(text, reach).await;
        let result = sqlx::raw_sql(text).execute(&mut self.conn).await;
        self.told(text, result).map(drop)
    }

    pub fn sql(&self, template: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(template.replace("{}", &self.texts.schema))
    }

    pub async fn ask(
        &mut self,
        name: &'static str,
        reach: Reach,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Tried<Vec<PgRow>> {
        self.turn(name, reach).await;
        let rows = query.fetch_all(&mut self.conn).await;
        self.has_snapshot = self.in_transaction;
        self.told(name, rows)
    }

    /// BEGIN takes no snapshot and no lock.
    pub async fn begin(&mut self, text: &'static str) -> Tried<()> {
        self.send(text, Reach::Own).await?;
        self.in_transaction = true;
        (self.has_snapshot, self.has_lock) = (false, false);
        self.working(|working| {
            working.in_transaction = true;
            working.answered = false;
        });
        Ok(())
    }

    async fn end(&mut self, text: &'static str) -> Tried<()> {
        let result = self.send(text, Reach::Shared).await;
        self.in_transaction = false;
        self.working(|working| working.in_transaction = false);
        result
    }

    pub async fn commit(&mut self) -> Tried<()> {
        self.end("commit").await
    }

    /// COMMIT of an effect or of a kept failure.
    pub async fn commit_decision(&mut self) -> Tried<()> {
        self.end("commit").await?;
        self.decided();
        Ok(())
    }

    pub fn decided(&self) {
        self.stage(|stage| {
            stage.decided_at.get_or_insert(stage.trace.len());
        });
    }

    pub async fn rollback(&mut self) -> Tried<()> {
        if self.in_transaction { self.end("rollback").await } else { Ok(()) }
    }

    pub async fn savepoint(&mut self) -> Tried<()> {
        self.send("savepoint work", Reach::Own).await
    }

    /// Releases the locks of the work.
    pub async fn rollback_to_savepoint(&mut self) -> Tried<()> {
        let reach = if self.shares_a_row { Reach::Shared } else { Reach::Own };
        self.send("rollback to savepoint work", reach).await
    }

    /// The work: one effect, with the name of its program.
    pub async fn work(&mut self) -> Tried<()> {
        let (text, reach) = if self.shares_a_row {
            let text =
                "with counted as (update {}.account set effects = effects + 1 where key = $1)
                        insert into {}.effect (key, who) values ($1, $2)";
            (text, Reach::Shared)
        } else if self.in_transaction {
            ("insert into {}.effect (key, who) values ($1, $2)", Reach::Own)
        } else {
            ("insert into {}.effect (key, who) values ($1, $2)", Reach::Shared)
        };
        let key = self.key.clone();
        let query = sqlx::query(self.sql(text)).bind(key).bind(self.name().to_string());
        self.ask("work", reach, query).await.map(drop)
    }

    /// Work that raises an error. The moment matters: a duplicate may have committed before.
    pub async fn fail_work(&mut self) -> Tried<()> {
        self.ask("work that fails", Reach::Shared, sqlx::query("select 1 / 0")).await.map(drop)
    }

    /// Work whose code fails without a failed statement.
    pub async fn give_work_up(&mut self) -> Tried<()> {
        self.ask("work that gives up", Reach::Shared, sqlx::query("select 1")).await.map(drop)
    }
}

pub fn text(row: &PgRow, column: &str) -> Option<String> {
    let bytes: Option<Vec<u8>> = row.get(column);
    bytes.map(|bytes| String::from_utf8(bytes).unwrap())
}
