//! Throughput. Every round runs every contender, one after the other, so that a noisy machine is noisy for all.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use tokio::task::JoinSet;

use crate::peer::Peer;
use crate::servers::{Addresses, Services};

/// How many ask for one key at once.
const AT_ONCE: u32 = 16;

/// What is measured, in this order: keys that a replay asks for were fresh before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    Fresh8,
    Fresh32,
    Replay8,
    AtOnce,
}

impl Scenario {
    pub(crate) const ALL: [Self; 4] = [Self::Fresh8, Self::Fresh32, Self::Replay8, Self::AtOnce];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fresh8 => "fresh, 8 clients",
            Self::Fresh32 => "fresh, 32 clients",
            Self::Replay8 => "replay, 8 clients",
            Self::AtOnce => "16 at once on one key",
        }
    }

    fn clients(self) -> u32 {
        match self {
            Self::Fresh8 | Self::Replay8 => 8,
            Self::Fresh32 => 32,
            Self::AtOnce => AT_ONCE,
        }
    }
}

/// How long it takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// For one contender and scenario.
    pub(crate) slice: Duration,
}

/// What one contender did.
#[derive(Debug, Default)]
pub(crate) struct Speed {
    /// Operations or groups per second, by scenario and round. A bare transaction has no replays.
    pub(crate) per_second: [Vec<f64>; 4],
    pub(crate) others: Others,
}

/// What those got who came second on one key.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Others {
    pub(crate) answers: usize,
    pub(crate) conflicts: usize,
    pub(crate) doubles: usize,
}

/// Keys, and what was answered.
type Done = Arc<Vec<(String, String)>>;

/// A contender on its way through the rounds.
struct Runner {
    peer: Peer,
    speed: Speed,
    done: Done,
}

/// As `Peer::ALL`.
pub(crate) async fn measure(
    addresses: &Addresses,
    plan: Plan,
    rng: &mut Rng,
) -> Result<Vec<Speed>> {
    let new = |peer| Runner { peer, speed: Speed::default(), done: Done::default() };
    let mut runners = Peer::ALL.map(new);
    let mut services = Vec::new();
    for scenario in Scenario::ALL {
        services.push(Services::connect(addresses, scenario.clients(), "peers").await?);
    }
    // The first one opens connections, prepares statements and counts for nothing.
    for round in 0..=plan.rounds {
        for (scenario, services) in Scenario::ALL.into_iter().zip(&services) {
            match round {
                0 => eprintln!("warming up: {}", scenario.name()),
                _ => eprintln!("round {round} of {}: {}", plan.rounds, scenario.name()),
            }
            let mut order: Vec<usize> = (0..runners.len()).collect();
            rng.shuffle(&mut order);
            for at in order {
                runners[at].run(scenario, services, plan.slice, round > 0).await?;
            }
        }
    }
    for services in services {
        services.pool.close().await;
    }
    Ok(runners.into_iter().map(|runner| runner.speed).collect())
}

impl Runner {
    async fn run(
        &mut self,
        scenario: Scenario,
        services: &Services,
        slice: Duration,
        counts: bool,
    ) -> Result<()> {
        let (peer, clients) = (self.peer, scenario.clients());
        let began = Instant::now();
        let until = began + slice;
        let mut others = Others::default();
        let count = match scenario {
            Scenario::Fresh8 | Scenario::Fresh32 => {
                let clients = (0..clients).map(|_| fresh(peer, services.clone(), until));
                let done = all(clients).await?.concat();
                let count = done.len();
                self.done = Arc::new(done);
                count
            }
            Scenario::Replay8 if peer == Peer::Bare => return Ok(()),
            Scenario::Replay8 => {
                let replay = |_| replay(peer, services.clone(), Arc::clone(&self.done), until);
                all((0..clients).map(replay)).await?.into_iter().sum()
            }
            Scenario::AtOnce => {
                let mut groups = 0;
                while Instant::now() < until {
                    others.add(group(peer, services).await?);
                    groups += 1;
                }
                groups
            }
        };
        if counts {
            let rate = count as f64 / began.elapsed().as_secs_f64();
            self.speed.per_second[scenario as usize].push(rate);
            self.speed.others.add(others);
        }
        Ok(())
    }
}

impl Others {
    fn add(&mut self, more: Self) {
        self.answers += more.answers;
        self.conflicts += more.conflicts;
        self.doubles += more.doubles;
    }
}

/// As long as a UUID, and random: the worst case for an index.
pub(crate) fn random_key(rng: &mut Rng) -> String {
    format!("{:036x}", rng.u128(..))
}

async fn all<T: Send + 'static>(
    clients: impl Iterator<Item = impl Future<Output = Result<T>> + Send + 'static>,
) -> Result<Vec<T>> {
    clients.collect::<JoinSet<_>>().join_all().await.into_iter().collect()
}

async fn fresh(peer: Peer, services: Services, until: Instant) -> Result<Vec<(String, String)>> {
    let (mut rng, mut done) = (Rng::new(), Vec::new());
    while Instant::now() < until {
        let key = random_key(&mut rng);
        let answer = peer.perform(&services, &key).await?.context("a fresh key is in progress")?;
        done.push((key, answer));
    }
    Ok(done)
}

async fn replay(peer: Peer, services: Services, done: Done, until: Instant) -> Result<usize> {
    let (mut rng, mut count) = (Rng::new(), 0);
    while Instant::now() < until {
        let (key, answer) = rng.choice(done.iter()).context("nothing was done")?;
        let replayed = peer.perform(&services, key).await?;
        ensure!(replayed.as_ref() == Some(answer), "{}: another answer", peer.name());
        count += 1;
    }
    Ok(count)
}

/// Asks for one key at once; whoever was first is not counted.
async fn group(peer: Peer, services: &Services) -> Result<Others> {
    let key: Arc<str> = random_key(&mut Rng::new()).into();
    let ask = |_| {
        let (services, key) = (services.clone(), Arc::clone(&key));
        async move { peer.perform(&services, &key).await }
    };
    let answers: Vec<String> = all((0..AT_ONCE).map(ask)).await?.into_iter().flatten().collect();
    let payments = answers.iter().collect::<HashSet<_>>().len();
    ensure!(payments > 0, "{}: nobody has paid", peer.name());
    Ok(Others {
        answers: answers.len() - payments,
        conflicts: AT_ONCE as usize - answers.len(),
        doubles: payments - 1,
    })
}
