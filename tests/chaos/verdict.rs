//! What must be true when the faults have ended: everybody holds the same, it is what was acknowledged,
//! the files are sound, and the history of what clients saw can be explained.

use std::collections::BTreeMap;

use kv_tests::history::{Action, Call, Operation, Outcome};
use kv_tests::linearizability::{Bounds, Checked, Failure, check};
use kv_tests::{Node, kv_node};
use serde_json::Value;

use crate::client::{Field, KEYS};
use crate::group::Group;

/// Members of `/deduplication_stats` that are state of the group and no node's own.
const DEDUPLICATION: [&str; 3] = ["current_cache_size", "unique_request_ids", "total_client_count"];

/// Every key is read on every node, so that the history ends with what is held.
pub(crate) async fn read_all(field: &Field, at: u64) {
    for (node, url) in &field.urls {
        for key in (0..KEYS).map(|n| format!("key-{n}")) {
            for action in [Action::LocalRead { min_id: Some(at) }, Action::Read { min_id: None }] {
                let call = Call { client: "end".into(), node: node.clone(), key: key.clone(), action, request: None };
                field.caller.ask(url, call).await;
            }
        }
    }
}

/// Where nodes answer one question differently.
pub(crate) async fn differences(group: &Group) -> Vec<String> {
    let nodes = &group.cluster.nodes;
    let mut found = Vec::new();
    let mut paths = vec!["/keys".to_owned()];
    for key in (0..KEYS).map(|n| format!("/key/key-{n}")) {
        paths.extend([format!("{key}/history"), format!("{key}/versions"), key]);
    }
    for path in paths {
        let first = nodes[0].get(&path).await;
        for node in &nodes[1..] {
            let other = node.get(&path).await;
            let same = (first.status, first.header("etag"), first.text())
                == (other.status, other.header("etag"), other.text());
            if !same {
                found.push(format!("{path}: {} says {first}, {} says {other}", nodes[0].name(), node.name()));
            }
        }
    }
    let first = deduplication(&nodes[0]).await;
    for node in &nodes[1..] {
        let other = deduplication(node).await;
        if first != other {
            found.push(format!("deduplication: {} holds {first:?}, {} {other:?}", nodes[0].name(), node.name()));
        }
    }
    found
}

async fn deduplication(node: &Node) -> Vec<Value> {
    let document = node.get("/deduplication_stats").await.json();
    DEDUPLICATION.iter().map(|name| document[*name].clone()).collect()
}

/// The data directories of stopped nodes, read by `kv-node verify`.
pub(crate) fn damage(group: &Group) -> Vec<String> {
    let mut found = Vec::new();
    for node in &group.cluster.nodes {
        let verified = kv_node(node.site(), &["verify".as_ref(), node.spec.data_dir.as_os_str()]);
        if !verified.success {
            found.push(format!("verify of {}: {}", node.name(), verified.text));
        }
    }
    found
}

pub(crate) fn judge(operations: &[Operation]) -> Result<Checked, Failure> {
    check(operations, &Bounds::default())
}

/// How many calls ended how.
pub(crate) fn outcomes(operations: &[Operation]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for operation in operations {
        let name = match operation.outcome {
            Outcome::Written { replay: true, .. } | Outcome::Deleted { replay: true, .. } => "replayed",
            Outcome::Written { .. } => "written",
            Outcome::Deleted { .. } => "deleted",
            Outcome::Value { .. } => "read",
            Outcome::NotFound => "not found",
            Outcome::Conflict { .. } => "version conflict",
            Outcome::PreconditionFailed => "precondition failed",
            Outcome::NotExecuted => "not executed",
            Outcome::Unknown => "unknown",
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
}
