//! Signals that ask the program to stop: Ctrl-C, and those that init systems and closing terminals send.

use tokio::signal;

use crate::exit::CliError;

/// Listens from its creation on, so that no signal skips the cleanup.
#[cfg(unix)]
pub(crate) struct Interrupt([signal::unix::Signal; 3]);

#[cfg(unix)]
impl Interrupt {
    pub(crate) fn listen() -> Result<Self, CliError> {
        use signal::unix::SignalKind;
        let listen =
            |kind| signal::unix::signal(kind).map_err(|error| CliError::failed("signal", error));
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    pub(crate) async fn received(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
            _ = hangup.recv() => (),
        }
    }
}

#[cfg(not(unix))]
pub(crate) struct Interrupt;

#[cfg(not(unix))]
impl Interrupt {
    pub(crate) fn listen() -> Result<Self, CliError> {
        Ok(Self)
    }

    pub(crate) async fn received(&mut self) {
        if signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}
