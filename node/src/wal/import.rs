//! stub

use std::path::PathBuf;

use kv_core::group::{NodeName, Settings};

/// What an offline command makes a new volume's only voter of.
#[derive(Debug, Clone)]
pub struct NewMember {
    pub name: NodeName,
    pub peer_url: String,
}

/// What becomes of a line whose checksum does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDamage {
    Stop,
    Skip,
}

#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// A data directory of the Python implementation; only read.
    pub source: PathBuf,
    /// New or empty.
    pub data_dir: PathBuf,
    pub member: NewMember,
    pub settings: Settings,
    pub on_damage: OnDamage,
}

/// What was imported; its `Display` is what the command prints.
#[derive(Debug, Default)]
pub struct ImportReport {}

impl std::fmt::Display for ImportReport {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("not yet built")]
    NotYet,
}

/// Blocks until the new data directory is durable.
pub fn run(_options: &ImportOptions) -> Result<ImportReport, ImportError> {
    Err(ImportError::NotYet)
}
