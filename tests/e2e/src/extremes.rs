//! The smallest and the largest spec that the schema takes. What it takes and what nodes start with must be the same:
//! both are put through the operator and through the node's own reader of its settings.

use serde_json::{Value, json};

/// The bounds in the rules of `operator/src/crd.rs`.
pub(crate) fn smallest() -> Value {
    json!({
        "storage": {"size": "2Mi"},
        "heartbeat": {"interval": "10ms", "timeout": "11ms"},
        "wal": {"maxSegmentSize": "4Ki"},
        "compaction": {"interval": "60s", "minInterval": "0s"},
        "historyLimit": 0,
        "dedupExpiry": "1s",
    })
}

pub(crate) fn largest() -> Value {
    json!({
        "storage": {"size": "1Pi"},
        "heartbeat": {"interval": "1439m", "timeout": "24h"},
        "wal": {"maxSegmentSize": "1Gi"},
        "compaction": {"interval": "8760h", "minInterval": "8760h"},
        "historyLimit": 100_000,
        "dedupExpiry": "8760h",
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use kv_node::config::{Command, load};
    use kv_operator::crd::KvCluster;
    use kv_operator::resources;
    use kv_operator::validate::{self, Validated};

    use super::*;
    use crate::kube::from_json;

    fn cluster(spec: &Value) -> KvCluster {
        from_json(json!({
            "apiVersion": "kvcluster.dev/v1alpha1", "kind": "KvCluster", "metadata": {"name": "demo"}, "spec": spec,
        }))
    }

    /// The command line that says what the environment variables of a pod say.
    fn command_line(spec: &Value) -> Vec<OsString> {
        let Validated { desired, problems } = validate::validate(&cluster(spec));
        assert_eq!(problems, [], "the operator takes what the schema takes");
        let desired = desired.expect("nothing is wrong with it");
        let settings = resources::node_settings(&desired);
        assert!(settings.len() > 10, "{settings:?}");
        let flag = |variable: &str| variable.to_lowercase().replace('_', "-");
        // The one setting that is a file, which is in a pod alone.
        let settings = settings.iter().filter(|(variable, _)| *variable != "AUTH_TOKEN_FILE");
        let flags = settings.map(|(variable, value)| format!("--{}={value}", flag(variable)));
        ["kv-node".to_owned(), "serve".to_owned()].into_iter().chain(flags).map(OsString::from).collect()
    }

    #[test]
    fn nodes_start_with_the_smallest_and_the_largest_settings_that_the_schema_takes() {
        for spec in [smallest(), largest()] {
            let loaded = load(command_line(&spec));
            assert!(matches!(loaded, Ok(Command::Serve(_))), "{spec}: {loaded:?}");
        }
    }

    #[test]
    fn what_the_operator_refuses_beyond_them_is_what_nodes_refuse() {
        for (beyond, flag) in [
            (json!({"compaction": {"interval": "8761h"}}), "--compaction-interval=31539600"),
            (json!({"compaction": {"minInterval": "8761h"}}), "--min-compaction-interval=31539600"),
            (json!({"dedupExpiry": "8761h"}), "--dedup-expiry=31539600"),
            (json!({"storage": {"size": "1Mi"}}), "--storage-limit=838800"),
        ] {
            let mut spec = smallest();
            spec.as_object_mut().unwrap().extend(beyond.as_object().unwrap().clone());
            assert_eq!(validate::validate(&cluster(&spec)).desired, None, "{beyond}");
            let told = ["kv-node", "serve", flag].map(OsString::from).to_vec();
            assert!(load(told).is_err(), "{flag}");
        }
    }
}
