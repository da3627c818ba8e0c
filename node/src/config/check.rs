//! From flags to a configuration: what depends on several of them, and what must not go together.

use std::path::PathBuf;
use std::time::Duration;

use kv_core::contract::{Failover, SettingsChange, Tuning};
use kv_core::group::{NodeName, Settings};

use super::flags::{
    AddressFlags, Cli, CommandFlags, CompactionFlags, GroupFlags, ImportFlags, NewMemberFlags, ResetIdentityFlags,
    RestoreFlags, RoleFlags, ServeFlags, StorageFlags, TimingFlags, VerifyFlags,
};
use super::{
    Addresses, ClientLimits, ClusterFile, Command, ConfigError, GroupSettings, ServeConfig, StartRole, StorageConfig,
};
use crate::auth_token::AuthToken;
use crate::driver::ScrubSchedule;
use crate::wal::import::{ImportOptions, NewMember, OnDamage};
use crate::wal::restore::RestoreOptions;
use kv_core::status::CompactionSchedule;

/// The default of `--id`.
const LEADER_NAME: &str = "leader";
/// The default of `--heartbeat-timeout`, in intervals.
const TIMEOUT_INTERVALS: u32 = 3;

pub(super) fn command(cli: Cli) -> Result<Command, ConfigError> {
    Ok(match cli.command {
        CommandFlags::Serve(flags) => Command::Serve(Box::new(serve(*flags)?)),
        CommandFlags::Dev(flags) => Command::Dev(flags),
        CommandFlags::Verify(VerifyFlags { data_dir }) => Command::Verify { data_dir },
        CommandFlags::Import(flags) => Command::Import(import(flags)),
        CommandFlags::Restore(RestoreFlags { snapshot, member }) => {
            let (data_dir, member) = new_member(member);
            Command::Restore(RestoreOptions { snapshot, data_dir, member })
        }
        CommandFlags::ResetIdentity(ResetIdentityFlags { dir, data_dir, id }) => {
            let data_dir = dir.or(data_dir).expect("one of the two is required");
            Command::ResetIdentity { data_dir, name: id }
        }
    })
}

fn import(flags: ImportFlags) -> ImportOptions {
    let ImportFlags { source, member, group, skip_corrupt } = flags;
    let (data_dir, member) = new_member(member);
    let on_damage = if skip_corrupt { OnDamage::Skip } else { OnDamage::Stop };
    ImportOptions { source, data_dir, member, settings: group_settings(group).seed, on_damage }
}

fn new_member(flags: NewMemberFlags) -> (PathBuf, NewMember) {
    let NewMemberFlags { data_dir, id, peer_url } = flags;
    (data_dir, NewMember { name: id, peer_url })
}

fn serve(flags: ServeFlags) -> Result<ServeConfig, ConfigError> {
    let ServeFlags {
        config: _,
        addresses,
        role,
        storage,
        timing,
        compaction,
        group,
        auth_token_file,
        parent_pid,
        scrub_interval,
    } = flags;
    let AddressFlags { id, listen, peer_listen, url, peer_url } = addresses;
    let RoleFlags { leader_url, cluster, join, leader, failover } = role;
    let TimingFlags { heartbeat_interval, heartbeat_timeout, api_timeout, drain_delay } = timing;
    let role = start_role(leader_url, cluster, join)?;
    let name = node_name(id, &role)?;
    let file = if let StartRole::Cluster(file) = &role { Some(file) } else { None };
    let own = file.and_then(|file| file.member(&name));
    let addresses = Addresses {
        listen,
        peer_listen,
        url: url.or_else(|| own.map(|member| member.url.clone())),
        peer_url: peer_url.or_else(|| own.map(|member| member.peer_url.clone())),
    };
    let leader = leader.or_else(|| file.map(|file| file.leader.clone()));
    let failover = failover.or_else(|| file.and_then(|file| file.failover)).unwrap_or(Failover::Manual);
    let clients = ClientLimits {
        value_bytes_max: usize::try_from(storage.max_value_size).expect("bounded by 8 MiB"),
        api_timeout,
    };
    Ok(ServeConfig {
        storage: storage_config(storage, &name, &role),
        lead_at_start: leader.is_some_and(|leader| leader == name),
        tuning: tuning(heartbeat_interval, heartbeat_timeout, failover)?,
        compaction: schedule(&compaction),
        group: group_settings(group),
        auth_token: auth_token_file.map(auth_token).transpose()?,
        name,
        addresses,
        role,
        clients,
        drain_delay,
        parent_pid,
        scrub: scrub_interval.map_or_else(ScrubSchedule::default, |interval| ScrubSchedule { interval }),
    })
}

fn start_role(leader_url: Option<String>, cluster: Option<PathBuf>, join: bool) -> Result<StartRole, ConfigError> {
    match (leader_url, cluster, join) {
        (None, None, false) => Ok(StartRole::Alone),
        (Some(leader_url), None, false) => Ok(StartRole::Follow { leader_url }),
        (None, Some(path), false) => ClusterFile::read(&path).map(StartRole::Cluster),
        (None, None, true) => Ok(StartRole::Join),
        _ => Err(ConfigError::Invalid(
            "only one of --leader-url (LEADER_URL), --cluster (CLUSTER) and --join (JOIN) may be set".into(),
        )),
    }
}

fn node_name(id: Option<NodeName>, role: &StartRole) -> Result<NodeName, ConfigError> {
    let default = || NodeName::new(LEADER_NAME).expect("a legal name");
    match (id, role) {
        (None, StartRole::Follow { .. }) => {
            Err(ConfigError::Invalid("--id (NODE_ID or FOLLOWER_ID) is required with --leader-url (LEADER_URL)".into()))
        }
        (id, StartRole::Cluster(file)) => {
            let name = id.unwrap_or_else(default);
            let refusal = || format!("--id (NODE_ID) is {name}, which is not a member in the cluster file (--cluster)");
            if file.member(&name).is_none() { Err(ConfigError::Invalid(refusal())) } else { Ok(name) }
        }
        (id, StartRole::Follow { .. } | StartRole::Alone | StartRole::Join) => Ok(id.unwrap_or_else(default)),
    }
}

fn storage_config(flags: StorageFlags, name: &NodeName, role: &StartRole) -> StorageConfig {
    let StorageFlags { data_dir, max_segment_size, max_value_size: _, storage_limit, on_corruption } = flags;
    let default_dir = || match role {
        StartRole::Follow { .. } => PathBuf::from("data/followers").join(name.as_str()),
        StartRole::Alone | StartRole::Cluster(_) | StartRole::Join => PathBuf::from("data/leader"),
    };
    StorageConfig {
        data_dir: data_dir.unwrap_or_else(default_dir),
        segment_bytes_max: max_segment_size,
        on_damage: on_corruption,
        limit_bytes: storage_limit,
    }
}

fn tuning(interval: Duration, timeout: Option<Duration>, failover: Failover) -> Result<Tuning, ConfigError> {
    let timeout = timeout.unwrap_or(interval * TIMEOUT_INTERVALS);
    if timeout <= interval {
        return Err(ConfigError::Invalid(format!(
            "--heartbeat-timeout (HEARTBEAT_TIMEOUT) is {} s: it must be longer than --heartbeat-interval \
             (HEARTBEAT_INTERVAL), which is {} s",
            timeout.as_secs_f64(),
            interval.as_secs_f64()
        )));
    }
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).expect("bounded by days");
    Ok(Tuning { heartbeat_interval_ms: ms(interval), heartbeat_timeout_ms: ms(timeout), failover })
}

fn schedule(flags: &CompactionFlags) -> CompactionSchedule {
    let CompactionFlags { compaction_enabled, compaction_interval, min_compaction_interval } = flags;
    CompactionSchedule {
        enabled: *compaction_enabled,
        interval_seconds: *compaction_interval,
        min_interval_seconds: *min_compaction_interval,
    }
}

fn group_settings(flags: GroupFlags) -> GroupSettings {
    let GroupFlags { dedup_expiry, dedup_limit, history_limit } = flags;
    let history_limit = history_limit.map(|n| u32::try_from(n).expect("bounded by a million"));
    let default = Settings::default();
    let seed = Settings {
        history_limit: history_limit.unwrap_or(default.history_limit),
        dedup_expiry_seconds: dedup_expiry.unwrap_or(default.dedup_expiry_seconds),
        dedup_limit: dedup_limit.unwrap_or(default.dedup_limit),
    };
    GroupSettings { seed, asked: SettingsChange { history_limit, dedup_expiry_seconds: dedup_expiry, dedup_limit } }
}

fn auth_token(path: PathBuf) -> Result<AuthToken, ConfigError> {
    AuthToken::read(path.clone()).map_err(|error| {
        ConfigError::Invalid(format!("--auth-token-file (AUTH_TOKEN_FILE) {}: {error}", path.display()))
    })
}
