//! Message consumers under kill -9, measured: the recipe of many blog posts beside pgonce's inbox. `cargo run --example
//! consumers [-- --seed N]`
//!
//! Uses `DATABASE_URL`, or a temporary PostgreSQL. The program starts itself again for each consumer, kills consumers
//! at random moments, and then counts how often each message took effect. Exits with 1 if a message took effect twice
//! or not at all with pgonce.
//!
//! The queue imitates a broker: a table that consumers do not access. Deliveries and acknowledgements commit
//! separately, over their own connection, so the queue is outside of the work's transaction, as a broker is. Messages
//! that are not acknowledged in time are delivered again. Real brokers are in `examples/brokers`.
//!
//! Both sides do the same work in the same loop under the same plan of kills, without a pause between delivery and
//! acknowledgement. They differ only in `by_recipe` and `by_inbox`.

#![allow(missing_docs, reason = "a program, not an API")]

use std::process::ExitCode;
use std::time::Duration;

use pgonce::{Inbox, Lease, Message, PgOnce, Verdict};
use pgonce_testing::{Database, Options};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use tokio::process::{Child, Command};

use broker::{Broker, Delivery};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

const MESSAGES: i32 = 2000;
/// One message in this many is delivered to two consumers at once, as brokers sometimes do.
const TWICE: i32 = 20;
const CONSUMERS: usize = 4;
/// Fewer if the queue is empty before.
const KILLS: u32 = 100;
/// Between two kills, in milliseconds.
const PAUSE: std::ops::RangeInclusive<u64> = 10..=60;
/// A message that is not acknowledged within this time is delivered again.
const TIME_OUT: Duration = Duration::from_secs(1);
/// The consumers' application name. It shows when the last session has ended.
const CONSUMER: &str = "pgonce example: consumer";

const RECIPE: &str = "recipe";
const PGONCE: &str = "pgonce";

/// The effect of a message. It should happen once.
async fn work(tx: &mut PgConnection, side: &str, id: &str) -> sqlx::Result<()> {
    let sql = "insert into consumers_example.effect (side, message) values ($1, $2)";
    sqlx::query(sql).bind(side).bind(id).execute(tx).await.map(drop)
}

/// Looks whether the message was processed; if not, does the work, then records it as processed.
async fn by_recipe(pool: &PgPool, id: &str) -> sqlx::Result<Verdict> {
    let look = "select exists (select from consumers_example.processed_messages where id = $1)";
    let processed: bool = sqlx::query_scalar(look).bind(id).fetch_one(pool).await?;
    if !processed {
        let mut tx = pool.begin().await?;
        work(&mut tx, RECIPE, id).await?;
        tx.commit().await?;
        // If killed here, the work is done but not recorded. Or another consumer of the same message has looked too,
        // and found nothing.
        let note = "insert into consumers_example.processed_messages (id) values ($1)
                    on conflict do nothing";
        sqlx::query(note).bind(id).execute(pool).await?;
    }
    Ok(Verdict::Ack)
}

/// Id and work are one commit. Two consumers of a message wait for each other.
async fn by_inbox(inbox: &Inbox, pool: &PgPool, delivery: &Delivery) -> Verdict {
    let id = delivery.id.as_str();
    let message = Message::new(id).redelivered(delivery.number > 1);
    inbox.handle(pool, &message, async |tx| work(tx, PGONCE, id).await).await.verdict
}

/// One consumer: delivers, handles and acknowledges until the queue is empty.
async fn consume(side: &str, options: PgConnectOptions) -> Result<()> {
    let options = options.application_name(CONSUMER);
    let mut broker = Broker::connect(&options).await?;
    let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await?;
    // Not longer than the queue's time-out.
    let lease = Lease::new(Duration::from_secs(1))?;
    let inbox = Inbox::new(&PgOnce::new(), "consumers_example")?.lease(lease)?;
    loop {
        let Some(delivery) = broker.deliver(side).await? else {
            if broker.left(side).await? == 0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await; // other consumers have the rest, or had it
            continue;
        };
        let verdict = match side {
            RECIPE => by_recipe(&pool, &delivery.id).await?,
            _ => by_inbox(&inbox, &pool, &delivery).await,
        };
        match verdict {
            Verdict::Retry(after) => broker.again_after(side, &delivery, after).await?,
            Verdict::Ack => broker.acknowledge(side, &delivery).await?,
            // In production, people would look at the message. Here it counts as lost.
            other => {
                eprintln!("{}: {other:?}", delivery.id);
                broker.acknowledge(side, &delivery).await?;
            }
        }
    }
}

/// Imitates a broker with time-outs, such as SQS.
mod broker {
    use super::{Connection, Duration, PgConnectOptions, PgConnection, TIME_OUT};

    pub(super) struct Broker(PgConnection);

    pub(super) struct Delivery {
        pub(super) id: String,
        /// 1 for the first delivery.
        pub(super) number: i32,
    }

    impl Broker {
        pub(super) async fn connect(options: &PgConnectOptions) -> sqlx::Result<Self> {
            PgConnection::connect_with(options).await.map(Self)
        }

        /// Takes the next message and hides it from other consumers until its time-out. The first delivery of a message
        /// for two consumers does not hide it.
        pub(super) async fn deliver(&mut self, side: &str) -> sqlx::Result<Option<Delivery>> {
            let sql = "
                update consumers_example.queue q
                   set deliveries = q.deliveries + 1,
                       visible_at = case when q.twice and q.deliveries = 0 then q.visible_at
                                         else clock_timestamp() + $2 end
                  from (select side, id from consumers_example.queue
                         where side = $1 and not acknowledged and visible_at <= clock_timestamp()
                         order by visible_at limit 1 for update skip locked) next
                 where (q.side, q.id) = (next.side, next.id)
                returning q.id, q.deliveries";
            let next = sqlx::query_as::<_, (String, i32)>(sql).bind(side).bind(TIME_OUT);
            let next = next.fetch_optional(&mut self.0).await?;
            Ok(next.map(|(id, number)| Delivery { id, number }))
        }

        pub(super) async fn acknowledge(&mut self, side: &str, of: &Delivery) -> sqlx::Result<()> {
            let sql = "update consumers_example.queue set acknowledged = true
                        where side = $1 and id = $2";
            sqlx::query(sql).bind(side).bind(&of.id).execute(&mut self.0).await.map(drop)
        }

        pub(super) async fn again_after(
            &mut self,
            side: &str,
            of: &Delivery,
            after: Duration,
        ) -> sqlx::Result<()> {
            let sql = "update consumers_example.queue set visible_at = clock_timestamp() + $3
                        where side = $1 and id = $2";
            let update = sqlx::query(sql).bind(side).bind(&of.id).bind(after);
            update.execute(&mut self.0).await.map(drop)
        }

        /// The number of unacknowledged messages.
        pub(super) async fn left(&mut self, side: &str) -> sqlx::Result<i64> {
            let sql = "select count(*) from consumers_example.queue
                        where side = $1 and not acknowledged";
            sqlx::query_scalar(sql).bind(side).fetch_one(&mut self.0).await
        }
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = std::env::args().skip(1).collect::<Vec<_>>();
    let arguments = arguments.iter().map(String::as_str).collect::<Vec<_>>();
    let seed = match arguments[..] {
        [] => fastrand::u64(..1_000_000),
        ["--seed", seed] => seed.parse()?,
        ["consume", side @ (RECIPE | PGONCE)] => {
            consume(side, std::env::var("DATABASE_URL")?.parse()?).await?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => return Err("usage: consumers [--seed N]".into()),
    };
    let database = Database::from_env(&Options::new()).await?;
    let proved = compare(&database.connect_options(), seed).await;
    database.stop().await;
    Ok(if proved? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs both sides and prints the results. Returns whether pgonce had no doubles and no losses.
async fn compare(options: &PgConnectOptions, seed: u64) -> Result<bool> {
    let mut conn = PgConnection::connect_with(options).await?;
    // Distributions append their own name after a space.
    let version = "select split_part(current_setting('server_version'), ' ', 1)";
    let version: String = sqlx::query_scalar(version).fetch_one(&mut conn).await?;
    println!(
        "\
On PostgreSQL {version}, {CONSUMERS} consumers take {MESSAGES} messages from a queue that delivers at least once. Handling
a message inserts a row. At random moments a consumer is killed with kill -9, and a new one started. Messages
that the killed one had not acknowledged are delivered again after {} s. One message in {TWICE} is delivered to
two consumers at once. (--seed {seed} repeats the plan, but not the machine's timing.)

  recipe: look in processed_messages; work, commit; insert the id, commit; acknowledge
  pgonce: inbox.handle, with work and id in one commit; acknowledge
",
        TIME_OUT.as_secs()
    );
    prepare(&mut conn, seed).await?;
    let mut counts = Vec::new();
    for side in [RECIPE, PGONCE] {
        let began = std::time::Instant::now();
        let kills = storm(side, options, seed).await?;
        println!("{side}: the queue is empty after {:.1} s", began.elapsed().as_secs_f64());
        counts.push(Count::of(&mut conn, side, kills).await?);
    }
    let [recipe, pgonce] = &counts[..] else { unreachable!("there are two sides") };
    println!("\n{:36}{RECIPE:>10}{PGONCE:>10}", "");
    for ((name, recipe), (_, pgonce)) in recipe.rows().into_iter().zip(pgonce.rows()) {
        println!("{name:36}{recipe:>10}{pgonce:>10}");
    }
    let proved = pgonce.doubles == 0 && pgonce.lost == 0;
    println!();
    match recipe.doubles {
        0 => println!("With the recipe, no message took effect twice this time."),
        n => println!(
            "\
With the recipe, {n} effects are doubles. {} times, a consumer was killed after the commit of its work and
before the commit of the id; {} times, two consumers looked before either inserted.",
            n - recipe.of_two,
            recipe.of_two
        ),
    }
    match proved {
        true => println!("With pgonce, all {MESSAGES} messages took effect once."),
        false => println!(
            "FAILED: with pgonce, {} double effects and {} lost messages. This is a bug: please report it.",
            pgonce.doubles, pgonce.lost
        ),
    }
    Ok(proved)
}

/// Runs consumers and kills them at work until the queue is empty. Returns the number of kills.
async fn storm(side: &str, options: &PgConnectOptions, seed: u64) -> Result<u32> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut broker = Broker::connect(options).await?;
    let start = || start(side, options);
    let mut consumers = (0..CONSUMERS).map(|_| start()).collect::<Result<Vec<_>>>()?;
    let mut kills = 0;
    while kills < KILLS && broker.left(side).await? > 0 {
        tokio::time::sleep(Duration::from_millis(random.u64(PAUSE))).await;
        let victim = random.choice(&mut consumers).ok_or("there are consumers")?;
        if victim.try_wait()?.is_some() {
            break; // the queue is empty, or a consumer failed: see below
        }
        victim.kill().await?;
        *victim = start()?;
        kills += 1;
    }
    for mut consumer in consumers {
        let status = consumer.wait().await?;
        if !status.success() {
            return Err(format!("a consumer ended with {status}").into());
        }
    }
    Ok(kills)
}

/// Starts this program as a consumer.
fn start(side: &str, options: &PgConnectOptions) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["consume", side]).env("DATABASE_URL", options.to_url_lossy().as_str());
    Ok(command.kill_on_drop(true).spawn()?)
}

/// The results of one side.
struct Count {
    kills: u32,
    deliveries: i64,
    effects: i64,
    doubles: i64,
    /// The doubles of messages that two consumers had at once. The other doubles came from redeliveries.
    of_two: i64,
    lost: i64,
}

impl Count {
    async fn of(conn: &mut PgConnection, side: &str, kills: u32) -> Result<Self> {
        // A COMMIT that a killed consumer has sent still takes effect.
        let busy = "select count(*) from pg_stat_activity where application_name = $1";
        while sqlx::query_scalar::<_, i64>(busy).bind(CONSUMER).fetch_one(&mut *conn).await? > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let sql = "
            select sum(deliveries)::bigint, sum(effects)::bigint,
                   sum(greatest(effects - 1, 0))::bigint,
                   coalesce(sum(greatest(effects - 1, 0)) filter (where twice), 0)::bigint,
                   count(*) filter (where effects = 0)
              from (select q.twice, q.deliveries,
                           (select count(*) from consumers_example.effect e
                             where (e.side, e.message) = (q.side, q.id)) as effects
                      from consumers_example.queue q where q.side = $1) per_message";
        let (deliveries, effects, doubles, of_two, lost) =
            sqlx::query_as(sql).bind(side).fetch_one(conn).await?;
        Ok(Self { kills, deliveries, effects, doubles, of_two, lost })
    }

    fn rows(&self) -> [(&'static str, i64); 7] {
        [
            ("messages", i64::from(MESSAGES)),
            ("consumers killed", i64::from(self.kills)),
            ("deliveries", self.deliveries),
            ("effects", self.effects),
            ("doubles", self.doubles),
            ("  where two consumers had it at once", self.of_two),
            ("lost", self.lost),
        ]
    }
}

async fn prepare(conn: &mut PgConnection, seed: u64) -> Result<()> {
    PgOnce::new().migrate(conn).await?;
    let tables = "
        drop schema if exists consumers_example cascade;
        create schema consumers_example;
        create table consumers_example.queue (
          side text, id text, twice boolean not null, deliveries int not null default 0,
          visible_at timestamptz not null default clock_timestamp(),
          acknowledged boolean not null default false, primary key (side, id));
        create index on consumers_example.queue (side, visible_at) where not acknowledged;
        create table consumers_example.processed_messages (id text primary key);
        create table consumers_example.effect (side text not null, message text not null);
        create index on consumers_example.effect (message);";
    sqlx::raw_sql(tables).execute(&mut *conn).await?;
    let mut random = fastrand::Rng::with_seed(seed);
    let ids = (0..MESSAGES).map(|n| format!("{:08x}-{n}", random.u32(..))).collect::<Vec<_>>();
    let twice = (0..MESSAGES).map(|_| random.i32(0..TWICE) == 0).collect::<Vec<_>>();
    // Both sides get the same messages. Each seed has its own ids.
    let publish = "insert into consumers_example.queue (side, id, twice)
                   select s, m.* from unnest($1::text[]) s, unnest($2::text[], $3::bool[]) m";
    let sides = [RECIPE, PGONCE];
    sqlx::query(publish).bind(&sides[..]).bind(ids).bind(twice).execute(conn).await?;
    Ok(())
}
