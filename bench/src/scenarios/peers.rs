//! peers: pgonce beside a lock in Redis.

use crate::Bench;
use crate::compare::Mix;
use crate::figures::{BARE, Cost, HAND_WRITTEN, Outcome, Row};
use crate::load::{Fault, Subject, Work, interleave};
use crate::orders::{Shop, Way, key};
use crate::progress::Progress;
use crate::redis_lock::{Fsync, LockedShop, Server};

const ABOUT: &str = "Every key is new. A Redis lock protects a bare transaction and becomes the answer. Redis writes \
    to disk every second, or always. It uses one more connection. It may take orders twice: see `kills`.";
const RUN: &str = "run";
pub(crate) const EVERY_SECOND: &str = "Redis, everysec";
pub(crate) const ALWAYS: &str = "Redis, always";
const WAYS: [(&str, Way); 4] = [
    (BARE, Way::Bare),
    (HAND_WRITTEN, Way::HandWritten),
    (RUN, Way::Run),
    ("run, optimistic", Way::Optimistic),
];

/// A shop, with or without a Redis lock.
enum Peer {
    Plain(Shop),
    Locked(LockedShop),
}

impl Work for Peer {
    async fn perform(&self, number: u64) -> Result<(), Fault> {
        let key = key(number);
        match self {
            Self::Plain(shop) => shop.order(&key).await.map(drop),
            Self::Locked(shop) => match shop.order(&key).await? {
                Some(_) => Ok(()),
                None => Err(anyhow::anyhow!("a new key is locked")),
            },
        }
    }
}

pub(crate) async fn run(bench: &mut Bench<'_>) -> anyhow::Result<()> {
    let redis = [
        (EVERY_SECOND, Server::start(Fsync::EverySecond).await?),
        (ALWAYS, Server::start(Fsync::Always).await?),
    ];
    let costs =
        crate::compare::costs(bench, &WAYS.map(|(name, way)| (name, way, Mix::Fresh))).await?;
    for (run, clients) in (0..).zip(bench.args.clients.clone()) {
        let stage = bench.stage("peers").await?;
        let pool = stage.pool(clients).await?;
        let mut subjects = Vec::new();
        for ((name, way), &cost) in WAYS.into_iter().zip(&costs) {
            let shop = Shop::new(&stage, way, pool.clone());
            subjects.push(Subject::new(Row::new(name, cost), Peer::Plain(shop)));
        }
        for (number, (name, server)) in (1..).zip(&redis) {
            let shop = Shop::new(&stage, Way::Bare, pool.clone());
            let peer = Peer::Locked(LockedShop::open(shop, &server.socket()).await?);
            let first = (number << 48) + (run << 40);
            subjects.push(Subject::new(Row::new(name, Cost::default()), peer).from(first));
        }
        stage.checkpoint().await?;
        interleave(&mut subjects, clients, bench.rounds(), &Progress::of("peers")).await?;
        pool.close().await;
        let rows = subjects.into_iter().map(|subject| subject.row).collect();
        let mut outcome = Outcome::new("peers", clients, ABOUT, rows, RUN);
        for (name, _) in &redis {
            for own in [RUN, "run, optimistic"] {
                let ratio = outcome.ratio_of(own, name);
                outcome.notes.extend(ratio.map(|ratio| format!("{own} to {name}: {ratio}.")));
            }
        }
        bench.tell(outcome);
    }
    Ok(())
}
