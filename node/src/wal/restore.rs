//! stub

use std::path::PathBuf;

pub use super::new_volume::NewMember;

#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// What `GET /snapshot` streamed.
    pub snapshot: PathBuf,
    /// New or empty.
    pub data_dir: PathBuf,
    pub member: NewMember,
}

/// What was restored; its `Display` is what the command prints.
#[derive(Debug, Default)]
pub struct RestoreReport {}

impl std::fmt::Display for RestoreReport {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("not yet built")]
    NotYet,
}

/// Blocks until the new data directory is durable.
pub fn run(_options: &RestoreOptions) -> Result<RestoreReport, RestoreError> {
    Err(RestoreError::NotYet)
}
