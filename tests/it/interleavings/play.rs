//! One interleaving: gives each program its turns, and notices which program waits for another.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use super::client::{Answer, Event, Reach, Stage, Working};
use super::lane::Case;
use super::orders::Orders;
use crate::support::db::PATIENCE;

/// How long a statement runs before the test checks whether it waits.
const SOON: Duration = Duration::from_millis(2);

/// Statements that must not wait for another program.
const NEVER_WAIT: [&str; 8] = [
    "look",
    "look without the lock",
    "extend_leases",
    "reap",
    "take_over_claim",
    "redrive_message",
    "commit",
    "rollback",
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Between statements, or at a statement that gets its answer.
    Runs,
    /// Before its next statement.
    Ready(Reach),
    /// Its statement waits for another program.
    Blocked,
    Ended(Answer),
}

pub struct Play {
    places: Vec<Place>,
    turns: Vec<UnboundedSender<()>>,
    events: UnboundedReceiver<(usize, Event)>,
    pub pids: Vec<i32>,
    pub stage: Arc<Mutex<Stage>>,
    may_deadlock: bool,
    order: String,
}

impl Play {
    pub fn new(
        pids: Vec<i32>,
        events: UnboundedReceiver<(usize, Event)>,
        may_deadlock: bool,
    ) -> Self {
        let count = pids.len();
        let stage = Stage { working: vec![Working::default(); count], ..Stage::default() };
        Self {
            places: vec![Place::Runs; count],
            turns: vec![],
            events,
            pids,
            stage: Arc::new(Mutex::new(stage)),
            may_deadlock,
            order: String::new(),
        }
    }

    pub fn turns_of_next(&mut self) -> UnboundedReceiver<()> {
        let (give, turns) = unbounded_channel();
        self.turns.push(give);
        turns
    }

    /// Gives turns until all programs have ended.
    ///
    /// # Errors
    /// A deadlock, or a program that hangs.
    pub async fn play_to_end(
        &mut self,
        control: &mut PgConnection,
        orders: &mut Orders,
    ) -> Result<Vec<Answer>, String> {
        for program in 0..self.places.len() {
            self.settle(program, control).await?;
        }
        let mut choices = 0;
        loop {
            let Some(next) = self.next(&mut choices, orders) else {
                if self.may_deadlock && self.places.contains(&Place::Blocked) {
                    self.hear_soon(PATIENCE).await?; // from the program that the server has chosen
                    continue;
                }
                return self.answers();
            };
            self.order.push(['A', 'B', 'C'][next]);
            self.places[next] = Place::Runs;
            self.turns[next].send(()).map_err(|_| "a program is gone".to_owned())?;
            self.settle(next, control).await?;
            while self.wake(control).await? {}
        }
    }

    /// Lets the blocked programs run on that wait no more. Returns whether there was one: others may have waited for it.
    async fn wake(&mut self, control: &mut PgConnection) -> Result<bool, String> {
        let mut woken = false;
        for program in 0..self.places.len() {
            if self.places[program] == Place::Blocked && !self.waits(program, control).await {
                self.places[program] = Place::Runs;
                self.settle(program, control).await?;
                woken = true;
            }
        }
        Ok(woken)
    }

    fn next(&self, choices: &mut usize, orders: &mut Orders) -> Option<usize> {
        let is_ready = |(i, place): (usize, &Place)| match place {
            Place::Ready(reach) => Some((i, *reach)),
            _ => None,
        };
        let ready: Vec<_> = self.places.iter().enumerate().filter_map(is_ready).collect();
        let own = ready.iter().find(|(_, reach)| *reach == Reach::Own && orders.are_all());
        match (own, &ready[..]) {
            (Some((one, _)), _) | (None, [(one, _)]) => Some(*one),
            (None, []) => None,
            (None, _) => {
                *choices += 1;
                Some(ready[orders.choose(*choices - 1, ready.len())].0)
            }
        }
    }

    /// If no program is ready: all have ended, or the others wait for each other.
    fn answers(&self) -> Result<Vec<Answer>, String> {
        let mut answers = vec![];
        for place in &self.places {
            match place {
                Place::Ended(answer) => answers.push(answer.clone()),
                _ => return Err(format!("deadlock: {:?}", self.places)),
            }
        }
        Ok(answers)
    }

    /// Waits until a program is ready for its next statement, has ended, or is blocked by another program.
    async fn settle(&mut self, program: usize, control: &mut PgConnection) -> Result<(), String> {
        let since = Instant::now();
        while self.places[program] == Place::Runs {
            if self.hear_soon(SOON).await.is_ok() {
                continue;
            } else if self.waits(program, control).await {
                self.places[program] = Place::Blocked;
                self.may_wait(program)?;
            } else if since.elapsed() > PATIENCE {
                return Err(format!("hangs: {:?}", self.places));
            }
        }
        Ok(())
    }

    fn may_wait(&self, program: usize) -> Result<(), String> {
        let sends = self.stage.lock().unwrap().working[program].sends;
        match sends {
            Some(statement) if NEVER_WAIT.contains(&statement) => {
                Err(format!("{statement} of {} waits", ['A', 'B', 'C'][program]))
            }
            _ => Ok(()),
        }
    }

    /// Notes the next event, if it comes in time.
    async fn hear_soon(&mut self, patience: Duration) -> Result<(), String> {
        let heard = timeout(patience, self.events.recv()).await;
        let (program, place) = match heard {
            Ok(Some((program, Event::Ready(reach)))) => (program, Place::Ready(reach)),
            Ok(Some((program, Event::Ended(answer)))) => (program, Place::Ended(answer)),
            Ok(None) | Err(_) => return Err(format!("no news: {:?}", self.places)),
        };
        self.places[program] = place;
        Ok(())
    }

    /// Whether a program's statement waits for another program's lock.
    async fn waits(&self, program: usize, control: &mut PgConnection) -> bool {
        let waits = sqlx::query_scalar("select pg_blocking_pids($1) && $2");
        let waits = waits.bind(self.pids[program]).bind(&self.pids);
        waits.fetch_one(control).await.unwrap()
    }

    /// Everything that was sent, and what is wrong.
    pub fn report(&self, case: &Case, wrong: &[String]) -> String {
        let stage = self.stage.lock().unwrap();
        let Self { order, places, .. } = self;
        format!(
            "{case:?}\norder {order}\n  {}\nanswers {places:?}\n=> {}",
            stage.trace.join("\n  "),
            wrong.join("\n=> ")
        )
    }
}
