//! Where there are no Unix sockets, there is no throw-away server.

use std::convert::Infallible;
use std::path::Path;

use super::Options;

#[derive(Debug)]
pub(super) struct Server(Infallible);

impl Server {
    pub(super) async fn start(_bin_dir: &Path, _options: &Options) -> Result<Self, String> {
        Err("throw-away servers need Unix sockets".to_owned())
    }

    pub(super) fn dir(&self) -> &Path {
        match self.0 {}
    }

    pub(super) async fn stop(self) {
        match self.0 {}
    }
}
