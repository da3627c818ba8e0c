//! The ConfigMap with the settings of the nodes, as environment variables for their next start. Never
//! names leader or voters: those are decided among the nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kv_core::status::Failover;

use super::metadata;
use super::pod_template::{DATA_DIR, TOKEN_DIR};
use crate::names::TOKEN_KEY;
use crate::validate::Desired;

/// For how long a node that ends goes on forwarding: until all kube-proxies have heard of it.
const DRAIN_DELAY_SECONDS: u64 = 5;

pub(super) fn build(desired: &Desired) -> ConfigMap {
    ConfigMap {
        metadata: metadata(desired, desired.identity.name.clone()),
        data: Some(settings(desired)),
        ..ConfigMap::default()
    }
}

pub(super) fn settings(desired: &Desired) -> BTreeMap<String, String> {
    let live = &desired.live;
    let pairs = [
        ("AUTH_TOKEN_FILE", format!("{TOKEN_DIR}/{TOKEN_KEY}")),
        ("COMPACTION_ENABLED", live.compaction.enabled.to_string()),
        ("COMPACTION_INTERVAL", live.compaction.interval_seconds.to_string()),
        ("DATA_DIR", DATA_DIR.to_owned()),
        ("DEDUP_EXPIRY", desired.settings.dedup_expiry_seconds.to_string()),
        ("DRAIN_DELAY", DRAIN_DELAY_SECONDS.to_string()),
        ("FAILOVER", Failover::from(desired.spec.failover).to_string()),
        ("HEARTBEAT_INTERVAL", seconds(live.heartbeat_interval_ms)),
        ("HEARTBEAT_TIMEOUT", seconds(live.heartbeat_timeout_ms)),
        ("HISTORY_LIMIT", desired.settings.history_limit.to_string()),
        ("JOIN", true.to_string()),
        ("MAX_SEGMENT_SIZE", desired.segment_bytes.to_string()),
        ("MIN_COMPACTION_INTERVAL", live.compaction.min_interval_seconds.to_string()),
        ("STORAGE_LIMIT", live.storage_limit_bytes.to_string()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn seconds(ms: u64) -> String {
    Duration::from_millis(ms).as_secs_f64().to_string()
}
