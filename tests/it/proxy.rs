//! A proxy between client and server that cuts the connection at a chosen request.
//!
//! It knows just enough of the protocol to see requests and their answers: a message is a type
//! byte, a length and a body; a client's `Q` (simple query) or `S` (sync) asks for an answer that
//! the server ends with `Z` (ready for query).

use std::io::Result;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::harness::TestDb;

/// Where to cut a connection. Requests are counted from 1, without those of connecting.
#[derive(Debug, Clone, Copy)]
pub enum Cut {
    /// The server never sees the request.
    Before(usize),
    /// The server has answered the request, but the client never hears of it.
    After(usize),
}

/// Cuts every connection through it at the same place, or only the first one.
pub struct Proxy {
    options: PgConnectOptions,
    /// The text of every request so far; `execute` for what is prepared, and nothing for a ping.
    requests: Arc<Mutex<Vec<String>>>,
    /// How much clients have sent so far.
    bytes_sent: Arc<AtomicU64>,
    listening: AbortHandle,
    _socket_dir: tempfile::TempDir,
}

impl Proxy {
    /// Cuts every connection.
    pub fn start(db: &TestDb, cut: Option<Cut>) -> Self {
        Self::start_with(db, cut, cut)
    }

    /// Cuts the first connection and no other.
    pub fn start_once(db: &TestDb, cut: Cut) -> Self {
        Self::start_with(db, Some(cut), None)
    }

    fn start_with(db: &TestDb, first: Option<Cut>, later: Option<Cut>) -> Self {
        let socket_dir = tempfile::tempdir().unwrap();
        let socket = |dir: &Path| dir.join(format!(".s.PGSQL.{}", db.options.get_port()));
        let listener = UnixListener::bind(socket(socket_dir.path())).unwrap();
        let server = socket(db.options.get_socket().expect("the server listens on a socket"));
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let bytes_sent = Arc::<AtomicU64>::default();
        let (seen, counted) = (Arc::clone(&requests), Arc::clone(&bytes_sent));
        let listening = tokio::spawn(async move {
            let mut connections = JoinSet::new(); // aborted together with this task
            let mut cut = first;
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(&server).await.unwrap();
                connections.spawn(relay(
                    client,
                    server,
                    cut,
                    Arc::clone(&seen),
                    Arc::clone(&counted),
                ));
                cut = later;
            }
        });
        let options = db.options.clone().socket(socket_dir.path()).ssl_mode(PgSslMode::Disable);
        let listening = listening.abort_handle();
        Self { options, requests, bytes_sent, listening, _socket_dir: socket_dir }
    }

    /// How to connect through the proxy.
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// What clients have asked so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// How many bytes clients have sent so far.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
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

/// Carries messages both ways until one side is done or the cut comes; then both are closed.
async fn relay(
    client: UnixStream,
    server: UnixStream,
    cut: Option<Cut>,
    seen: Arc<Mutex<Vec<String>>>,
    counted: Arc<AtomicU64>,
) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (before, after) = match cut {
        Some(Cut::Before(request)) => (request, usize::MAX),
        Some(Cut::After(request)) => (usize::MAX, request),
        None => (usize::MAX, usize::MAX),
    };
    // An error here is one side hanging up, which ends the relay like a cut.
    tokio::select! {
        _ = requests(from_client, to_server, before, &seen, &counted) => {}
        _ = answers(from_server, to_client, after) => {}
    }
}

/// Carries requests to the server, up to and without the one to cut at.
async fn requests(
    mut client: impl AsyncRead + Unpin,
    mut server: impl AsyncWrite + Unpin,
    cut: usize,
    seen: &Mutex<Vec<String>>,
    counted: &AtomicU64,
) -> Result<()> {
    let startup_length = client.read_u32().await?;
    let mut startup = vec![0; startup_length as usize - 4];
    client.read_exact(&mut startup).await?;
    server.write_u32(startup_length).await?;
    server.write_all(&startup).await?;
    let mut count = 0;
    let mut executes = false;
    loop {
        let (kind, message) = message(&mut client).await?;
        counted.fetch_add(message.len() as u64, Ordering::Relaxed);
        executes |= kind == b'E';
        if matches!(kind, b'Q' | b'S') {
            count += 1;
            let text = match kind {
                b'S' if std::mem::take(&mut executes) => "execute".into(),
                _ => String::from_utf8_lossy(message[5..].strip_suffix(b"\0").unwrap_or_default()),
            };
            seen.lock().unwrap().push(text.into_owned());
        }
        if count >= cut {
            return Ok(());
        }
        server.write_all(&message).await?;
    }
}

/// Carries answers to the client. Of the one to cut at it waits for the end and passes on nothing.
async fn answers(
    mut server: impl AsyncRead + Unpin,
    mut client: impl AsyncWrite + Unpin,
    cut: usize,
) -> Result<()> {
    let mut answered = 0; // the first `Z` ends the connecting
    loop {
        let (kind, message) = message(&mut server).await?;
        if answered < cut {
            client.write_all(&message).await?;
        }
        if kind == b'Z' {
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
}
