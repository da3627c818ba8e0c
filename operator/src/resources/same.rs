//! Whether an object already is as it is to be. The API server adds defaults and writes quantities in
//! its own form; both are no difference. What somebody else changed in a member of ours is one, and so is what
//! was added where nothing may be but what we say.

use serde_json::{Map, Value};

use crate::units::quantity_milli;

/// Maps that hold what we say and nothing else: whom a selector chooses, where pods may run, what nodes start with.
/// The API server adds nothing to them.
const OURS_ALONE: [&str; 7] =
    ["data", "labelSelector", "matchLabels", "namespaceSelector", "nodeSelector", "podSelector", "selector"];

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

/// What was added to `seen` and must go, as a merge patch. Server-side apply takes away what it once wrote and
/// nothing else. None: nothing must.
pub(super) fn surplus(seen: &Value, wanted: &Value) -> Option<Value> {
    match (seen, wanted) {
        (Value::Object(seen), Value::Object(wanted)) => patch(seen, |name, seen| match wanted.get(name) {
            None => (seen.is_object() && OURS_ALONE.contains(&name)).then_some(Value::Null),
            Some(wanted) if OURS_ALONE.contains(&name) => surplus_in_ours(seen, wanted),
            Some(wanted) => surplus(seen, wanted),
        }),
        // A merge patch changes lists as a whole.
        (Value::Array(seen), Value::Array(present)) => {
            let mut pairs = seen.iter().zip(present);
            (seen.len() > present.len() || pairs.any(|(seen, wanted)| surplus(seen, wanted).is_some()))
                .then(|| wanted.clone())
        }
        _ => None,
    }
}

fn surplus_in_ours(seen: &Value, wanted: &Value) -> Option<Value> {
    let (Value::Object(seen), Value::Object(wanted)) = (seen, wanted) else { return surplus(seen, wanted) };
    patch(seen, |name, seen| match wanted.get(name) {
        None => Some(Value::Null),
        Some(wanted) => surplus_in_ours(seen, wanted),
    })
}

fn patch(seen: &Map<String, Value>, of_member: impl Fn(&str, &Value) -> Option<Value>) -> Option<Value> {
    let members = seen.iter().filter_map(|(name, seen)| Some((name.clone(), of_member(name, seen)?)));
    let members: Map<String, Value> = members.collect();
    (!members.is_empty()).then_some(Value::Object(members))
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
        assert_eq!(surplus(&seen, &wanted), None);
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

    #[test]
    fn what_was_added_where_nothing_may_be_but_ours_has_to_go() {
        for (wanted, seen, patch) in [
            (
                json!({"selector": {"a": "b"}}),
                json!({"selector": {"a": "b", "x": "y"}}),
                json!({"selector": {"x": null}}),
            ),
            (
                json!({"podSelector": {"matchLabels": {"a": "b"}}}),
                json!({"podSelector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "x"}]}}),
                json!({"podSelector": {"matchExpressions": null}}),
            ),
            (json!({"data": {"A": "1"}}), json!({"data": {"A": "1", "B": "2"}}), json!({"data": {"B": null}})),
            (
                json!({"spec": {}}),
                json!({"spec": {"nodeSelector": {"disk": "ssd"}}}),
                json!({"spec": {"nodeSelector": null}}),
            ),
            (
                json!({"from": [{"podSelector": {"matchLabels": {"a": "b"}}}]}),
                json!({"from": [{"podSelector": {"matchLabels": {"a": "b"}}, "namespaceSelector": {}}]}),
                json!({"from": [{"podSelector": {"matchLabels": {"a": "b"}}}]}),
            ),
            (
                json!({"env": [{"name": "A"}]}),
                json!({"env": [{"name": "A"}, {"name": "B"}]}),
                json!({"env": [{"name": "A"}]}),
            ),
        ] {
            assert_eq!(surplus(&seen, &wanted), Some(patch), "{seen}");
            assert_eq!(surplus(&wanted, &wanted), None);
        }
    }

    #[test]
    fn labels_and_annotations_of_others_may_stay() {
        let wanted = json!({"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}});
        let seen = json!({"metadata": {"labels": {"a": "b", "x": "y"}, "annotations": {"c": "d", "data": "z"}}});
        assert!(contains(&seen, &wanted) && surplus(&seen, &wanted).is_none());
    }
}
