//! `kv-node dev`: a whole local cluster, one `kv-node serve` process for each node. It founds a voting
//! group, shows what runs where, streams the logs, and stops all nodes when it is asked to. A node that
//! ends is not started again: killing one is an experiment, and the others carry on.
//!
//! Reading order: this file, `plan` (which nodes, where), `child` (one process), `guide` (what is printed).

mod child;
mod guide;
mod plan;

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::{join_all, select_all};
use kv_core::status::{NodeStatus, Role};
use tokio::time::{Instant, timeout_at};

use crate::config::DevFlags;
use crate::http_client;
use crate::shutdown::Signals;
use child::Child;
use plan::{NodePlan, Plan};

pub use child::tie_to_parent;

/// The longest wait for the whole cluster.
const READY_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks at a node that is not ready yet.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The longest wait for one answer of a node.
const ANSWER: Duration = Duration::from_secs(2);

/// Why the local cluster did not start. One line each.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("port {port} of {node} is already in use: stop what uses it, or choose another --base-port ({error})")]
    Port { port: u16, node: String, error: io::Error },
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{} was made with {node} at {url}: use the same --base-port, or another --data-dir", path.display())]
    OtherPorts { path: PathBuf, node: String, url: String },
    #[error("{node} cannot be started: {error}")]
    Spawn { node: String, error: io::Error },
    #[error("{0} has ended before the cluster was ready; its log is above")]
    EndedEarly(String),
    #[error("the cluster was not ready within {} s", READY_MAX.as_secs())]
    NotReady,
    #[error("all nodes have ended")]
    AllEnded,
    #[error("signals cannot be waited for: {0}")]
    Signals(io::Error),
}

/// Runs until it is asked to end, or until no node is left.
pub async fn run(flags: DevFlags) -> Result<(), DevError> {
    let mut signals = Signals::listen().map_err(DevError::Signals)?;
    let plan = Plan::new(&flags);
    plan.nodes.iter().try_for_each(require_free_ports)?;
    plan.write_cluster_file()?;
    let mut children = Vec::new();
    for node in &plan.nodes {
        children.push(Child::spawn(&plan, node)?);
    }
    let ended = tokio::select! {
        ended = watch(&plan, &mut children) => ended,
        signal = signals.next() => { println!("\n{signal}: stopping all nodes"); Ok(()) }
    };
    stop(&mut children, &mut signals).await;
    ended
}

/// Bound and released: the node binds it a moment later.
fn require_free_ports(node: &NodePlan) -> Result<(), DevError> {
    for port in [node.client_port, node.peer_port] {
        let bound = TcpListener::bind((plan::HOST, port));
        bound.map_err(|error| DevError::Port { port, node: node.name.to_string(), error })?;
    }
    Ok(())
}

/// Waits until all are ready, shows the guide, then tells of every node that ends.
async fn watch(plan: &Plan, children: &mut Vec<Child>) -> Result<(), DevError> {
    let roles = tokio::select! {
        ready = wait_ready(plan) => ready?,
        ended = first_end(children) => return Err(DevError::EndedEarly(ended.to_string())),
    };
    println!("{}", guide::welcome(plan, children, &roles));
    while !children.is_empty() {
        let ended = first_end(children).await;
        println!("{}", guide::farewell(plan, &ended));
    }
    Err(DevError::AllEnded)
}

/// The next child that ends; it is taken off the list.
async fn first_end(children: &mut Vec<Child>) -> child::Ended {
    let waits = children.iter_mut().map(|child| Box::pin(child.ended()));
    let (ended, index, _) = select_all(waits).await;
    children.remove(index);
    ended
}

/// The roles of the nodes, once all are ready.
async fn wait_ready(plan: &Plan) -> Result<Vec<Role>, DevError> {
    let client = http_client::build(|builder| builder.timeout(ANSWER));
    let deadline = Instant::now() + READY_MAX;
    let mut roles = Vec::new();
    for node in &plan.nodes {
        let role = async {
            loop {
                if let Some(status) = status(&client, &node.url()).await.filter(|status| status.ready) {
                    return status.replica.role;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        roles.push(timeout_at(deadline, role).await.map_err(|_| DevError::NotReady)?);
    }
    Ok(roles)
}

async fn status(client: &reqwest::Client, url: &str) -> Option<NodeStatus> {
    client.get(format!("{url}/status")).send().await.ok()?.json().await.ok()
}

/// Asks all to end and waits; a second signal kills them.
async fn stop(children: &mut [Child], signals: &mut Signals) {
    children.iter().for_each(Child::terminate);
    let all_ended = join_all(children.iter_mut().map(Child::ended));
    tokio::select! {
        _ = all_ended => return,
        _ = signals.next() => println!("killing all nodes"),
    }
    for child in children {
        child.kill().await;
    }
}
