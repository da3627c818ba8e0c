//! What a node is told: the only reader of flags, environment and configuration file. Everything is
//! checked here, once; the rest of the node gets typed values. Called by main alone.
//!
//! Precedence: flag, environment, file, default. [`flags`] declares every setting with its environment
//! variable, its unit and its default; [`check`] turns them into a [`ServeConfig`].

pub(crate) mod bounds;
mod check;
mod cluster_file;
mod file;
mod flags;
mod parse;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use kv_core::contract::{SettingsChange, Tuning};
use kv_core::group::{NodeName, Settings};

use crate::auth_token::AuthToken;
use crate::driver::ScrubSchedule;
use crate::wal::OnDamage;
use crate::wal::import::ImportOptions;
use crate::wal::restore::RestoreOptions;
use kv_core::status::CompactionSchedule;

pub use cluster_file::{ClusterFile, ClusterMember};
pub use flags::{DevFlags, NODE_VARIABLES, SETTING_VARIABLES};

/// What the process was asked to do.
#[derive(Debug)]
pub enum Command {
    Serve(Box<ServeConfig>),
    Dev(DevFlags),
    Verify { data_dir: PathBuf },
    Import(ImportOptions),
    Restore(RestoreOptions),
    ResetIdentity { data_dir: PathBuf, name: Option<NodeName> },
}

/// One node, as `kv-node serve` runs it.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    pub name: NodeName,
    pub addresses: Addresses,
    pub storage: StorageConfig,
    pub role: StartRole,
    /// Whether this node is the one that is told to lead at start.
    pub lead_at_start: bool,
    pub tuning: Tuning,
    pub compaction: CompactionSchedule,
    pub group: GroupSettings,
    pub clients: ClientLimits,
    pub drain_delay: Duration,
    /// The shared secret of clients that administrate and of peers.
    pub auth_token: Option<AuthToken>,
    /// The `kv-node dev` that this node ends with.
    pub parent_pid: Option<u32>,
    pub scrub: ScrubSchedule,
}

/// Where the node listens, and what it tells others about that.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// `host:port`.
    pub listen: String,
    pub peer_listen: String,
    /// None: from the address that was bound.
    pub url: Option<String>,
    pub peer_url: Option<String>,
}

#[derive(Debug, Clone)]
pub struct StorageConfig {
    pub data_dir: PathBuf,
    pub segment_bytes_max: u64,
    pub on_damage: OnDamage,
    /// 507 above it.
    pub limit_bytes: Option<u64>,
}

/// How an empty volume becomes a member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartRole {
    /// It becomes a group of one.
    Alone,
    /// It registers itself as a learner with the leader at this URL.
    Follow { leader_url: String },
    /// The members of the file found a group together.
    Cluster(ClusterFile),
    /// It waits to be bootstrapped or added.
    Join,
}

/// The group's settings are state; these seed an empty group.
#[derive(Debug, Clone, Copy)]
pub struct GroupSettings {
    pub seed: Settings,
    /// What was set by a person: worth a warning when the group's state differs.
    pub asked: SettingsChange,
}

#[derive(Debug, Clone, Copy)]
pub struct ClientLimits {
    pub value_bytes_max: usize,
    /// The longest wait for commit, forwarding or `min_id`.
    pub api_timeout: Duration,
}

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A flag or variable that clap refused, or a request for help: it knows how to print itself.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    #[error("configuration file {}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("cluster file {} (--cluster, CLUSTER): {reason}", path.display())]
    ClusterFile { path: PathBuf, reason: String },
    #[error("{0}")]
    Invalid(String),
}

/// Reads the command line (the program's name first), the environment and the files they name.
pub fn load(arguments: Vec<OsString>) -> Result<Command, ConfigError> {
    let flags = flags::parse(arguments)?;
    check::command(flags)
}
