//! Without Unix sockets there is no temporary server.

use std::convert::Infallible;
use std::path::Path;

use super::Options;

#[derive(Debug)]
pub(crate) struct Server(Infallible);

impl Server {
    pub(crate) async fn start(_bin_dir: &Path, _options: &Options) -> Result<Self, String> {
        Err("temporary servers need Unix sockets".to_owned())
    }

    pub(crate) fn dir(&self) -> &Path {
        match self.0 {}
    }

    pub(crate) async fn stop(self) {
        match self.0 {}
    }
}
