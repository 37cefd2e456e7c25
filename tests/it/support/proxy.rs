//! A proxy between client and server that cuts the connection at a chosen request, delays answers, or falls silent.
//!
//! It knows just enough of the protocol to see requests and their answers. A message is a type byte, a length and a
//! body. A client's `Q` (simple query) or `S` (sync) asks for an answer, which ends with the server's `Z` (ready for
//! query).

use std::collections::VecDeque;
use std::io::Result;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};

use super::db::TestDb;

/// Where to cut a connection. Requests count from 1, without those of connecting and without `discard plans`, which is
/// sent after a slow look, as on any busy machine.
#[derive(Debug, Clone, Copy)]
pub enum Cut {
    /// The server never sees the request.
    Before(usize),
    /// The server has answered the request, but the client never sees the answer.
    After(usize),
    /// The server never sees the first request with this text.
    At(&'static str),
}

/// Cuts every connection at the same place, or only the first connection.
pub struct Proxy {
    options: PgConnectOptions,
    shared: Arc<Shared>,
    listening: AbortHandle,
    _socket_dir: tempfile::TempDir,
}

/// Shared by all connections.
#[derive(Default)]
struct Shared {
    /// The text of every request so far: `execute` for prepared statements, empty for a ping.
    requests: Mutex<Vec<String>>,
    /// Bytes that clients have sent so far.
    bytes_sent: AtomicU64,
    /// The delay of each answer.
    delay: Duration,
    opened: AtomicU64,
    /// This many connections, from the first on, carry nothing any more.
    silent: AtomicU64,
}

impl Shared {
    /// Never returns if the connection with this number is silent: its sockets stay open.
    async fn carries(&self, number: u64) {
        if number < self.silent.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }
}

impl Proxy {
    pub fn start(db: &TestDb, cut: Option<Cut>) -> Self {
        Self::start_with(db, cut, cut, Duration::ZERO)
    }

    pub fn start_once(db: &TestDb, cut: Cut) -> Self {
        Self::start_with(db, Some(cut), None, Duration::ZERO)
    }

    /// Delays each answer, like a slow network.
    pub fn start_slow(db: &TestDb, delay: Duration) -> Self {
        Self::start_with(db, None, None, delay)
    }

    fn start_with(db: &TestDb, first: Option<Cut>, later: Option<Cut>, delay: Duration) -> Self {
        let socket_dir = tempfile::tempdir().unwrap();
        let socket = |dir: &Path| dir.join(format!(".s.PGSQL.{}", db.options.get_port()));
        let listener = UnixListener::bind(socket(socket_dir.path())).unwrap();
        let server = socket(db.options.get_socket().expect("the server listens on a socket"));
        let shared = Arc::new(Shared { delay, ..Shared::default() });
        let seen = Arc::clone(&shared);
        let listening = tokio::spawn(async move {
            let mut connections = JoinSet::new(); // aborted with this task
            let mut cut = first;
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(&server).await.unwrap();
                let number = seen.opened.fetch_add(1, Ordering::Relaxed);
                connections.spawn(relay(client, server, cut, Arc::clone(&seen), number));
                cut = later;
            }
        });
        let options = db.options.clone().socket(socket_dir.path()).ssl_mode(PgSslMode::Disable);
        let listening = listening.abort_handle();
        Self { options, shared, listening, _socket_dir: socket_dir }
    }

    /// From now on, the open connections stay open and carry nothing. New connections work.
    pub fn fall_silent(&self) {
        let opened = self.shared.opened.load(Ordering::Relaxed);
        self.shared.silent.store(opened, Ordering::Relaxed);
    }

    /// From now on, no connection carries anything.
    pub fn fall_silent_for_good(&self) {
        self.shared.silent.store(u64::MAX, Ordering::Relaxed);
    }

    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }

    pub fn bytes_sent(&self) -> u64 {
        self.shared.bytes_sent.load(Ordering::Relaxed)
    }

    /// Whether a client has sent COMMIT, even if it was cut there.
    pub fn commit_was_sent(&self) -> bool {
        self.requests().iter().any(|sent| sent == "COMMIT" || sent.ends_with("commit and chain"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Relays messages in both directions until one side ends or the cut comes; then closes both.
async fn relay(
    client: UnixStream,
    server: UnixStream,
    cut: Option<Cut>,
    shared: Arc<Shared>,
    number: u64,
) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (before, after) = match cut {
        Some(Cut::Before(request)) => (request, usize::MAX),
        Some(Cut::After(request)) => (usize::MAX, request),
        Some(Cut::At(_)) | None => (usize::MAX, usize::MAX),
    };
    let counted = Mutex::new(VecDeque::new());
    let at = if let Some(Cut::At(text)) = cut { Some(text) } else { None };
    // An error here means that one side hung up, which ends the relay like a cut.
    tokio::select! {
        _ = requests(from_client, to_server, (before, at), &counted, &shared, number) => {}
        _ = answers(from_server, to_client, after, &counted, &shared, number) => {}
    }
}

/// Relays requests to the server, up to the one to cut at.
async fn requests(
    mut client: impl AsyncRead + Unpin,
    mut server: impl AsyncWrite + Unpin,
    (cut, at): (usize, Option<&str>),
    counted: &Mutex<VecDeque<bool>>,
    shared: &Shared,
    number: u64,
) -> Result<()> {
    let startup_length = client.read_u32().await?;
    let mut startup = vec![0; startup_length as usize - 4];
    client.read_exact(&mut startup).await?;
    server.write_u32(startup_length).await?;
    server.write_all(&startup).await?;
    let mut count = 0;
    let (mut executes, mut is_at) = (false, false);
    loop {
        let (kind, message) = message(&mut client).await?;
        shared.bytes_sent.fetch_add(message.len() as u64, Ordering::Relaxed);
        executes |= kind == b'E';
        if matches!(kind, b'Q' | b'S') {
            let text = match kind {
                b'S' if std::mem::take(&mut executes) => "execute".into(),
                _ => String::from_utf8_lossy(message[5..].strip_suffix(b"\0").unwrap_or_default()),
            };
            is_at = at == Some(&text);
            let is_counted = text != "discard plans";
            counted.lock().unwrap().push_back(is_counted);
            if is_counted {
                count += 1;
                shared.requests.lock().unwrap().push(text.into_owned());
            }
        }
        if count >= cut || is_at {
            return Ok(());
        }
        shared.carries(number).await;
        server.write_all(&message).await?;
    }
}

/// Relays answers to the client. Waits for the end of the answer to cut at, and does not relay it.
async fn answers(
    mut server: impl AsyncRead + Unpin,
    mut client: impl AsyncWrite + Unpin,
    cut: usize,
    counted: &Mutex<VecDeque<bool>>,
    shared: &Shared,
    number: u64,
) -> Result<()> {
    let mut answered = 0; // the first `Z` ends the connecting
    loop {
        let (kind, message) = message(&mut server).await?;
        if kind == b'Z' && !shared.delay.is_zero() {
            tokio::time::sleep(shared.delay).await;
        }
        shared.carries(number).await;
        // What is not counted must not wait behind the request to cut at.
        let is_uncounted = counted.lock().unwrap().front() == Some(&false);
        if answered < cut || is_uncounted {
            client.write_all(&message).await?;
        }
        if kind == b'Z' && (answered == 0 || counted.lock().unwrap().pop_front().unwrap_or(true)) {
            if answered == cut {
                return Ok(());
            }
            answered += 1;
        }
    }
}

/// One message with its type byte and length.
async fn message(from: &mut (impl AsyncRead + Unpin)) -> Result<(u8, Vec<u8>)> {
    let mut message = vec![0; 5];
    from.read_exact(&mut message).await?;
    let length = u32::from_be_bytes([message[1], message[2], message[3], message[4]]) as usize;
    message.resize(1 + length, 0);
    from.read_exact(&mut message[5..]).await?;
    Ok((message[0], message))
}

#[tokio::test]
async fn the_proxy_counts_requests_and_cuts_where_it_should() {
    use sqlx::{ConnectOptions, Executor};
    let db = TestDb::new().await;
    let insert = format!("insert into {}.effect (key) values ('k')", db.schema);
    let queries = ["select 1", &insert, "COMMIT"];

    let clear = Proxy::start(&db, None);
    let mut conn = clear.options().connect().await.unwrap();
    for query in queries {
        conn.execute(sqlx::AssertSqlSafe(query)).await.unwrap();
    }
    assert_eq!(clear.requests(), queries);
    assert!(clear.commit_was_sent());
    assert_eq!(db.effects().await, 1);

    for (cut, effects) in [(Cut::Before(2), 1), (Cut::After(2), 2)] {
        let proxy = Proxy::start(&db, Some(cut));
        let mut conn = proxy.options().connect().await.unwrap();
        conn.execute("select 1").await.unwrap();
        conn.execute(sqlx::AssertSqlSafe(insert.as_str())).await.unwrap_err();
        assert_eq!(proxy.requests(), queries[..2]);
        assert_eq!(db.effects().await, effects, "{cut:?}");
    }

    let proxy = Proxy::start(&db, Some(Cut::After(2)));
    let mut conn = proxy.options().connect().await.unwrap();
    conn.execute("select 1").await.unwrap();
    // Answered, although the next request is the one to cut at.
    let answered = conn.execute("discard plans");
    tokio::time::timeout(super::db::PATIENCE, answered).await.expect("an answer").unwrap();
    conn.execute("select 2").await.unwrap_err();
    assert_eq!(proxy.requests(), ["select 1", "select 2"]);
}
