//! A voting group of nodes on one site: `leader`, `follower-1`, `follower-2`, as the documents name
//! them, started from one cluster file.

use std::path::PathBuf;

use serde_json::json;

use crate::node::{Node, NodeSpec};
use crate::site::Site;
use crate::wait::{START_SECONDS, wait_for, wait_until};

/// What a group is told at its start.
pub struct ClusterSpec {
    size: u16,
    failover: &'static str,
    args: Vec<(String, String)>,
}

impl ClusterSpec {
    pub fn new(size: u16) -> Self {
        Self { size, failover: "manual", args: Vec::new() }
    }

    #[must_use]
    pub fn automatic(mut self) -> Self {
        self.failover = "automatic";
        self
    }

    /// A flag for every node.
    #[must_use]
    pub fn arg(mut self, flag: &str, value: impl ToString) -> Self {
        self.args.push((flag.to_owned(), value.to_string()));
        self
    }

    pub async fn start(self) -> Cluster {
        let site = Site::new();
        let specs = (0..self.size).map(|index| site.node(&member_name(index), index)).collect();
        self.start_as(site, specs).await
    }

    /// Starts these nodes as the group; the first one leads first.
    pub async fn start_as(self, site: Site, specs: Vec<NodeSpec>) -> Cluster {
        let file = write_cluster_file(&site, &specs, self.failover);
        let nodes = specs.into_iter().map(|spec| {
            let spec = spec.fast().arg("--cluster", file.display());
            self.args.iter().fold(spec, |spec, (flag, value)| spec.arg(flag, value)).spawn()
        });
        let mut cluster = Cluster { nodes: nodes.collect(), site };
        for node in &mut cluster.nodes {
            node.wait_ready().await;
        }
        cluster
    }
}

/// How the documents name the nodes of a group.
pub fn member_name(index: u16) -> String {
    if index == 0 { "leader".to_owned() } else { format!("follower-{index}") }
}

fn write_cluster_file(site: &Site, specs: &[NodeSpec], failover: &str) -> PathBuf {
    let members: Vec<_> =
        specs.iter().map(|spec| json!({"id": spec.name, "url": spec.url(), "peer_url": spec.peer_url()})).collect();
    let file = site.path("cluster.yaml");
    let text = json!({"members": members, "leader": specs[0].name, "failover": failover}).to_string();
    std::fs::write(&file, text).expect("the site is writable");
    file
}

/// A group that was started. `nodes[0]` led first.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub site: Site,
}

impl Cluster {
    /// Three voters with the leader assigned.
    pub async fn manual() -> Self {
        ClusterSpec::new(3).start().await
    }

    /// Three voters that elect by themselves.
    pub async fn automatic() -> Self {
        ClusterSpec::new(3).automatic().start().await
    }

    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Node::url).collect()
    }

    pub fn allow(&mut self, text: &str) {
        for node in &mut self.nodes {
            node.allow(text);
        }
    }

    /// The index of the node that leads with its lease held, once there is one.
    pub async fn leader(&self) -> usize {
        wait_for("a leader", START_SECONDS, || async {
            for (index, node) in self.nodes.iter().enumerate() {
                let Some(status) = node.try_status().await else { continue };
                if status["role"] == "leader" && status["lease_held"] == true {
                    return Some(index);
                }
            }
            None
        })
        .await
    }

    /// Waits until all have applied what the most advanced one has, and returns that id.
    pub async fn settle(&self) -> u64 {
        wait_for("all nodes have applied the same", START_SECONDS, || async {
            let mut applied = Vec::new();
            for node in &self.nodes {
                let status = node.try_status().await?;
                applied.push(status["applied_id"].as_u64()?);
                applied.push(status["last_id"].as_u64()?);
            }
            let first = *applied.first()?;
            applied.iter().all(|id| *id == first).then_some(first)
        })
        .await
    }

    /// Restarts these nodes one after the other with SIGTERM, each time after `progress` was made.
    pub async fn roll(&mut self, order: &[usize], progress: impl AsyncFn()) {
        for &index in order {
            progress().await;
            let exit = self.nodes[index].stop().await;
            assert!(exit.status.success(), "{} ends with {}", self.nodes[index].name(), exit.status);
            progress().await;
            self.nodes[index].start_again().await;
        }
        progress().await;
    }

    /// Waits until the node sees the other as this (`healthy` or `down`).
    pub async fn wait_seen(&self, by: usize, other: usize, health: &str) {
        let name = self.nodes[other].name().to_owned();
        let what = format!("{} sees {name} {health}", self.nodes[by].name());
        wait_until(&what, START_SECONDS, || async {
            let Some(answer) = self.nodes[by].try_get("/cluster_status").await else { return false };
            seen_status(&answer.json(), &name).as_deref() == Some(health)
        })
        .await;
    }
}

/// How a `/cluster_status` document judges the node of this name.
fn seen_status(document: &serde_json::Value, name: &str) -> Option<String> {
    let leader = &document["leader"];
    let entry = if leader["id"] == name { leader } else { &document["followers"][name] };
    entry["status"].as_str().map(str::to_owned)
}
