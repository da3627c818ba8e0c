//! The group that is made to suffer: its voters behind gates of one network, a node to be taken in and
//! let go, and one volume that can be filled.

use std::process::Command;

use kv_core::contract::Failover;
use kv_tests::{
    Cluster, ClusterSpec, Network, Node, NodeSpec, START_SECONDS, Site, SmallVolume, member_name, target_of, wait_until,
};
use serde_json::{Value, json};

use crate::director::Director;

/// Small, so that segments are sealed, compacted and sent all the time.
const SEGMENT_BYTES: usize = 32 * 1024;
/// Seconds, so that damage is found at once.
const SCRUB_INTERVAL: &str = "0.5";
/// Thrice the node's reserve.
const VOLUME_MEGABYTES: u32 = 96;

pub(crate) struct Group {
    pub(crate) cluster: Cluster,
    /// Not a member at first; its volume is empty then.
    pub(crate) spare: Option<Node>,
    spare_spec: NodeSpec,
    pub(crate) network: Network,
    /// Under the last voter. None: this process may not mount.
    pub(crate) volume: Option<SmallVolume>,
    pub(crate) failover: Failover,
    /// Whom a manual group has.
    _director: Option<Director>,
}

impl Group {
    pub(crate) async fn start(voters: u16, failover: Failover) -> Self {
        let site = Site::kept();
        let network = Network::new();
        let volume = SmallVolume::mount(site.path("volume"), VOLUME_MEGABYTES);
        let mut specs: Vec<NodeSpec> =
            (0..=voters).map(|index| spec(&site, &network, &member_name(index), index)).collect();
        let spare_spec = specs.pop().expect("one more than voters");
        if let Some(volume) = &volume {
            let last = specs.pop().expect("at least one voter").data_dir(volume.path().join("data"));
            specs.push(last);
        }
        for spec in &specs {
            network.open(&spec.name).await;
        }
        let group = ClusterSpec::new(voters).arg("--scrub-interval", SCRUB_INTERVAL);
        let group = if failover == Failover::Automatic { group.automatic() } else { group };
        let mut cluster = group.start_as(site, specs).await;
        // A WARN tells of a fault that was made; an ERROR would be the node's own.
        for node in &mut cluster.nodes {
            allow_warnings(node);
        }
        let spare_spec = spare_spec.fast().arg("--join", "true").arg("--failover", failover);
        let director =
            (failover == Failover::Manual).then(|| Director::start(cluster.site.client().clone(), cluster.urls()));
        Self { cluster, spare: None, spare_spec, network, volume, failover, _director: director }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.cluster.nodes.iter().map(|node| node.name().to_owned()).collect()
    }

    /// Whom clients ask.
    pub(crate) fn urls(&self) -> Vec<(String, String)> {
        self.cluster.nodes.iter().map(|node| (node.name().to_owned(), node.url())).collect()
    }

    pub(crate) fn kill(&mut self, index: usize) {
        let node = &mut self.cluster.nodes[index];
        node.kill();
        self.network.close(node.name());
    }

    pub(crate) async fn start_again(&mut self, index: usize) {
        let node = &mut self.cluster.nodes[index];
        self.network.open(node.name()).await;
        if node.pid().is_none() {
            node.spawn_again();
        }
    }

    /// Whoever believes to lead with a lease, at present.
    pub(crate) async fn leader(&self) -> Option<usize> {
        for (index, node) in self.cluster.nodes.iter().enumerate() {
            let status = node.try_status().await.unwrap_or_default();
            if status["role"] == "leader" && status["lease_held"] == true {
                return Some(index);
            }
        }
        None
    }

    /// Starts the spare node on an empty volume.
    pub(crate) async fn start_spare(&mut self) {
        std::fs::remove_dir_all(&self.spare_spec.data_dir).ok();
        self.network.open(&self.spare_spec.name).await;
        let mut node = self.spare_spec.clone().spawn();
        allow_warnings(&mut node);
        self.spare = Some(node);
    }

    pub(crate) fn end_spare(&mut self) -> Vec<String> {
        let Some(mut node) = self.spare.take() else { return Vec::new() };
        node.kill();
        self.network.close(node.name());
        errors(&mut node)
    }

    /// Sends a membership call to the leader of the moment; true: accepted.
    pub(crate) async fn change(&self, method: &str, path: &str, body: &Value) -> bool {
        let Some(leader) = self.leader().await else { return false };
        let leader = &self.cluster.nodes[leader];
        let Some(status) = leader.try_status().await else { return false };
        let mut body = body.clone();
        for (name, value) in target_of(&status).as_object().expect("an object") {
            body[name] = value.clone();
        }
        let request = leader.request(method, path).header("content-type", "application/json").body(body.to_string());
        leader.try_request(request).await.is_some_and(|answer| answer.status == 200)
    }

    /// What the leader of the moment knows of the member of this name.
    pub(crate) async fn member(&self, name: &str) -> Option<Value> {
        let status = self.cluster.nodes[self.leader().await?].try_status().await?;
        status["members"].as_array()?.iter().find(|member| member["name"] == name).cloned()
    }

    pub(crate) async fn spare_body(&self, role: &str) -> Option<Value> {
        let spare = self.spare.as_ref()?;
        let status = spare.try_status().await?;
        let peer_url = spare.spec.peer_url();
        Some(json!({"name": spare.name(), "member_id": status["member_id"], "peer_url": peer_url, "role": role}))
    }

    /// All voters run, all links are open, all limits are lifted.
    pub(crate) async fn heal(&mut self) {
        self.network.heal();
        for index in 0..self.cluster.nodes.len() {
            if self.cluster.nodes[index].pid().is_some() {
                self.cluster.nodes[index].resume();
            }
            self.start_again(index).await;
        }
        let nodes = &self.cluster.nodes;
        wait_until("every node answers and has room again", START_SECONDS, || async {
            let mut done = 0;
            for node in nodes {
                let unlimited = json!({"storage_limit": null}).to_string();
                let lifted = node.request("POST", "/settings").header("content-type", "application/json");
                let lifted = node.try_request(lifted.body(unlimited)).await;
                done += usize::from(lifted.is_some_and(|answer| answer.status == 200));
            }
            done == nodes.len()
        })
        .await;
    }
}

impl Drop for Group {
    /// What the volume holds goes with it, and may be wanted.
    fn drop(&mut self) {
        for node in &mut self.cluster.nodes {
            node.kill();
        }
        if let Some(volume) = &self.volume {
            let kept = self.cluster.site.path("volume-data");
            Command::new("cp").arg("-a").arg(volume.path().join("data")).arg(kept).status().ok();
        }
    }
}

fn spec(site: &Site, network: &Network, name: &str, index: u16) -> NodeSpec {
    let spec = site.node(name, index);
    let gate = network.gate(name, site.host(), spec.peer_port);
    spec.behind(gate).arg("--max-segment-size", SEGMENT_BYTES)
}

fn allow_warnings(node: &mut Node) {
    for warning in ["\"level\":\"WARN\"", " WARN "] {
        node.allow(warning);
    }
}

/// The ERROR lines and panics of a node, which are then reported and no longer unexpected.
pub(crate) fn errors(node: &mut Node) -> Vec<String> {
    let name = node.name().to_owned();
    let lines = node.unexpected_lines().into_iter().map(|line| format!("{name} logged: {line}")).collect();
    node.allow("");
    lines
}
