//! A proxy that loses answers, cuts requests, and says 503 with `Retry-After`, by a seed that it prints. One request per
//! connection.

use std::collections::HashMap;
use std::io::Result;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How many of a hundred requests.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// Their answers are lost: the server has done everything.
    pub lost: u32,
    /// They are cut in the middle.
    pub cut: u32,
    /// They get 503 with `Retry-After: 1`, and do not reach the server.
    pub refused: u32,
}

#[derive(Debug, Default)]
pub struct Seen {
    pub requests: u32,
    pub faults: u32,
    /// Requests that came before the time that their `Retry-After` had said.
    pub hasty: u32,
    /// By key: not before.
    not_before: HashMap<String, Instant>,
}

#[derive(Debug, Clone)]
pub struct Proxy {
    pub address: String,
    pub seen: Arc<Mutex<Seen>>,
}

impl Proxy {
    pub async fn start(server: String, faults: Faults) -> Self {
        let seed =
            std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |it| it.parse().unwrap());
        eprintln!("SEED={seed}");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let proxy = Self { address, seen: Arc::default() };
        let (this, mut dice) = (proxy.clone(), fastrand::Rng::with_seed(seed));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (this, server, roll) = (this.clone(), server.clone(), dice.u32(..100));
                tokio::spawn(async move { this.carry(client, &server, faults, roll).await });
            }
        });
        proxy
    }

    async fn carry(
        self,
        mut client: TcpStream,
        server: &str,
        faults: Faults,
        roll: u32,
    ) -> Result<()> {
        let request = read(&mut client).await?;
        let key = header(&request, "idempotency-key").unwrap_or_default();
        {
            let mut seen = self.seen.lock().unwrap();
            seen.requests += 1;
            let hasty = seen.not_before.remove(&key).is_some_and(|at| Instant::now() < at);
            seen.hasty += u32::from(hasty);
            seen.faults += u32::from(roll < faults.lost + faults.cut + faults.refused);
        }
        if roll < faults.refused {
            let answer =
                b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";
            return self.answer(client, key, answer).await;
        }
        let mut upstream = TcpStream::connect(server).await?;
        if roll < faults.refused + faults.cut {
            return upstream.write_all(&request[..request.len() - 1]).await;
        }
        upstream.write_all(&request).await?;
        let answer = read(&mut upstream).await?;
        if roll < faults.refused + faults.cut + faults.lost {
            return Ok(());
        }
        self.answer(client, key, &answer).await
    }

    async fn answer(self, mut client: TcpStream, key: String, answer: &[u8]) -> Result<()> {
        if let Some(seconds) = header(answer, "retry-after") {
            let at = Instant::now() + Duration::from_secs(seconds.parse().unwrap());
            self.seen.lock().unwrap().not_before.insert(key, at);
        }
        client.write_all(answer).await?;
        client.shutdown().await
    }
}

/// A whole message, by its `content-length`.
async fn read(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut message = Vec::new();
    loop {
        let head = message.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        if let Some(head) = head {
            let length = header(&message, "content-length").map_or(0, |it| it.parse().unwrap());
            if message.len() >= head + length {
                return Ok(message);
            }
        }
        if stream.read_buf(&mut message).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn header(message: &[u8], name: &str) -> Option<String> {
    let head = String::from_utf8_lossy(message);
    let mut lines = head.split("\r\n").take_while(|line| !line.is_empty());
    lines.find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}
