//! A proxy between a stack and the server.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::Notify;

/// It runs in the test's thread, so an answer comes only after the call has been polled and waits for it.
#[derive(Debug)]
pub struct Proxy {
    cut: Arc<Notify>,
}

impl Proxy {
    /// Returns the proxy's port, too.
    pub async fn start(server: PathBuf) -> (u16, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut = Arc::new(Notify::new());
        let proxy = Self { cut: cut.clone() };
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut server = UnixStream::connect(&server).await.unwrap();
                let cut = cut.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        () = cut.notified() => {}
                    }
                });
            }
        });
        (port, proxy)
    }

    /// Closes all connections, without a word of the server.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }
}
