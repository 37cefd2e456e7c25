//! What callers can do to each other on one key, tried in every order.
//!
//! A *program* is what one caller sends: `run` (lock only, waiting, optimistic, with failing work or a kept failure),
//! the verbs, leased work, a reaper, an operator, a message consumer. Two or three programs run on one key of a real
//! server, each on its own connection, one statement at a time. An *order* decides which program sends next.
//! `pg_blocking_pids` shows a statement that waits for another program; then the turn passes on.
//!
//! After each interleaving:
//! - a finished key has one effect, and each effect has its finished key;
//! - the answers agree with what is stored;
//! - no program deadlocks, blocks for good or stays in a transaction; a look, an extension, a reaper and an operator
//!   never wait;
//! - *in progress* was answered only while another program was at work;
//! - the work's error was final only if the key was not finished before;
//! - there was no error that the rules do not allow.
//!
//! One deadlock is known, and left to the server, which ends it after `deadlock_timeout`; the victim restarts. The
//! holder of a lapsed claim is late: it does its work, then `complete` waits for the key's row. Another caller has
//! taken over the claim in its transaction, and its work waits for a row that the late work has written.
//!
//! The tests play a sample, which `PGONCE_TEST_SEED` repeats. `.ci/long interleavings` sets
//! `PGONCE_TEST_INTERLEAVINGS=all`: it plays all pairs at each isolation level on every kind of row, and more triples.
//! It plays a pair in all orders, or in some if there are more than [`ORDERS_MOST`]. There, BEGIN and other statements
//! that no other program can touch do not count as choices; random orders include them.
//!
//! `faults.rs` plants wrong statements and wrong clients; each is found.

mod calls;
mod check;
mod client;
mod faults;
mod lane;
mod lock_only;
mod orders;
mod others;
mod play;
mod programs;
mod wrong;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use fastrand::Rng;
use tokio::task::JoinSet;

use self::check::State;
use self::client::Isolation;
use self::lane::{Case, Lane};
use self::orders::Orders;
use self::programs::Program;
use crate::support::db::TestDb;

/// How many schemas play at the same time.
const LANES: usize = 4;

#[derive(Debug, Clone, Copy)]
enum Depth {
    /// This many random orders of each case.
    Some(usize),
    /// All orders of each case. If a case has more than this, this many in sequence and as many at random.
    All(usize),
}

/// Plays each case in its orders.
///
/// # Errors
/// The first error.
async fn explore(
    cases: Vec<Case>,
    depth: Depth,
    random: &mut Rng,
    change: impl Fn(&str) -> String,
) -> Result<u64, String> {
    let (began, total) = (Instant::now(), cases.len());
    let left = Arc::new(Mutex::new(cases));
    let mut lanes: JoinSet<Result<(u64, u64), String>> = JoinSet::new();
    for _ in 0..LANES.min(total) {
        let db = TestDb::with_connections(1).await;
        let mut lane = Lane::open(&db, &change).await;
        let (left, mut random) = (Arc::clone(&left), random.fork());
        lanes.spawn(async move {
            let (mut played, mut cut) = (0, 0);
            loop {
                let case = left.lock().unwrap().pop();
                let Some(case) = case else { return Ok((played, cut)) };
                let (count, is_cut) = play_case(&mut lane, &case, depth, &mut random).await?;
                played += count;
                cut += u64::from(is_cut);
            }
        });
    }
    let (mut played, mut cut) = (0, 0);
    while let Some(lane) = lanes.join_next().await {
        let (more, more_cut) = lane.expect("a lane")?;
        (played, cut) = (played + more, cut + more_cut);
    }
    println!("{played} interleavings of {total} cases in {:?}, {cut} of them cut", began.elapsed());
    Ok(played)
}

/// Returns how many orders were played, and whether there are more.
async fn play_case(
    lane: &mut Lane,
    case: &Case,
    depth: Depth,
    random: &mut Rng,
) -> Result<(u64, bool), String> {
    let mut played = 0;
    let mut some = match depth {
        Depth::Some(some) => some,
        Depth::All(most) => {
            let mut orders = Orders::all();
            loop {
                lane.play(case, &mut orders).await?;
                played += 1;
                if !orders.turn() {
                    return Ok((played, false));
                } else if played == most as u64 {
                    break most;
                }
            }
        }
    };
    let is_cut = played > 0;
    let mut orders = Orders::Random(random.fork());
    while some > 0 {
        lane.play(case, &mut orders).await?;
        played += 1;
        some -= 1;
    }
    Ok((played, is_cut))
}

/// All pairs of programs on every kind of row at every isolation level.
fn pairs(programs: &[Program], states: &[State], shares_a_row: bool) -> Vec<Case> {
    let mut cases = vec![];
    for (i, &one) in programs.iter().enumerate() {
        for &other in &programs[i..] {
            for &state in states {
                for isolation in Isolation::ALL {
                    let (programs, isolation) = (vec![one, other], vec![isolation; 2]);
                    cases.push(Case { state, programs, isolation, shares_a_row });
                }
            }
        }
    }
    cases
}

/// `count` random cases of `size` programs, each program at a random isolation level.
fn sample(count: usize, size: usize, random: &mut Rng) -> Vec<Case> {
    let mut one = |_| {
        let (programs, states): (&[Program], &[State]) = if random.u8(..4) == 0 {
            (&Program::ON_MESSAGES, &State::OF_MESSAGES)
        } else {
            (&Program::ON_KEYS, &State::ALL)
        };
        let mut draw = |_| programs[random.usize(..programs.len())];
        let programs = (0..size).map(&mut draw).collect();
        let isolation = (0..size).map(|_| Isolation::ALL[random.usize(..3)]).collect();
        let state = states[random.usize(..states.len())];
        Case { state, programs, isolation, shares_a_row: random.bool() }
    };
    (0..count).map(&mut one).collect()
}

/// Prints the seed. `PGONCE_TEST_SEED` repeats a failure.
fn random() -> Rng {
    let seed = std::env::var("PGONCE_TEST_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("PGONCE_TEST_SEED={seed}");
    Rng::with_seed(seed)
}

/// How many orders of a case are played in sequence. If a case has more, as many random orders are added.
const ORDERS_MOST: usize = 40;

fn is_whole() -> bool {
    match std::env::var("PGONCE_TEST_INTERLEAVINGS").as_deref() {
        Ok("all") => true,
        Ok(other) => panic!("PGONCE_TEST_INTERLEAVINGS is all, not {other}"),
        Err(_) => false,
    }
}

/// Plays all orders of all cases, or one order of some of them.
async fn hold(mut cases: Vec<Case>, some: usize) {
    let mut random = random();
    random.shuffle(&mut cases);
    let depth = if is_whole() {
        Depth::All(ORDERS_MOST)
    } else {
        cases.truncate(some);
        Depth::Some(1)
    };
    if let Err(wrong) = explore(cases, depth, &mut random, str::to_owned).await {
        panic!("{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_programs_on_a_key_do_its_effect_once_in_every_order() {
    hold(pairs(&Program::ON_KEYS, &State::ALL, false), 1200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_do_two_whose_works_lock_the_same_row_deadlock() {
    let states = [State::Absent, State::Lapsed, State::InProgress];
    hold(pairs(&Program::ON_KEYS, &states, true), 500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_consumers_of_a_message_handle_it_once_in_every_order() {
    let mut cases = pairs(&Program::ON_MESSAGES, &State::OF_MESSAGES, false);
    cases.extend(pairs(&Program::ON_MESSAGES, &State::OF_MESSAGES, true));
    cases.retain(Case::is_of_messages);
    hold(cases, 250).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_or_three_at_different_isolation_levels_do_it_once_too() {
    let mut random = random();
    let count = if is_whole() { 1500 } else { 200 };
    let mut cases = sample(count, 3, &mut random);
    cases.extend(sample(count, 2, &mut random));
    if let Err(wrong) = explore(cases, Depth::Some(2), &mut random, str::to_owned).await {
        panic!("{wrong}");
    }
}
