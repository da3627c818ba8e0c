//! One node from its start to its end: takes the data directory and the ports, serves probes while the
//! log is read, starts the driver, sees to it that the volume becomes a member, and drains on a signal.
//! Called by main; the life of a request is in [`crate::http`].

mod warnings;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use kv_core::contract::Limits;
use kv_core::group::{MemberId, NodeName};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bootstrap::{self, Bootstrap, BootstrapError, ListedMember, Start};
use crate::compactor::Compactor;
use crate::config::{Addresses, ClusterMember, ServeConfig, StartRole};
use crate::dev;
use crate::driver::{self, BootOptions, DriverConfig, Handle, Stopped, random_u64};
use crate::http::{self, ClientTimeouts, HttpConfig, Running, Slot};
use crate::metrics::Metrics;
use crate::shutdown::{self, Draining, Signals};
use crate::wal::ailing::Ailing;
use crate::wal::{self, Damage, FileStorage, NewVolume, OnDamage, Opened, Options, StorageError, WalError};

/// Why a node did not start, or ended other than it was asked to. One line each.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address} ({flag}, environment {variable}): {error}")]
    Listen { address: String, flag: &'static str, variable: &'static str, error: io::Error },
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("data directory {dir}: {error}")]
    Log { dir: String, error: WalError },
    #[error("data directory {dir} belongs to node {found}, not to {asked}: start it with --id {found} (NODE_ID)")]
    OtherName { dir: String, found: NodeName, asked: NodeName },
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error("the node has stopped: {0:?}")]
    Stopped(Stopped),
    #[error("kv-node dev has ended")]
    Orphaned,
    #[error("aborted by a second signal")]
    Aborted,
    #[error("signals cannot be waited for: {0}")]
    Signals(io::Error),
}

/// The two ports of a node, bound.
struct Ports {
    clients: TcpListener,
    peers: TcpListener,
    url: String,
    peer_url: String,
}

/// Readers hold every segment open, so that compaction never takes a file from under them: a long log
/// needs more than the usual soft limit. The hard limit is the administrator's: before segments have taken half of it,
/// they are compacted.
fn allow_open_files() {
    let limits = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits }) {
        tracing::info!(%error, "the limit of open files stays as it was");
    }
}

fn segments_max() -> usize {
    let files_max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files_max / 2).unwrap_or(usize::MAX)
}

/// Runs a node until it is asked to end, or cannot go on.
pub async fn run(config: ServeConfig) -> Result<(), ServeError> {
    let mut signals = Signals::listen().map_err(ServeError::Signals)?;
    if config.parent_pid.is_some_and(|pid| !dev::tie_to_parent(pid)) {
        return Err(ServeError::Orphaned);
    }
    allow_open_files();
    let storage = FileStorage::open(&config.storage.data_dir)?;
    let Ports { clients, peers, url, peer_url } = bind(&config.addresses).await?;
    tracing::info!(node = %config.name, url, peer_url, data_dir = %config.storage.data_dir.display(), "starting");
    let (slot, metrics) = (Slot::default(), Arc::new(Metrics::new()));
    let http_stop = CancellationToken::new();
    let http =
        http::serve(clients, http_config(&config, &url), Arc::clone(&slot), Arc::clone(&metrics), http_stop.clone());
    let http = tokio::spawn(http);
    if let Some(token) = config.auth_token.clone() {
        tokio::spawn(token.follow());
    }

    let starting = async {
        let boot = boot_options(&config, url, peer_url);
        let (opened, peers) = open(Arc::new(storage), &config, peers, &boot).await?;
        start_driver(opened, &config, peers, boot, Arc::clone(&metrics)).await
    };
    let handle = tokio::select! {
        started = starting => started?,
        // Reading the log changes nothing that the next start could not repeat.
        signal = signals.next() => { tracing::info!(signal, "stopped while reading the log"); return Ok(()) }
    };
    let compactor = Compactor::start(handle.compaction_job(), config.compaction, Arc::clone(&metrics));
    let running = Running { handle: handle.clone(), compactor };
    assert!(slot.set(running).is_ok(), "the slot is filled here alone");
    warnings::watch_settings(handle.clone(), config.group.asked);

    let membership = tokio::spawn(bootstrap::run(bootstrap_of(&config), handle.clone()));
    let signal = wait_for_end(&mut signals, &handle, membership).await?;
    tracing::info!(signal, "draining; a second signal aborts");
    let draining = Draining { handle, drain_delay: config.drain_delay, http_stop, http };
    tokio::select! {
        stopped = shutdown::drain(draining) => require_orderly(stopped),
        _ = signals.next() => Err(ServeError::Aborted),
    }
}

async fn bind(addresses: &Addresses) -> Result<Ports, ServeError> {
    let Addresses { listen, peer_listen, url, peer_url } = addresses;
    let (clients, client_url) = listen_on(listen, "--listen", "LISTEN_ADDR").await?;
    let (peers, peers_url) = listen_on(peer_listen, "--peer-listen", "PEER_LISTEN_ADDR").await?;
    let url = url.clone().unwrap_or(client_url);
    let peer_url = peer_url.clone().unwrap_or(peers_url);
    Ok(Ports { clients, peers, url, peer_url })
}

/// The listener, and the URL by which this machine reaches it.
async fn listen_on(
    address: &str,
    flag: &'static str,
    variable: &'static str,
) -> Result<(TcpListener, String), ServeError> {
    let refused = |error| ServeError::Listen { address: address.to_owned(), flag, variable, error };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let url = url_of(listener.local_addr().map_err(refused)?);
    Ok((listener, url))
}

/// An address that stands for all of the machine's is reached as localhost.
fn url_of(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        return format!("http://localhost:{}", address.port());
    }
    format!("http://{address}")
}

/// Reads the log on threads of their own: the ports answer meanwhile. Damage that the other members can make good is
/// put right before anything is made of the log.
async fn open(
    storage: Arc<FileStorage>,
    config: &ServeConfig,
    peers: TcpListener,
    boot: &BootOptions,
) -> Result<(Opened<FileStorage>, TcpListener), ServeError> {
    let dir = config.storage.data_dir.display().to_string();
    let in_dir = |error| ServeError::Log { dir: dir.clone(), error };
    let options = Options {
        segment_bytes_max: config.storage.segment_bytes_max,
        on_damage: config.storage.on_damage,
        recovery_threads: std::thread::available_parallelism().map_or(1, usize::from),
        hash_seed: random_u64(),
        reserve_bytes: wal::RESERVE_BYTES_DEFAULT,
        storage_limit_bytes: config.storage.limit_bytes,
        segments_max: segments_max(),
    };
    let log = Arc::new((storage, options, new_volume(config)));
    let undamaged = blocking(&log, |(storage, options, new)| wal::open_undamaged(Arc::clone(storage), options, new));
    let (opened, peers) = match undamaged.await {
        Err(WalError::Damaged(_)) if config.storage.on_damage == OnDamage::Serve => {
            let ailing =
                blocking(&log, |(storage, options, _)| Ailing::look(storage, options)).await.map_err(in_dir)?;
            let (mended, peers) = heal(ailing, config, peers, boot).await?;
            let opened = blocking(&log, |(storage, options, new)| wal::open(Arc::clone(storage), options, new));
            let mut opened = opened.await.map_err(in_dir)?;
            opened.recovered.report = opened.recovered.report.after(mended);
            (opened, peers)
        }
        opened => (opened.map_err(in_dir)?, peers),
    };
    let found = &opened.recovered.hard.name;
    if *found != config.name {
        return Err(ServeError::OtherName { dir, found: found.clone(), asked: config.name.clone() });
    }
    warnings::tell_voters(config, &opened.recovered);
    Ok((opened, peers))
}

/// What was put right, and the listener that was lent for it.
async fn heal(
    ailing: Option<Ailing<FileStorage>>,
    config: &ServeConfig,
    peers: TcpListener,
    boot: &BootOptions,
) -> Result<(Vec<Damage>, TcpListener), ServeError> {
    let Some(ailing) = ailing else { return Ok((Vec::new(), peers)) };
    let refused = |error| ServeError::Listen {
        address: config.addresses.peer_listen.clone(),
        flag: "--peer-listen",
        variable: "PEER_LISTEN_ADDR",
        error,
    };
    let peers = peers.into_std().map_err(refused)?;
    let lent = TcpListener::from_std(peers.try_clone().map_err(refused)?).map_err(refused)?;
    let ailing = driver::heal(ailing, lent, config.auth_token.clone(), boot).await;
    let ailing =
        ailing.map_err(|error| ServeError::Log { dir: config.storage.data_dir.display().to_string(), error })?;
    Ok((ailing.into_mended(), TcpListener::from_std(peers).map_err(refused)?))
}

/// On a thread that may block.
async fn blocking<T: Send + Sync + 'static, R: Send + 'static>(
    with: &Arc<T>,
    work: impl FnOnce(&T) -> R + Send + 'static,
) -> R {
    let with = Arc::clone(with);
    tokio::task::spawn_blocking(move || work(&with)).await.expect("the work does not panic and is not cancelled")
}

fn new_volume(config: &ServeConfig) -> NewVolume {
    let member_id = MemberId(random_u64());
    NewVolume { name: config.name.clone(), member_id, settings: config.group.seed }
}

fn boot_options(config: &ServeConfig, url: String, peer_url: String) -> BootOptions {
    BootOptions {
        url,
        peer_url,
        tuning: config.tuning,
        lead_at_start: config.lead_at_start,
        limits: Limits::default(),
        start_id: random_u64(),
    }
}

async fn start_driver(
    opened: Opened<FileStorage>,
    config: &ServeConfig,
    peer_listener: TcpListener,
    boot: BootOptions,
    metrics: Arc<Metrics>,
) -> Result<Handle, ServeError> {
    let dir = config.storage.data_dir.display().to_string();
    let driver =
        DriverConfig { boot, peer_listener, peer_secret: config.auth_token.clone(), metrics, scrub: config.scrub };
    driver::start(opened, driver).await.map_err(|error| ServeError::Log { dir, error })
}

fn http_config(config: &ServeConfig, url: &str) -> HttpConfig {
    HttpConfig {
        name: config.name.clone(),
        url: url.to_owned(),
        listed_urls: listed_urls(&config.role),
        api_timeout: config.clients.api_timeout,
        value_bytes_max: config.clients.value_bytes_max,
        segment_bytes_max: config.storage.segment_bytes_max,
        seed_settings: config.group.seed,
        auth_token: config.auth_token.clone(),
        timeouts: ClientTimeouts::default(),
    }
}

fn listed_urls(role: &StartRole) -> BTreeMap<NodeName, String> {
    match role {
        StartRole::Cluster(file) => file.members.iter().map(|m| (m.id.clone(), m.url.clone())).collect(),
        StartRole::Alone | StartRole::Follow { .. } | StartRole::Join => BTreeMap::new(),
    }
}

fn bootstrap_of(config: &ServeConfig) -> Bootstrap {
    let start = match &config.role {
        StartRole::Alone => Start::Alone,
        StartRole::Follow { leader_url } => Start::Follow { leader_url: leader_url.clone() },
        StartRole::Cluster(file) => {
            Start::Cluster { members: file.members.iter().map(listed).collect(), leader: file.leader.clone() }
        }
        StartRole::Join => Start::Join,
    };
    Bootstrap { start, settings: config.group.seed, auth_token: config.auth_token.clone() }
}

fn listed(member: &ClusterMember) -> ListedMember {
    let ClusterMember { id, url, peer_url } = member.clone();
    ListedMember { name: id, url, peer_url }
}

/// The signal that asks the node to end; an error when it cannot go on, or never can be what it was told.
async fn wait_for_end(
    signals: &mut Signals,
    handle: &Handle,
    membership: JoinHandle<Result<Infallible, BootstrapError>>,
) -> Result<&'static str, ServeError> {
    tokio::select! {
        signal = signals.next() => Ok(signal),
        stopped = handle.stopped() => Err(ServeError::Stopped(stopped)),
        error = refusal(membership) => {
            handle.stop();
            handle.stopped().await;
            Err(error.into())
        }
    }
}

/// Completes when the node can never become a member; a node that has become one never completes it.
async fn refusal(membership: JoinHandle<Result<Infallible, BootstrapError>>) -> BootstrapError {
    let Err(error) = membership.await.expect("the task does not panic and is not cancelled");
    error
}

fn require_orderly(stopped: Stopped) -> Result<(), ServeError> {
    match stopped {
        Stopped::Requested => Ok(()),
        Stopped::Storage(_) | Stopped::Rules(_) => Err(ServeError::Stopped(stopped)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_listens_everywhere_is_reached_as_localhost() {
        let url = |text: &str| url_of(text.parse().unwrap());
        assert_eq!(url("0.0.0.0:8000"), "http://localhost:8000");
        assert_eq!(url("[::]:8000"), "http://localhost:8000");
        assert_eq!(url("127.0.0.5:8001"), "http://127.0.0.5:8001");
        assert_eq!(url("[::1]:8001"), "http://[::1]:8001");
    }
}
