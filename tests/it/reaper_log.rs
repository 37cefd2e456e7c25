//! What a reaper logs.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgonce::Reaper;
use tokio::sync::watch;
use tracing_subscriber::fmt::MakeWriter;

use crate::support::db::{PATIENCE, TestDb};

#[derive(Clone)]
struct Log(Arc<Mutex<String>>, watch::Sender<usize>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
        self.1.send_modify(|lines| *lines += 1);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Log {
    type Writer = Self;
    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

// Otherwise a running reaper and a missing one look alike.
#[tokio::test]
async fn a_pass_that_found_nothing_says_so() {
    let db = TestDb::new().await;
    let (lines, mut logged) = watch::channel(0);
    let log = Log(Arc::default(), lines);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let reaper = Reaper::new(&db.once).interval(Duration::from_millis(1)).unwrap();
    let passes = async {
        // Two passes: the first is no exception.
        tokio::time::timeout(PATIENCE, logged.wait_for(|lines| *lines >= 2)).await
    };
    reaper.run_until(db.pool.clone(), passes).await;
    let log = log.0.lock().unwrap();
    let passes: Vec<_> = log.lines().filter(|line| line.contains("reaped")).collect();
    assert!(passes.len() >= 2, "{log}");
    for pass in passes {
        assert!(pass.contains("INFO"), "{pass}");
        for field in ["deleted=0", "backlog=0", "cut_short=false", "oldest_overdue_seconds=0"] {
            assert!(pass.contains(field), "{pass}");
        }
    }
}
