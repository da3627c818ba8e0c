//! The HTTP contract, in the order of its page: what it shows is what comes, member for member. Every
//! story is told to a group of one and to a follower of three, since any node answers alike.

mod cluster;
mod keys;
mod log;
mod requests;

use kv_tests::{Cluster, Node, Site};
use serde_json::Value;

/// Tells the story to a new group of one, then to a follower of a new group of three.
async fn on_any_node(story: impl AsyncFn(&Node)) {
    let single = Site::new().node("leader", 0).fast().start().await;
    story(&single).await;
    let cluster = Cluster::manual().await;
    story(&cluster.nodes[1]).await;
}

/// A document that may carry more: each of these members is there with this value.
#[track_caller]
fn has(document: &Value, members: &Value) {
    for (name, value) in members.as_object().unwrap() {
        assert_eq!(&document[name], value, "{name} in {document}");
    }
}

/// A document that may carry more: these members are there.
#[track_caller]
fn has_members(document: &Value, names: &[&str]) {
    for name in names {
        assert!(document.get(name).is_some(), "{name} is missing in {document}");
    }
}
