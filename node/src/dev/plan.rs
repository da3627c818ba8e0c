//! Which nodes a local cluster has, where they listen and keep their data, and by which command each is
//! started. Writes the cluster file and nothing else.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use kv_core::contract::Failover;
use kv_core::group::NodeName;

use super::DevError;
use crate::config::{ClusterFile, ClusterMember, DevFlags};

/// Local alone: nothing here is protected.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// From a client port to the peer port of the same node.
const PEER_PORT_DISTANCE: u16 = 1000;
const CLUSTER_FILE: &str = "cluster.yaml";
/// A local cluster notices a dead node within a second, unless the environment says otherwise.
const HEARTBEAT_INTERVAL: [&str; 2] = ["--heartbeat-interval", "0.1"];
const HEARTBEAT_TIMEOUT: [&str; 2] = ["--heartbeat-timeout", "1"];

pub(super) struct NodePlan {
    pub(super) name: NodeName,
    pub(super) client_port: u16,
    pub(super) peer_port: u16,
    pub(super) data_dir: PathBuf,
}

impl NodePlan {
    fn new(index: u16, base_port: u16, data_dir: &Path) -> Self {
        let client_port = base_port + index;
        let follower = format!("follower-{index}");
        let (name, data_dir) = match index {
            0 => ("leader", data_dir.join("leader")),
            _ => (follower.as_str(), data_dir.join("followers").join(&follower)),
        };
        let name = NodeName::new(name).expect("a legal name");
        Self { name, client_port, peer_port: client_port + PEER_PORT_DISTANCE, data_dir }
    }

    pub(super) fn url(&self) -> String {
        format!("http://localhost:{}", self.client_port)
    }

    fn member(&self) -> ClusterMember {
        let peer_url = format!("http://{HOST}:{}", self.peer_port);
        ClusterMember { id: self.name.clone(), url: self.url(), peer_url }
    }
}

pub(super) struct Plan {
    pub(super) nodes: Vec<NodePlan>,
    data_dir: PathBuf,
}

impl Plan {
    pub(super) fn new(flags: &DevFlags) -> Self {
        let DevFlags { followers, base_port, data_dir } = flags;
        let base_port = u16::try_from(*base_port).expect("checked against its bounds");
        let followers = u16::try_from(*followers).expect("checked against its bounds");
        let nodes = (0..=followers).map(|index| NodePlan::new(index, base_port, data_dir)).collect();
        Self { nodes, data_dir: data_dir.clone() }
    }

    pub(super) fn cluster_file(&self) -> PathBuf {
        self.data_dir.join(CLUSTER_FILE)
    }

    /// An earlier file of other ports is refused: the group on disk knows its members by them.
    pub(super) fn write_cluster_file(&self) -> Result<(), DevError> {
        let path = self.cluster_file();
        let failed = |error| DevError::File { path: path.clone(), error };
        let members: Vec<ClusterMember> = self.nodes.iter().map(NodePlan::member).collect();
        if let Ok(text) = std::fs::read_to_string(&path) {
            require_same_ports(&text, &members, &path)?;
        }
        let leader = self.nodes[0].name.clone();
        let file = ClusterFile { members, leader, failover: Some(Failover::Automatic) };
        let text = serde_yaml::to_string(&file).expect("plain data can be written as YAML");
        std::fs::create_dir_all(&self.data_dir).map_err(failed)?;
        std::fs::write(&path, text).map_err(failed)
    }

    /// What is behind `kv-node` on the command line of a node.
    pub(super) fn arguments(&self, node: &NodePlan) -> Vec<OsString> {
        let address = |port: u16| OsString::from(format!("{HOST}:{port}"));
        let mut arguments: Vec<OsString> = vec!["serve".into(), "--id".into(), node.name.as_str().into()];
        arguments.extend(["--listen".into(), address(node.client_port)]);
        arguments.extend(["--peer-listen".into(), address(node.peer_port)]);
        arguments.extend(["--data-dir".into(), node.data_dir.clone().into()]);
        arguments.extend(["--cluster".into(), self.cluster_file().into()]);
        let interval_is_set = is_set("HEARTBEAT_INTERVAL");
        if !interval_is_set {
            arguments.extend(HEARTBEAT_INTERVAL.map(OsString::from));
        }
        // An interval of the user's own may be longer than a second: the time-out then follows it.
        if !interval_is_set && !is_set("HEARTBEAT_TIMEOUT") {
            arguments.extend(HEARTBEAT_TIMEOUT.map(OsString::from));
        }
        arguments
    }
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

fn require_same_ports(text: &str, members: &[ClusterMember], path: &Path) -> Result<(), DevError> {
    let Ok(earlier) = serde_yaml::from_str::<ClusterFile>(text) else { return Ok(()) };
    let moved = |member: &&ClusterMember| earlier.member(&member.id).is_some_and(|known| known.url != member.url);
    match members.iter().find(moved).and_then(|member| earlier.member(&member.id)) {
        None => Ok(()),
        Some(known) => {
            let (node, url) = (known.id.to_string(), known.url.clone());
            Err(DevError::OtherPorts { path: path.to_owned(), node, url })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(base_port: u64, data_dir: &Path) -> Plan {
        Plan::new(&DevFlags { followers: 2, base_port, data_dir: data_dir.to_owned() })
    }

    #[test]
    fn the_leader_has_the_base_port_and_followers_the_next_ones() {
        let plan = plan(8000, Path::new("data"));
        let shown: Vec<_> = plan.nodes.iter().map(|n| (n.name.to_string(), n.client_port, n.peer_port)).collect();
        let expected = [("leader", 8000, 9000), ("follower-1", 8001, 9001), ("follower-2", 8002, 9002)];
        assert_eq!(shown, expected.map(|(name, client, peer)| (name.to_owned(), client, peer)));
        assert_eq!(plan.nodes[0].data_dir, Path::new("data/leader"));
        assert_eq!(plan.nodes[2].data_dir, Path::new("data/followers/follower-2"));
    }

    #[test]
    fn a_second_run_may_not_move_the_ports() {
        let dir = tempfile::tempdir().unwrap();
        plan(8000, dir.path()).write_cluster_file().unwrap();
        plan(8000, dir.path()).write_cluster_file().unwrap();
        let error = plan(8100, dir.path()).write_cluster_file().unwrap_err();
        assert!(error.to_string().contains("http://localhost:8000"), "{error}");
    }
}
