//! `kv-node dev`: a whole local cluster.

use crate::config::DevFlags;

/// Why the local cluster did not start.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("not yet built")]
    NotYet,
}

/// Runs until it is asked to end.
pub async fn run(_flags: DevFlags) -> Result<(), DevError> {
    Err(DevError::NotYet)
}
