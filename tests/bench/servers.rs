//! How each measured server is started: the node (alone and in threes), the bare route, Redis, etcd.

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use kv_tests::node_binary;

use crate::process::{Server, ask};

/// A loopback address whose port was free a moment ago.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

pub(crate) fn bare(dir: &Path) -> anyhow::Result<Server> {
    let address = free_address()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bare", "--listen", &address.to_string()]);
    let mut server = Server::start("bare", command, dir, address)?;
    server.wait_listening()?;
    Ok(server)
}

/// A group of one on `data_dir`, ready when it is returned.
pub(crate) fn node(dir: &Path, data_dir: &Path, args: &[&str]) -> anyhow::Result<Server> {
    let mut server = node_starting(dir, data_dir, args)?;
    server.wait_ready()?;
    Ok(server)
}

/// The same, returned as soon as its process exists.
pub(crate) fn node_starting(dir: &Path, data_dir: &Path, args: &[&str]) -> anyhow::Result<Server> {
    let (address, peer) = (free_address()?, free_address()?);
    let mut command = Command::new(node_binary());
    command.args(["serve", "--id", "leader", "--listen", &address.to_string(), "--peer-listen", &peer.to_string()]);
    command.arg("--data-dir").arg(data_dir).args(args).env("COMPACTION_ENABLED", "false");
    Server::start("kv-node", command, dir, address)
}

/// Three voters with the heartbeats of `kv-node dev`; the first leads.
pub(crate) fn three_nodes(dir: &Path) -> anyhow::Result<Vec<Server>> {
    let mut members = Vec::new();
    for index in 0..3 {
        members.push((format!("node-{index}"), free_address()?, free_address()?));
    }
    let listed: Vec<_> = members
        .iter()
        .map(|(id, client, peer)| {
            serde_json::json!({"id": id, "url": format!("http://{client}"), "peer_url": format!("http://{peer}")})
        })
        .collect();
    let file = dir.join("cluster.yaml");
    let cluster = serde_json::json!({"members": listed, "leader": "node-0", "failover": "automatic"});
    std::fs::write(&file, cluster.to_string())?;
    let mut servers = Vec::new();
    for (id, client, peer) in &members {
        let mut command = Command::new(node_binary());
        command.args(["serve", "--id", id, "--listen", &client.to_string(), "--peer-listen", &peer.to_string()]);
        command.args(["--heartbeat-interval", "0.1", "--heartbeat-timeout", "1"]);
        command.arg("--data-dir").arg(dir.join(id)).arg("--cluster").arg(&file);
        command.env("COMPACTION_ENABLED", "false");
        servers.push(Server::start(id, command, dir, *client)?);
    }
    for server in &mut servers {
        server.wait_ready()?;
    }
    Ok(servers)
}

/// An installed program: named by an environment variable, or found on the path.
fn program(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    let path: OsString = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

pub(crate) fn redis_program() -> Option<PathBuf> {
    program("REDIS_BIN", "redis-server")
}

pub(crate) fn etcd_program() -> Option<PathBuf> {
    program("ETCD_BIN", "etcd")
}

/// The first line of what `--version` prints.
pub(crate) fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown version").to_owned()
}

pub(crate) fn redis(program: &Path, dir: &Path) -> anyhow::Result<Server> {
    let address = free_address()?;
    let mut command = Command::new(program);
    command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", ""]);
    command.args(["--appendonly", "yes", "--appendfsync", "always"]).arg("--dir").arg(dir);
    let mut server = Server::start("redis", command, dir, address)?;
    server.wait_listening()?;
    Ok(server)
}

/// Three members with etcd's defaults; the one that leads comes first.
pub(crate) fn three_etcds(program: &Path, dir: &Path) -> anyhow::Result<Vec<Server>> {
    let mut members = Vec::new();
    for index in 0..3 {
        members.push((format!("etcd-{index}"), free_address()?, free_address()?));
    }
    let all: Vec<String> = members.iter().map(|(name, _, peer)| format!("{name}=http://{peer}")).collect();
    let mut servers = Vec::new();
    for (name, client, peer) in &members {
        let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
        let mut command = Command::new(program);
        command.args(["--name", name, "--log-level", "error", "--initial-cluster", &all.join(",")]);
        command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
        command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
        command.arg("--data-dir").arg(dir.join(name));
        servers.push(Server::start(name, command, dir, *client)?);
    }
    for server in &mut servers {
        server.wait_listening()?;
    }
    let leader = etcd_leader(&servers)?;
    servers.swap(0, leader);
    Ok(servers)
}

/// The member whose own id is the leader's id.
fn etcd_leader(servers: &[Server]) -> anyhow::Result<usize> {
    let begin = std::time::Instant::now();
    while begin.elapsed().as_secs() < 60 {
        for (index, server) in servers.iter().enumerate() {
            let Ok((200, body)) = ask(server.address, "POST", "/v3/maintenance/status", "{}") else { continue };
            let Some(json) = body.find('{').and_then(|at| body.get(at..=body.rfind('}')?)) else { continue };
            let status: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
            if status["leader"].is_string() && status["leader"] == status["header"]["member_id"] {
                return Ok(index);
            }
        }
    }
    None.context("etcd has no leader after 60 s")
}
