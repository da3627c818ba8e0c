//! Every flag with its environment variable, unit, bounds and default, and the layers below them: the
//! environment's older names and the configuration file. Decides nothing about what the values mean
//! together; [`super::check`] does.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use kv_core::contract::Failover;
use kv_core::group::{DEDUP_EXPIRY_SECONDS_MAX, DEDUP_LIMIT_MAX, HISTORY_LIMIT_MAX, NodeName};

use super::bounds::{HEARTBEAT_SECONDS, SCHEDULE_SECONDS_MAX};
use super::parse::{boolean, checked, listen_address, node_name, peer_url, seconds, url, whole};
use super::{ConfigError, file};
use crate::wal::OnDamage;

const SCRUB_SECONDS: RangeInclusive<f64> = 0.01..=86_400.0;
const API_TIMEOUT_SECONDS: RangeInclusive<f64> = 0.1..=300.0;
const DRAIN_SECONDS: RangeInclusive<f64> = 0.0..=3600.0;
const INTERVAL_SECONDS: RangeInclusive<u64> = 1..=SCHEDULE_SECONDS_MAX;
const MIN_INTERVAL_SECONDS: RangeInclusive<u64> = 0..=SCHEDULE_SECONDS_MAX;
const DEDUP_EXPIRY_SECONDS: RangeInclusive<u64> = 1..=DEDUP_EXPIRY_SECONDS_MAX;
const DEDUP_RECORDS: RangeInclusive<u64> = 1..=DEDUP_LIMIT_MAX;
const HISTORY_VERSIONS: RangeInclusive<u64> = 0..=HISTORY_LIMIT_MAX as u64;
/// Up to 1 GiB; a single line may exceed it, so there is no lower bound but 1.
const SEGMENT_BYTES: RangeInclusive<u64> = 1..=1 << 30;
/// Up to 8 MiB.
const VALUE_BYTES: RangeInclusive<u64> = 1..=8 << 20;
/// From 1 MiB on: below it not even the reserve for deletes fits.
const STORAGE_BYTES: RangeInclusive<u64> = 1 << 20..=1 << 50;
const FOLLOWERS: RangeInclusive<u64> = 0..=6;
/// Peers are 1000 above, and up to six followers follow.
const BASE_PORTS: RangeInclusive<u64> = 1..=64_500;

/// Variables that say which node this is; not for the children of `kv-node dev`.
pub const NODE_VARIABLES: [&str; 13] = [
    "NODE_ID",
    "FOLLOWER_ID",
    "LISTEN_ADDR",
    "PEER_LISTEN_ADDR",
    "NODE_URL",
    "FOLLOWER_URL",
    "PEER_URL",
    "DATA_DIR",
    "LEADER_URL",
    "CLUSTER",
    "JOIN",
    "LEADER",
    "CONFIG_FILE",
];

/// Variables of settings that all nodes of a group may share.
pub const SETTING_VARIABLES: [&str; 16] = [
    "FAILOVER",
    "MAX_SEGMENT_SIZE",
    "MAX_VALUE_SIZE",
    "HEARTBEAT_INTERVAL",
    "HEARTBEAT_TIMEOUT",
    "API_TIMEOUT",
    "COMPACTION_ENABLED",
    "COMPACTION_INTERVAL",
    "MIN_COMPACTION_INTERVAL",
    "DEDUP_EXPIRY",
    "DEDUP_LIMIT",
    "HISTORY_LIMIT",
    "STORAGE_LIMIT",
    "AUTH_TOKEN_FILE",
    "DRAIN_DELAY",
    "ON_CORRUPTION",
];

/// Older names of variables: read when neither the flag nor the newer one is there.
const OLDER_VARIABLES: [(&str, &str); 2] = [("id", "FOLLOWER_ID"), ("url", "FOLLOWER_URL")];

/// A node of kvcluster, a durable, replicated key-value store.
///
/// Log level: RUST_LOG (default info). Log form: LOG_FORMAT, text or json (default: text on a terminal,
/// JSON elsewhere).
#[derive(Debug, Parser)]
#[command(name = "kv-node", version, max_term_width = 120)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: CommandFlags,
}

#[derive(Debug, Subcommand)]
pub(super) enum CommandFlags {
    /// Run one node.
    Serve(Box<ServeFlags>),
    /// Run a whole local cluster: a leader and its followers, one process each.
    Dev(DevFlags),
    /// Check a data directory without writing to it, and print a report.
    Verify(VerifyFlags),
    /// Make a data directory of the original Python implementation into a group of one.
    Import(ImportFlags),
    /// Make a backup (`GET /snapshot`) into a group of one with a new cluster id.
    Restore(RestoreFlags),
    /// Make a restored or copied data directory a new, empty member; its log is set aside.
    ResetIdentity(ResetIdentityFlags),
}

#[derive(Debug, Args)]
pub(super) struct ServeFlags {
    /// A YAML file with the same settings under the flags' names; flags and environment go first.
    #[arg(long, env = "CONFIG_FILE", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    #[command(flatten)]
    pub(super) addresses: AddressFlags,
    #[command(flatten)]
    pub(super) role: RoleFlags,
    #[command(flatten)]
    pub(super) storage: StorageFlags,
    #[command(flatten)]
    pub(super) timing: TimingFlags,
    #[command(flatten)]
    pub(super) compaction: CompactionFlags,
    #[command(flatten)]
    pub(super) group: GroupFlags,
    /// A file with the secret for administrators (Authorization: Bearer) and between peers [default: none, open].
    #[arg(long, env = "AUTH_TOKEN_FILE", value_name = "FILE")]
    pub(super) auth_token_file: Option<PathBuf>,
    /// The `kv-node dev` that started this node: the node ends when that one does.
    #[arg(long, hide = true)]
    pub(super) parent_pid: Option<u32>,
    /// Seconds between two passes over all sealed files: for tests.
    #[arg(long, hide = true, value_name = "SECONDS", value_parser = checked(|s| seconds(s, SCRUB_SECONDS)))]
    pub(super) scrub_interval: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct AddressFlags {
    /// Name of the node [default: leader; required with --leader-url; also: FOLLOWER_ID].
    #[arg(long, env = "NODE_ID", value_name = "NAME", value_parser = checked(node_name))]
    pub(super) id: Option<NodeName>,
    /// Where clients connect.
    #[arg(long, env = "LISTEN_ADDR", value_name = "HOST:PORT", default_value = "0.0.0.0:8000", value_parser = checked(listen_address))]
    pub(super) listen: String,
    /// Where peers connect.
    #[arg(long, env = "PEER_LISTEN_ADDR", value_name = "HOST:PORT", default_value = "0.0.0.0:9000", value_parser = checked(listen_address))]
    pub(super) peer_listen: String,
    /// This node's URL as others reach it [default: from the listen address; also: FOLLOWER_URL].
    #[arg(long, env = "NODE_URL", value_name = "URL", value_parser = checked(url))]
    pub(super) url: Option<String>,
    /// This node's peer port as others reach it [default: from the peer listen address].
    #[arg(long, env = "PEER_URL", value_name = "URL", value_parser = checked(peer_url))]
    pub(super) peer_url: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct RoleFlags {
    /// Follow the leader at this URL: register there as a learner [default: none].
    #[arg(long, env = "LEADER_URL", value_name = "URL", value_parser = checked(url))]
    pub(super) leader_url: Option<String>,
    /// A YAML file {members: [{id, url, peer_url}], leader: id, failover} of nodes that found a group [default: none].
    #[arg(long, env = "CLUSTER", value_name = "FILE")]
    pub(super) cluster: Option<PathBuf>,
    /// An empty volume waits to be bootstrapped or added.
    #[arg(long, env = "JOIN", num_args = 0..=1, default_missing_value = "true", default_value = "false", action = ArgAction::Set, value_parser = checked(boolean))]
    pub(super) join: bool,
    /// Name of the node that is told to lead at start [default: the cluster file's].
    #[arg(long, env = "LEADER", value_name = "NAME", value_parser = checked(node_name))]
    pub(super) leader: Option<NodeName>,
    /// Who starts elections: manual (only who is told to) or automatic [default: the cluster file's, or manual].
    #[arg(long, env = "FAILOVER", value_name = "MODE", value_parser = checked(failover))]
    pub(super) failover: Option<Failover>,
}

#[derive(Debug, Args)]
pub(super) struct StorageFlags {
    /// Data directory [default: data/leader; with --leader-url data/followers/<id>].
    #[arg(long, env = "DATA_DIR", value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Bytes after which a log segment is sealed.
    #[arg(long, env = "MAX_SEGMENT_SIZE", value_name = "BYTES", default_value = "1048576", value_parser = checked(|s| whole(s, SEGMENT_BYTES, "bytes")))]
    pub(super) max_segment_size: u64,
    /// Most bytes of a value; up to 8 MiB.
    #[arg(long, env = "MAX_VALUE_SIZE", value_name = "BYTES", default_value = "1048576", value_parser = checked(|s| whole(s, VALUE_BYTES, "bytes")))]
    pub(super) max_value_size: u64,
    /// Bytes on disk above which writes are refused with 507 [default: none].
    #[arg(long, env = "STORAGE_LIMIT", value_name = "BYTES", value_parser = checked(|s| whole(s, STORAGE_BYTES, "bytes")))]
    pub(super) storage_limit: Option<u64>,
    /// What to do about a damaged log: serve (what is valid, and report) or refuse (to start).
    #[arg(long, env = "ON_CORRUPTION", value_name = "MODE", default_value = "serve", value_parser = checked(on_damage))]
    pub(super) on_corruption: OnDamage,
}

#[derive(Debug, Args)]
pub(super) struct TimingFlags {
    /// Seconds between heartbeats, fractions allowed.
    #[arg(long, env = "HEARTBEAT_INTERVAL", value_name = "SECONDS", default_value = "10", value_parser = checked(|s| seconds(s, HEARTBEAT_SECONDS)))]
    pub(super) heartbeat_interval: Duration,
    /// Seconds without a heartbeat after which a node counts as down [default: 3 x the interval].
    #[arg(long, env = "HEARTBEAT_TIMEOUT", value_name = "SECONDS", value_parser = checked(|s| seconds(s, HEARTBEAT_SECONDS)))]
    pub(super) heartbeat_timeout: Option<Duration>,
    /// Seconds: the longest wait of a request for commit, forwarding or min_id.
    #[arg(long, env = "API_TIMEOUT", value_name = "SECONDS", default_value = "5", value_parser = checked(|s| seconds(s, API_TIMEOUT_SECONDS)))]
    pub(super) api_timeout: Duration,
    /// Seconds that a stopping node goes on accepting and forwarding.
    #[arg(long, env = "DRAIN_DELAY", value_name = "SECONDS", default_value = "0", value_parser = checked(|s| seconds(s, DRAIN_SECONDS)))]
    pub(super) drain_delay: Duration,
}

#[derive(Debug, Args)]
pub(super) struct CompactionFlags {
    /// Whether the log is compacted periodically.
    #[arg(long, env = "COMPACTION_ENABLED", num_args = 0..=1, default_missing_value = "true", default_value = "true", action = ArgAction::Set, value_parser = checked(boolean))]
    pub(super) compaction_enabled: bool,
    /// Seconds between periodic compactions.
    #[arg(long, env = "COMPACTION_INTERVAL", value_name = "SECONDS", default_value = "3600", value_parser = checked(|s| whole(s, INTERVAL_SECONDS, "seconds")))]
    pub(super) compaction_interval: u64,
    /// Seconds that must pass between two compactions, unless one is forced.
    #[arg(long, env = "MIN_COMPACTION_INTERVAL", value_name = "SECONDS", default_value = "600", value_parser = checked(|s| whole(s, MIN_INTERVAL_SECONDS, "seconds")))]
    pub(super) min_compaction_interval: u64,
}

/// Seeds of the group's settings. Later, `POST /cluster/settings` changes them.
#[derive(Debug, Args)]
pub(super) struct GroupFlags {
    /// Seconds for which a new group remembers requests for deduplication [default: 3600].
    #[arg(long, env = "DEDUP_EXPIRY", value_name = "SECONDS", value_parser = checked(|s| whole(s, DEDUP_EXPIRY_SECONDS, "seconds")))]
    pub(super) dedup_expiry: Option<u64>,
    /// Most requests that a new group remembers, in records [default: 1000000].
    #[arg(long, env = "DEDUP_LIMIT", value_name = "RECORDS", value_parser = checked(|s| whole(s, DEDUP_RECORDS, "records")))]
    pub(super) dedup_limit: Option<u64>,
    /// Earlier versions that a new group keeps for each key [default: 100].
    #[arg(long, env = "HISTORY_LIMIT", value_name = "VERSIONS", value_parser = checked(|s| whole(s, HISTORY_VERSIONS, "versions")))]
    pub(super) history_limit: Option<u64>,
}

/// The local cluster of `kv-node dev`. Settings for its nodes come from the environment.
#[derive(Debug, Args)]
pub struct DevFlags {
    /// How many followers besides the leader.
    #[arg(long, value_name = "NUMBER", default_value = "2", value_parser = checked(|s| whole(s, FOLLOWERS, "followers")))]
    pub followers: u64,
    /// Client port of the leader; followers take the next ones, peers 1000 above.
    #[arg(long, value_name = "PORT", default_value = "8000", value_parser = checked(|s| whole(s, BASE_PORTS, "ports")))]
    pub base_port: u64,
    /// Directory for the data of all nodes.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub data_dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct VerifyFlags {
    /// The data directory; a node may be running on it.
    #[arg(value_name = "DIR")]
    pub(super) data_dir: PathBuf,
}

/// Who the only member of a group is that an offline command makes.
#[derive(Debug, Args)]
pub(super) struct NewMemberFlags {
    /// A new or empty directory.
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: PathBuf,
    /// Name of the node that will serve it.
    #[arg(long, value_name = "NAME", default_value = "leader", value_parser = checked(node_name))]
    pub(super) id: NodeName,
    /// Where peers will reach that node.
    #[arg(long, value_name = "URL", default_value = "http://localhost:9000", value_parser = checked(peer_url))]
    pub(super) peer_url: String,
}

#[derive(Debug, Args)]
pub(super) struct ImportFlags {
    /// The data directory of the Python implementation; it is only read.
    #[arg(value_name = "DIR")]
    pub(super) source: PathBuf,
    #[command(flatten)]
    pub(super) member: NewMemberFlags,
    #[command(flatten)]
    pub(super) group: GroupFlags,
    /// Leave damaged lines out (each is named) instead of stopping at the first.
    #[arg(long)]
    pub(super) skip_corrupt: bool,
}

#[derive(Debug, Args)]
pub(super) struct RestoreFlags {
    /// What `GET /snapshot` streamed.
    #[arg(value_name = "FILE")]
    pub(super) snapshot: PathBuf,
    #[command(flatten)]
    pub(super) member: NewMemberFlags,
}

#[derive(Debug, Args)]
pub(super) struct ResetIdentityFlags {
    /// The data directory of a node that is not running.
    #[arg(value_name = "DIR", required_unless_present = "data_dir")]
    pub(super) dir: Option<PathBuf>,
    /// The same, as a flag.
    #[arg(long, value_name = "DIR", conflicts_with = "dir")]
    pub(super) data_dir: Option<PathBuf>,
    /// A new name for the node [default: the one it had].
    #[arg(long, value_name = "NAME", value_parser = checked(node_name))]
    pub(super) id: Option<NodeName>,
}

fn failover(text: &str) -> Result<Failover, String> {
    text.parse().map_err(str::to_owned)
}

fn on_damage(text: &str) -> Result<OnDamage, String> {
    match text {
        "serve" => Ok(OnDamage::Serve),
        "refuse" => Ok(OnDamage::Refuse),
        _ => Err("must be serve or refuse".into()),
    }
}

/// Reads the flags of all layers: command line, environment, older variables, file, defaults.
pub(super) fn parse(arguments: Vec<OsString>) -> Result<Cli, ConfigError> {
    let command = without_empty_variables(Cli::command());
    let mut matches = command.clone().try_get_matches_from(&arguments)?;
    if let Some(("serve", serve)) = matches.subcommand() {
        let serve_command = command.find_subcommand("serve").expect("serve was just parsed");
        let older = older_variables(serve);
        let path: Option<PathBuf> = serve.get_one("config").cloned();
        let from_file = path.as_deref().map(|path| missing_from_file(path, serve_command, serve)).transpose()?;
        matches = command.clone().try_get_matches_from(with_more(&arguments, older.clone()))?;
        if let Some((path, settings)) = path.zip(from_file) {
            // Older variables go before the file: what they set is not taken from it.
            let below = settings.into_iter().filter(|s| !older.iter().any(|o| same_flag(o, s))).collect::<Vec<_>>();
            let all = with_more(&arguments, older.into_iter().chain(below));
            matches = command.try_get_matches_from(all).map_err(|error| in_file(path, &error))?;
        }
    }
    Ok(Cli::from_arg_matches(&matches)?)
}

/// A variable that is set to nothing is not set: deployment tools often leave them like that.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    command.mut_subcommand("serve", |serve| {
        serve.mut_args(|arg| {
            let is_empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
            if is_empty { arg.env(clap::builder::Resettable::Reset) } else { arg }
        })
    })
}

fn is_given(serve: &clap::ArgMatches, id: &str) -> bool {
    matches!(serve.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

fn older_variables(serve: &clap::ArgMatches) -> Vec<String> {
    let unset = OLDER_VARIABLES.iter().filter(|(flag, _)| !is_given(serve, flag));
    let set = unset.filter_map(|(flag, variable)| Some((flag, std::env::var(variable).ok()?)));
    set.filter(|(_, value)| !value.is_empty()).map(|(flag, value)| format!("--{flag}={value}")).collect()
}

/// The file's settings that neither a flag nor the environment has set, as flags.
fn missing_from_file(
    path: &Path,
    command: &clap::Command,
    serve: &clap::ArgMatches,
) -> Result<Vec<String>, ConfigError> {
    let flags = command.get_arguments().filter_map(|arg| Some((arg.get_long()?.to_owned(), arg.get_id().as_str())));
    let flags: Vec<_> = flags.filter(|(long, _)| !["config", "parent-pid"].contains(&long.as_str())).collect();
    let known: Vec<String> = flags.iter().map(|(long, _)| long.clone()).collect();
    let is_missing = |flag: &str| flags.iter().any(|(long, id)| long == flag && !is_given(serve, id));
    let settings = file::read(path, &known)?.into_iter();
    Ok(settings.filter(|(flag, _)| is_missing(flag)).map(|(flag, value)| format!("--{flag}={value}")).collect())
}

fn same_flag(a: &str, b: &str) -> bool {
    a.split('=').next() == b.split('=').next()
}

/// The command line with more flags right behind `serve`.
fn with_more(arguments: &[OsString], more: impl IntoIterator<Item = String>) -> Vec<OsString> {
    let (before, after) = arguments.split_at(2.min(arguments.len()));
    before.iter().cloned().chain(more.into_iter().map(OsString::from)).chain(after.iter().cloned()).collect()
}

/// All that was wrong before is the file's fault: the flags alone were accepted.
fn in_file(path: PathBuf, error: &clap::Error) -> ConfigError {
    let text = error.to_string();
    let reason = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    ConfigError::File { path, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declaration_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_variable_of_serve_is_either_of_the_node_or_of_the_group() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        let declared = serve.get_arguments().filter_map(|arg| arg.get_env()?.to_str());
        let mut missing: Vec<&str> =
            declared.filter(|v| !NODE_VARIABLES.contains(v) && !SETTING_VARIABLES.contains(v)).collect();
        missing.retain(|variable| !OLDER_VARIABLES.iter().any(|(_, older)| older == variable));
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn every_flag_of_serve_has_a_variable() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        let without: Vec<_> =
            serve.get_arguments().filter(|arg| arg.get_env().is_none() && !arg.is_hide_set()).collect();
        assert!(without.is_empty(), "{without:?}");
    }
}
