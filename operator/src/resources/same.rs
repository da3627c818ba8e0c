//! Whether an object already is as it is to be. The API server adds defaults and writes quantities in
//! its own form; both are no difference. What somebody else changed in a member of ours is one.

use serde_json::Value;

use crate::units::quantity_milli;

/// Whether `seen` says all that `wanted` says. Lists are as long as wanted, in the same order.
pub(super) fn contains(seen: &Value, wanted: &Value) -> bool {
    match (seen, wanted) {
        (Value::Object(seen), Value::Object(wanted)) => wanted
            .iter()
            .all(|(name, value)| seen.get(name).map_or_else(|| is_nothing(value), |seen| contains(seen, value))),
        (Value::Array(seen), Value::Array(wanted)) => {
            seen.len() == wanted.len() && seen.iter().zip(wanted).all(|(seen, wanted)| contains(seen, wanted))
        }
        (Value::String(seen), Value::String(wanted)) => seen == wanted || same_quantity(seen, wanted),
        _ => seen == wanted,
    }
}

/// Empty objects and lists are dropped when they are stored.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(members) => members.values().all(is_nothing),
        Value::Array(elements) => elements.is_empty(),
        _ => false,
    }
}

fn same_quantity(a: &str, b: &str) -> bool {
    quantity_milli(a).is_some_and(|milli| quantity_milli(b) == Some(milli))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_and_canonical_quantities_are_no_difference() {
        let wanted = json!({"a": {"cpu": "1000m", "memory": "1024Mi"}, "list": [{"name": "x"}], "none": {}});
        let seen = json!({"a": {"cpu": "1", "memory": "1Gi", "more": 1}, "list": [{"name": "x", "protocol": "TCP"}], "status": {}});
        assert!(contains(&seen, &wanted));
    }

    #[test]
    fn what_was_changed_or_is_missing_is_a_difference() {
        let wanted = json!({"a": "1", "list": [{"name": "x"}]});
        for seen in [
            json!({"a": "2", "list": [{"name": "x"}]}),
            json!({"list": [{"name": "x"}]}),
            json!({"a": "1", "list": []}),
            json!({"a": "1", "list": [{"name": "x"}, {"name": "y"}]}),
            json!({"a": "1", "list": [{"name": "y"}]}),
        ] {
            assert!(!contains(&seen, &wanted), "{seen}");
        }
    }
}
