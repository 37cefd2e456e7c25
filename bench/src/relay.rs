//! A relay between client and server: counts round trips, and adds a delay if asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pgonce::sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

/// Listens until dropped.
pub(crate) struct Relay {
    options: PgConnectOptions,
    trips: Arc<AtomicU64>,
    listening: AbortHandle,
    _folder: TempDir,
}

/// The server's address.
enum Server {
    Socket(PathBuf),
    Tcp(String, u16),
}

/// Bytes under way, and when they are due.
struct Late {
    due: Instant,
    bytes: Vec<u8>,
    to: mpsc::UnboundedSender<Vec<u8>>,
}

/// How bytes travel: at once, or each after a delay, many under way together.
#[derive(Clone)]
struct Way {
    delay: Duration,
    late: std::sync::mpsc::Sender<Late>,
}

impl Relay {
    /// Starts a relay to the server that adds half of `delay` in each direction.
    pub(crate) fn start(server: &PgConnectOptions, delay: Duration) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = format!(".s.PGSQL.{}", server.get_port());
        let listener = UnixListener::bind(folder.path().join(&socket))?;
        let options = server.clone().socket(folder.path());
        let to = Arc::new(Server::of(server, &socket));
        let trips = Arc::<AtomicU64>::default();
        let (late, queue) = std::sync::mpsc::channel();
        std::thread::spawn(move || deliver(&queue));
        let (way, counter) = (Way { delay: delay / 2, late }, Arc::clone(&trips));
        let listening = tokio::spawn(async move {
            let mut connections = JoinSet::new(); // aborted with this task
            while let Ok((client, _)) = listener.accept().await {
                let (to, way, counter) = (Arc::clone(&to), way.clone(), Arc::clone(&counter));
                // If the server is unreachable, the client sees a closed connection.
                connections.spawn(async move {
                    let _ = to.connect(client, way, counter).await;
                });
            }
        });
        let listening = listening.abort_handle();
        Ok(Self { options, trips, listening, _folder: folder })
    }

    pub(crate) fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// Round trips so far, without those of connecting and of the pool's pings.
    pub(crate) fn trips(&self) -> u64 {
        self.trips.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Server {
    fn of(options: &PgConnectOptions, socket: &str) -> Self {
        let host = options.get_host();
        match options.get_socket() {
            Some(folder) => Self::Socket(folder.join(socket)),
            None if host.starts_with('/') => Self::Socket(Path::new(host).join(socket)),
            None => Self::Tcp(host.to_owned(), options.get_port()),
        }
    }

    async fn connect(
        &self,
        client: UnixStream,
        way: Way,
        trips: Arc<AtomicU64>,
    ) -> std::io::Result<()> {
        match self {
            Self::Socket(path) => relay(client, UnixStream::connect(path).await?, way, trips).await,
            Self::Tcp(host, port) => {
                let server = TcpStream::connect((host.as_str(), *port)).await?;
                server.set_nodelay(true)?;
                relay(client, server, way, trips).await
            }
        }
        Ok(())
    }
}

/// Relays both directions until one side closes.
async fn relay<S>(client: UnixStream, server: S, way: Way, trips: Arc<AtomicU64>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (from_client, to_client) = split(client);
    let (from_server, to_server) = split(server);
    // sqlx writes a request with one call, so one read is one flight.
    let count = move |flight: &[u8]| {
        if is_awaited(flight) {
            trips.fetch_add(1, Ordering::Relaxed);
        }
    };
    let there = carry(from_client, to_server, way.clone(), count);
    let back = carry(from_server, to_client, way, |_| ());
    tokio::select! {
        () = there => (),
        () = back => (),
    }
}

async fn carry<R, W>(mut from: R, to: W, way: Way, mut seen: impl FnMut(&[u8]))
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (sender, arrived) = mpsc::unbounded_channel();
    let reading = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            seen(&buffer[..length]);
            let bytes = buffer[..length].to_vec();
            let sent = if way.delay.is_zero() {
                sender.send(bytes).is_ok()
            } else {
                let late = Late { due: Instant::now() + way.delay, bytes, to: sender.clone() };
                way.late.send(late).is_ok()
            };
            if !sent {
                break;
            }
        }
        drop(sender); // bytes under way still arrive
    };
    tokio::join!(reading, write(to, arrived));
}

async fn write(mut to: impl AsyncWrite + Unpin, mut arrived: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(bytes) = arrived.recv().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // The other side may be closed already.
    let _ = to.shutdown().await;
}

/// Delivers in order what is due: every delay is the same. A thread, because tokio's timer counts in milliseconds.
fn deliver(queue: &std::sync::mpsc::Receiver<Late>) {
    for late in queue {
        std::thread::sleep(late.due.saturating_duration_since(Instant::now()));
        // A closed connection needs no more bytes.
        let _ = late.to.send(late.bytes);
    }
}

/// Whether the client waits for the response. Not after a ping of the pool (a lone Sync), nor after the ROLLBACK of an
/// empty transaction that the driver may send with it.
fn is_awaited(flight: &[u8]) -> bool {
    let (mut asked, mut rolls_back, mut syncs) = (false, false, false);
    let mut rest = flight;
    // A message is a type, a length and a body; only messages of connecting have no type.
    while let [kind @ (1..), a, b, c, d, tail @ ..] = rest {
        let length = u32::from_be_bytes([*a, *b, *c, *d]).saturating_sub(4) as usize;
        let (body, next) = tail.split_at(length.min(tail.len()));
        match kind {
            b'S' => syncs = true,
            b'Q' if body == b"ROLLBACK\0" => rolls_back = true,
            b'Q' | b'P' | b'B' | b'E' => asked = true,
            _ => (),
        }
        rest = next;
    }
    asked || rolls_back && !syncs
}

#[cfg(test)]
mod tests {
    use super::is_awaited;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap_or_default();
        [&[kind][..], &length.to_be_bytes(), body].concat()
    }

    #[test]
    fn only_what_somebody_waits_for_is_a_round_trip() {
        let (sync, rollback) = (message(b'S', b""), message(b'Q', b"ROLLBACK\0"));
        let execute = [message(b'B', b"..."), message(b'E', b"..."), sync.clone()].concat();
        assert!(is_awaited(&execute));
        assert!(is_awaited(&message(b'Q', b"begin; select 1\0")));
        assert!(is_awaited(&rollback), "one that is awaited comes alone");
        assert!(!is_awaited(&sync), "a ping");
        assert!(!is_awaited(&[rollback, sync].concat()), "queued, and sent with the pool's ping");
        assert!(!is_awaited(&[0, 0, 0, 8, 4, 210, 22, 47]), "connecting");
        assert!(!is_awaited(&message(b'X', b"")));
    }
}
