//! docs/reference.md: every field of a KvCluster, from the schema that the API server holds. Pure; decides
//! nothing and knows no field by itself, so that it cannot say anything else than the schema.

use std::fmt::Write;

use kube::core::CustomResourceExt;
use serde_json::Value;

use crate::crd::{GROUP, KvCluster};

/// Types that Kubernetes documents: a field of a pod is explained there.
const EXPLAINED_BY_KUBERNETES: [&str; 5] =
    ["affinity", "tolerations[]", "topologySpreadConstraints[]", "imagePullSecrets[]", "conditions[]"];

const HEAD: &str = "\
# KvCluster: every field

Generated from the schema of the resource; `kubectl explain kvcluster.spec` shows the same. [operations.md](operations.md)
says what to do with it. Durations are text such as `100ms`, `90s` or `1h30m`; sizes are quantities such as `500Mi` or `10Gi`.
";

/// The whole document.
pub fn reference() -> String {
    let definition = serde_json::to_value(KvCluster::crd()).expect("a definition made of plain values is JSON");
    let version = &definition["spec"]["versions"][0];
    let schema = &version["schema"]["openAPIV3Schema"];
    let names = &definition["spec"]["names"];
    let mut text = HEAD.to_owned();
    let (api, kind, short) = (text_of(&version["name"]), text_of(&names["kind"]), text_of(&names["shortNames"][0]));
    let _ = write!(text, "\nAPI version `{GROUP}/{api}`, kind `{kind}`, short name `{short}`, namespaced.\n");
    for part in ["spec", "status"] {
        let part_schema = &schema["properties"][part];
        let _ = write!(text, "\n## {part}\n\n{}\n\n", text_of(&part_schema["description"]));
        text.push_str("| field | type | default | meaning |\n|---|---|---|---|\n");
        fields("", part_schema, &mut text);
    }
    text.push_str("\n## What is refused\n\nBesides values of the wrong type or out of the ranges above:\n\n");
    rules("", schema, &mut text);
    text.push_str("\n## What `kubectl get` shows\n\n| column | with | from |\n|---|---|---|\n");
    for column in version["additionalPrinterColumns"].as_array().into_iter().flatten() {
        let with = if column["priority"].as_i64().unwrap_or_default() == 0 { "" } else { "`-o wide`" };
        let _ = writeln!(text, "| {} | {with} | `{}` |", text_of(&column["name"]), text_of(&column["jsonPath"]));
    }
    text
}

fn fields(path: &str, schema: &Value, text: &mut String) {
    let required = |name: &str| schema["required"].as_array().is_some_and(|list| list.iter().any(|r| r == name));
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let default = match &field["default"] {
            Value::Null if required(name) => "required".to_owned(),
            Value::Null | Value::Object(_) | Value::Array(_) => String::new(),
            Value::String(value) => format!("`{value}`"),
            value => format!("`{value}`"),
        };
        let meaning = text_of(&field["description"]).replace('\n', " ").replace('|', "\\|");
        let _ = writeln!(text, "| `{path}` | {} | {default} | {meaning} |", type_of(field));
        let (inner, inner_path) = match field["items"] {
            Value::Null => (field, path),
            _ => (&field["items"], format!("{path}[]")),
        };
        if !is_explained(&inner_path) {
            fields(&inner_path, inner, text);
        }
    }
}

fn type_of(field: &Value) -> String {
    if field["x-kubernetes-int-or-string"] == true {
        return "quantity".to_owned();
    }
    if let Some(words) = field["enum"].as_array() {
        let words: Vec<String> = words.iter().filter_map(Value::as_str).map(|word| format!("`{word}`")).collect();
        return words.join(", ");
    }
    let range = match (field["minimum"].as_f64(), field["maximum"].as_f64()) {
        (Some(least), Some(most)) => format!(", {least} to {most}"),
        (Some(least), None) => format!(", {least} or more"),
        _ => String::new(),
    };
    match text_of(&field["type"]) {
        "array" => format!("list of {}", type_of(&field["items"])),
        "object" if field["additionalProperties"]["x-kubernetes-int-or-string"] == true => {
            "map to quantities".to_owned()
        }
        "object" if field["additionalProperties"].is_object() => "map to strings".to_owned(),
        "string" if field["format"] == "date-time" => "time".to_owned(),
        plain => format!("{plain}{range}"),
    }
}

fn is_explained(path: &str) -> bool {
    EXPLAINED_BY_KUBERNETES.iter().any(|known| path.rsplit('.').next() == Some(known))
}

fn rules(path: &str, schema: &Value, text: &mut String) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let place = if path.is_empty() { String::new() } else { format!("`{path}`: ") };
        let _ = writeln!(text, "- {place}{}", text_of(&rule["message"]));
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if !is_explained(&path) {
            rules(&path, field, text);
        }
    }
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_reference_is_fresh() {
        let path = format!("{}/../docs/reference.md", env!("CARGO_MANIFEST_DIR"));
        let stored = std::fs::read_to_string(path).unwrap_or_default();
        assert!(stored == reference(), "stale: write what `cargo run -p kv-operator -- reference` prints there");
    }

    #[test]
    fn fields_are_told_with_type_default_and_meaning() {
        let text = reference();
        for line in [
            "| `replicas` | integer, 1 to 7 | `3` |",
            "| `storage.size` | quantity | required |",
            "| `failover` | `Automatic`, `Manual` | `Automatic` |",
            "| `members[].lagEntries` | integer |",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("nodeAffinity"), "Kubernetes explains its own types");
    }
}
