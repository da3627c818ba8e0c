//! Keys that the suite writes itself and reads back later, over what no client outlives: volumes lost, a group
//! recovered. In small numbers, by way of the API server.

use serde_json::{Value, json};

use crate::store::{NAME, Store};
use crate::waiting::eventually;

pub(crate) struct Kept {
    store: Store,
    /// Keys and values, as they were acknowledged.
    written: Vec<(String, String)>,
    last_id: u64,
}

impl Kept {
    pub(crate) fn new(store: &Store) -> Self {
        Self { store: store.clone(), written: Vec::new(), last_id: 0 }
    }

    pub(crate) async fn some(store: &Store, count: usize) -> Self {
        let mut kept = Self::new(store);
        for number in 0..count {
            kept.put(format!("kept-{number}"), format!("value {number}")).await.expect("the write is taken");
        }
        kept
    }

    /// Err: the status and what was said.
    pub(crate) async fn put(&mut self, key: String, value: String) -> Result<(), String> {
        let body = json!({ "value": value }).to_string();
        let said = self.ask("PUT", &format!("key/{key}"), body.into_bytes()).await?;
        let answer: Value = serde_json::from_str(&said).map_err(|error| error.to_string())?;
        self.last_id = answer["id"].as_u64().expect("a write that was taken has an id");
        self.written.push((key, value));
        Ok(())
    }

    async fn ask(&self, method: &str, path: &str, body: Vec<u8>) -> Result<String, String> {
        self.store.kube.service_http(method, &self.store.namespace, &format!("{NAME}:8000"), path, body).await
    }

    /// Waits until this pod's volume has all of them.
    pub(crate) async fn are_on(&self, pod: &str) {
        eventually(&format!("{pod} has all that was written"), 30, || async {
            let durable = self.store.node_status(pod).await?["durable_id"].as_u64();
            if durable >= Some(self.last_id) { Ok(()) } else { Err(format!("{durable:?} of {}", self.last_id)) }
        })
        .await;
    }

    /// Each is there, as it was acknowledged.
    pub(crate) async fn are_there(&self) {
        assert!(!self.written.is_empty(), "something was written");
        for (key, value) in &self.written {
            let path = format!("key/{key}?consistency=linearizable");
            let what = format!("the acknowledged {key} is read back");
            let read = eventually(&what, 15, || self.ask("GET", &path, Vec::new())).await;
            let answer: Value = serde_json::from_str(&read).expect("an answer is JSON");
            assert!(answer["value"] == **value, "{key} is not as it was acknowledged: {:.200}", answer.to_string());
        }
    }
}
