//! The command line as a person meets it: help, refusals, precedence, the offline commands, the local
//! cluster. Runs the binary; the node's answers to clients are tested elsewhere.

#![cfg(test)]

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use kv_node::wal::FileStorage;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Far above what any start or end takes.
const DEADLINE: Duration = Duration::from_secs(60);

fn kv_node(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv-node"));
    command.env_clear().current_dir(dir).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Fails, and says why in words that contain all of `named`.
#[track_caller]
fn refused(command: &mut Command, named: &[&str]) -> String {
    let output = run(command);
    let text = stderr(&output);
    assert!(!output.status.success(), "was not refused: {text}");
    for word in named {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
    text
}

/// A node that was started on free ports of this machine.
struct Node {
    child: Child,
    url: String,
}

impl Node {
    fn start(dir: &Path, data_dir: &str, arguments: &[&str]) -> Self {
        Self::spawn(kv_node(dir), data_dir, arguments)
    }

    fn spawn(mut command: Command, data_dir: &str, arguments: &[&str]) -> Self {
        command.args(["serve", "--listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0", "--data-dir", data_dir]);
        let mut child = command.args(arguments).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let first: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not a log line: {line}"));
        let url = first["url"].as_str().expect("the first line names the url").to_owned();
        // The rest of the log is read so that the node never waits for a full pipe.
        std::thread::spawn(move || log.read_to_string(&mut String::new()));
        Self { child, url }
    }

    async fn ready(self) -> Self {
        let url = format!("{}/readyz", self.url);
        eventually("the node is ready", async || {
            client().get(&url).send().await.is_ok_and(|answer| answer.status() == 200).then_some(())
        })
        .await;
        self
    }

    async fn put(&self, key: &str, body: &str) {
        let answer = client().put(format!("{}/key/{key}", self.url)).body(body.to_owned()).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    }

    async fn get(&self, path: &str) -> String {
        client().get(format!("{}{path}", self.url)).send().await.unwrap().text().await.unwrap()
    }

    fn stop(mut self) {
        signal(&self.child, Signal::TERM);
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "SIGTERM ends a node with exit code 0");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Looks until there is something to see.
async fn eventually<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let looks = async {
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        loop {
            pause.tick().await;
            if let Some(seen) = look().await {
                return seen;
            }
        }
    };
    tokio::time::timeout(DEADLINE, looks).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(DEADLINE).no_proxy().build().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), signal).unwrap();
}

#[test]
fn help_shows_every_flag_with_its_variable_unit_and_default() {
    let dir = TempDir::new().unwrap();
    let help = stdout(&run(kv_node(dir.path()).args(["serve", "--help"])));
    let shown = [
        ("--id", "NODE_ID", "FOLLOWER_ID"),
        ("--listen", "LISTEN_ADDR", "0.0.0.0:8000"),
        ("--peer-listen", "PEER_LISTEN_ADDR", "0.0.0.0:9000"),
        ("--url", "NODE_URL", "FOLLOWER_URL"),
        ("--peer-url", "PEER_URL", "peer listen address"),
        ("--data-dir", "DATA_DIR", "data/leader"),
        ("--leader-url", "LEADER_URL", "none"),
        ("--cluster", "CLUSTER", "none"),
        ("--join", "JOIN", "false"),
        ("--leader", "LEADER", "cluster file"),
        ("--failover", "FAILOVER", "manual"),
        ("--max-segment-size", "MAX_SEGMENT_SIZE", "1048576"),
        ("--max-value-size", "MAX_VALUE_SIZE", "<BYTES>"),
        ("--heartbeat-interval", "HEARTBEAT_INTERVAL", "<SECONDS>"),
        ("--heartbeat-timeout", "HEARTBEAT_TIMEOUT", "3 x the interval"),
        ("--api-timeout", "API_TIMEOUT", "default: 5"),
        ("--compaction-enabled", "COMPACTION_ENABLED", "true"),
        ("--compaction-interval", "COMPACTION_INTERVAL", "3600"),
        ("--min-compaction-interval", "MIN_COMPACTION_INTERVAL", "600"),
        ("--dedup-expiry", "DEDUP_EXPIRY", "3600"),
        ("--dedup-limit", "DEDUP_LIMIT", "1000000"),
        ("--history-limit", "HISTORY_LIMIT", "100"),
        ("--storage-limit", "STORAGE_LIMIT", "none"),
        ("--auth-token-file", "AUTH_TOKEN_FILE", "none"),
        ("--drain-delay", "DRAIN_DELAY", "default: 0"),
        ("--on-corruption", "ON_CORRUPTION", "serve"),
    ];
    for (flag, variable, default) in shown {
        assert!(help.contains(flag) && help.contains(variable), "{flag} with {variable} is not in:\n{help}");
        assert!(help.contains(default), "{default} is not in:\n{help}");
    }
}

#[test]
fn a_value_out_of_range_is_refused_with_its_flag_and_variable() {
    let dir = TempDir::new().unwrap();
    let cases = [
        ("--heartbeat-interval", "HEARTBEAT_INTERVAL", "0"),
        ("--heartbeat-timeout", "HEARTBEAT_TIMEOUT", "-1"),
        ("--api-timeout", "API_TIMEOUT", "NaN"),
        ("--drain-delay", "DRAIN_DELAY", "forever"),
        ("--max-segment-size", "MAX_SEGMENT_SIZE", "0"),
        ("--max-value-size", "MAX_VALUE_SIZE", "8388609"),
        ("--compaction-interval", "COMPACTION_INTERVAL", "0"),
        ("--min-compaction-interval", "MIN_COMPACTION_INTERVAL", "1.5"),
        ("--compaction-enabled", "COMPACTION_ENABLED", "perhaps"),
        ("--dedup-expiry", "DEDUP_EXPIRY", "0"),
        ("--dedup-limit", "DEDUP_LIMIT", "0"),
        ("--dedup-limit", "DEDUP_LIMIT", "10000001"),
        ("--history-limit", "HISTORY_LIMIT", "-1"),
        ("--history-limit", "HISTORY_LIMIT", "100001"),
        ("--storage-limit", "STORAGE_LIMIT", "1"),
        ("--failover", "FAILOVER", "never"),
        ("--on-corruption", "ON_CORRUPTION", "ignore"),
        ("--join", "JOIN", "maybe"),
        ("--listen", "LISTEN_ADDR", "8000"),
        ("--id", "NODE_ID", "a/b"),
        ("--url", "NODE_URL", "localhost:8000"),
        ("--leader-url", "LEADER_URL", "ftp://leader"),
        ("--peer-url", "PEER_URL", "localhost"),
    ];
    for (flag, variable, value) in cases {
        refused(kv_node(dir.path()).arg("serve").arg(format!("{flag}={value}")), &[flag, variable, value]);
        refused(kv_node(dir.path()).arg("serve").env(variable, value), &[flag, variable, value]);
    }
    assert!(!dir.path().join("data").exists(), "nothing is created by a command line that is refused");
}

#[test]
fn a_time_out_that_is_not_longer_than_the_interval_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut command = kv_node(dir.path());
    command.args(["serve", "--heartbeat-interval", "2", "--heartbeat-timeout", "2"]);
    refused(&mut command, &["HEARTBEAT_TIMEOUT", "HEARTBEAT_INTERVAL"]);
}

#[test]
fn an_unknown_setting_in_the_file_is_named() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("kv.yaml"), "data_dir: d\nhistory_limitt: 5\n").unwrap();
    refused(kv_node(dir.path()).args(["serve", "--config", "kv.yaml"]), &["kv.yaml", "history_limitt"]);
    refused(kv_node(dir.path()).args(["serve", "--config", "absent.yaml"]), &["absent.yaml"]);
}

#[test]
fn a_bad_value_in_the_file_names_file_flag_and_variable() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("kv.yaml"), "history_limit: many\n").unwrap();
    let mut command = kv_node(dir.path());
    refused(command.args(["serve", "--config", "kv.yaml"]), &["kv.yaml", "--history-limit", "HISTORY_LIMIT", "many"]);
}

#[test]
fn flags_go_before_variables_and_variables_before_the_file() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("kv.yaml"), "cluster: of-file\n").unwrap();
    let with_file = || {
        let mut command = kv_node(dir.path());
        command.args(["serve", "--config", "kv.yaml"]);
        command
    };
    refused(&mut with_file(), &["of-file"]);
    refused(with_file().env("CLUSTER", "of-variable"), &["of-variable"]);
    refused(with_file().env("CLUSTER", "of-variable").args(["--cluster", "of-flag"]), &["of-flag"]);
    // A variable that is set to nothing is not set.
    refused(with_file().env("CLUSTER", ""), &["of-file"]);
}

#[test]
fn a_follower_needs_a_name_which_may_come_from_the_older_variable() {
    let dir = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let follower = || {
        let mut command = kv_node(dir.path());
        command.args(["serve", "--leader-url", "http://localhost:1", "--listen", &address]);
        command
    };
    refused(&mut follower(), &["--id", "--leader-url"]);
    refused(follower().env("FOLLOWER_ID", "follower-7"), &[&address]);
    assert!(dir.path().join("data/followers/follower-7").is_dir());
}

#[test]
fn roles_that_contradict_each_other_are_refused() {
    let dir = TempDir::new().unwrap();
    let mut command = kv_node(dir.path());
    command.args(["serve", "--id", "a", "--join", "--leader-url", "http://localhost:1"]);
    refused(&mut command, &["--leader-url", "--join"]);
    let file = "{members: [{id: a, url: 'http://localhost:1', peer_url: 'localhost:2'}], leader: a}";
    std::fs::write(dir.path().join("cluster.yaml"), file).unwrap();
    let mut command = kv_node(dir.path());
    refused(command.args(["serve", "--id", "b", "--cluster", "cluster.yaml"]), &["--id", "b", "cluster file"]);
}

#[test]
fn a_port_in_use_is_named_with_its_flag() {
    let dir = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let text = refused(kv_node(dir.path()).args(["serve", "--listen", &address]), &[&address, "--listen", "in use"]);
    assert_eq!(text.lines().count(), 1, "{text}");
    let mut command = kv_node(dir.path());
    command.args(["serve", "--listen", "127.0.0.1:0", "--peer-listen", &address]);
    refused(&mut command, &[&address, "--peer-listen", "PEER_LISTEN_ADDR"]);
}

#[test]
fn a_data_directory_in_use_is_refused() {
    let dir = TempDir::new().unwrap();
    let _holder = FileStorage::open(&dir.path().join("d")).unwrap();
    let text = refused(kv_node(dir.path()).args(["serve", "--data-dir", "d"]), &["d", "in use"]);
    assert_eq!(text.lines().count(), 1, "{text}");
    refused(kv_node(dir.path()).args(["reset-identity", "d"]), &["in use"]);
}

#[test]
fn a_data_directory_that_cannot_be_made_is_refused() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let text = refused(kv_node(dir.path()).args(["serve", "--data-dir", "file/d"]), &["file/d"]);
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn an_empty_secret_is_refused() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("token"), "\n").unwrap();
    let mut command = kv_node(dir.path());
    refused(command.args(["serve", "--auth-token-file", "token"]), &["--auth-token-file", "empty"]);
}

#[tokio::test]
async fn a_machine_without_ca_roots_is_no_reason_not_to_start() {
    let dir = TempDir::new().unwrap();
    let mut command = kv_node(dir.path());
    command.env("SSL_CERT_FILE", "/nonexistent").env("SSL_CERT_DIR", "/nonexistent");
    Node::spawn(command, "d", &["--id", "a"]).ready().await.stop();
}

#[tokio::test]
async fn a_directory_of_another_node_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    Node::start(dir.path(), "d", &["--id", "a"]).ready().await.stop();
    let mut command = kv_node(dir.path());
    command.args(["serve", "--listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0", "--data-dir", "d", "--id", "b"]);
    refused(&mut command, &["belongs to node a", "--id a"]);
}

#[tokio::test]
async fn a_backup_is_verified_and_restored_with_its_history() {
    let dir = TempDir::new().unwrap();
    let node = Node::start(dir.path(), "original", &[]).ready().await;
    node.put("config", r#"{"value":"first"}"#).await;
    node.put("config", r#"{"value":{"b":1,"a":[null]}}"#).await;
    let history = node.get("/key/config/history").await;
    std::fs::write(dir.path().join("backup.kv"), node.get("/snapshot").await).unwrap();
    node.stop();

    let verified = run(kv_node(dir.path()).args(["verify", "original"]));
    assert!(verified.status.success(), "{}", stdout(&verified));
    let restored = run(kv_node(dir.path()).args(["restore", "backup.kv", "--data-dir", "copy"]));
    assert!(restored.status.success(), "{}", stderr(&restored));
    refused(kv_node(dir.path()).args(["restore", "backup.kv", "--data-dir", "copy"]), &["copy", "empty"]);

    let copy = Node::start(dir.path(), "copy", &[]).ready().await;
    assert_eq!(copy.get("/key/config/history").await, history);
    copy.stop();
}

#[tokio::test]
async fn what_is_imported_can_be_served() {
    let dir = TempDir::new().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/python-wal");
    let mut command = kv_node(dir.path());
    let imported = run(command.arg("import").arg(source).args(["--data-dir", "d", "--skip-corrupt"]));
    assert!(imported.status.success(), "{}", stderr(&imported));
    let node = Node::start(dir.path(), "d", &[]).ready().await;
    let keys: Value = serde_json::from_str(&node.get("/keys").await).unwrap();
    assert!(keys["count"].as_u64() > Some(0), "{keys}");
    node.stop();
    assert!(run(kv_node(dir.path()).args(["verify", "d"])).status.success());
}

#[tokio::test]
async fn a_reset_identity_is_a_new_empty_member_and_keeps_the_old_files_aside() {
    let dir = TempDir::new().unwrap();
    let node = Node::start(dir.path(), "d", &["--id", "a"]).ready().await;
    node.put("k", r#"{"value":1}"#).await;
    let before: Value = serde_json::from_str(&node.get("/status").await).unwrap();
    node.stop();
    let reset = run(kv_node(dir.path()).args(["reset-identity", "d"]));
    assert!(reset.status.success(), "{}", stderr(&reset));
    assert!(dir.path().join("d/former-identity.1/manifest.json").is_file());

    let node = Node::start(dir.path(), "d", &["--id", "a", "--join"]);
    let after = eventually("the node has a status", async || {
        let status: Value = serde_json::from_str(&node.get("/status").await).unwrap();
        status["member_id"].is_string().then_some(status)
    })
    .await;
    assert_ne!(before["member_id"], after["member_id"]);
    assert_eq!(after["role"], "uninitialised");
    assert_eq!(after["cluster_id"], Value::Null);
    node.stop();
}

#[test]
fn the_offline_commands_refuse_what_is_not_there() {
    let dir = TempDir::new().unwrap();
    refused(kv_node(dir.path()).args(["verify", "absent"]), &["absent"]);
    refused(kv_node(dir.path()).args(["import", "absent", "--data-dir", "d"]), &["absent"]);
    refused(kv_node(dir.path()).args(["restore", "absent", "--data-dir", "d"]), &["absent"]);
    refused(kv_node(dir.path()).args(["reset-identity", "absent"]), &["absent"]);
}

#[test]
fn the_local_cluster_names_a_port_that_is_in_use() {
    let dir = TempDir::new().unwrap();
    let base = free_ports();
    let _taken = TcpListener::bind(("127.0.0.1", base + 1)).unwrap();
    let mut command = kv_node(dir.path());
    command.args(["dev", "--base-port", &base.to_string()]);
    refused(&mut command, &[&(base + 1).to_string(), "follower-1", "in use"]);
}

/// The first of three client ports that are free, with their peer ports; below the ports that the
/// system hands out by itself. No two tests get the same: what is free now another may be about to take.
fn free_ports() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let first = 10_000 + u16::try_from(std::process::id() % 1000).unwrap() * 10;
    let mut candidates = std::iter::from_fn(|| Some(first + 5 * TAKEN.fetch_add(1, Ordering::Relaxed))).take(200);
    candidates.find(|base| (*base..base + 3).all(|port| is_free(port) && is_free(port + 1000))).unwrap()
}

#[tokio::test]
async fn the_local_cluster_starts_stops_and_continues() {
    let dir = TempDir::new().unwrap();
    let base = free_ports();
    let first = format!("http://localhost:{base}/key/k");
    let second = format!("http://localhost:{}/key/k", base + 1);
    let mut cluster = LocalCluster::start(dir.path(), base);
    assert!(cluster.guide.contains("follower-2") && cluster.guide.contains("--peer-listen"), "{}", cluster.guide);
    let put = client().put(&second).body(r#"{"value":1}"#).send().await.unwrap();
    assert_eq!(put.status(), 200);
    cluster.stop();
    let _cluster = LocalCluster::start(dir.path(), base);
    assert_eq!(
        client().get(&first).send().await.unwrap().text().await.unwrap(),
        r#"{"key":"k","value":1,"version":1}"#
    );
}

#[tokio::test]
async fn the_nodes_end_with_the_local_cluster_that_started_them() {
    let dir = TempDir::new().unwrap();
    let base = free_ports();
    let mut cluster = LocalCluster::start(dir.path(), base);
    cluster.child.kill().unwrap();
    cluster.child.wait().unwrap();
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    eventually("the ports are free", async || (base..base + 3).all(is_free).then_some(())).await;
}

#[tokio::test]
async fn a_directory_of_another_cluster_does_not_follow() {
    let dir = TempDir::new().unwrap();
    Node::start(dir.path(), "other", &["--id", "f"]).ready().await.stop();
    let leader = Node::start(dir.path(), "d", &[]).ready().await;
    let mut follower = kv_node(dir.path());
    follower.args(["serve", "--listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0", "--data-dir", "other"]);
    refused(follower.args(["--id", "f", "--leader-url", &leader.url]), &["belongs to cluster", &leader.url]);
}

/// `kv-node dev`, once it has said that all nodes are ready.
struct LocalCluster {
    child: Child,
    guide: String,
}

impl LocalCluster {
    fn start(dir: &Path, base_port: u16) -> Self {
        let mut command = kv_node(dir);
        command.args(["dev", "--base-port", &base_port.to_string()]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut guide = String::new();
        while !guide.contains("Ctrl-C") {
            assert!(lines.read_line(&mut guide).unwrap() > 0, "the cluster has ended: {guide}");
        }
        std::thread::spawn(move || lines.read_to_string(&mut String::new()));
        Self { child, guide }
    }

    fn stop(&mut self) {
        signal(&self.child, Signal::INT);
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        // SIGTERM, not SIGKILL: it takes its nodes with it either way, but this way it is waited for.
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(&self.child, Signal::TERM);
            self.child.wait().ok();
        }
    }
}
