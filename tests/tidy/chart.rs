//! Chart and documents say the same as the rest: one release, every alert and value explained, every
//! example a file, no right too many.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::source::workspace;

fn text(path: &str) -> String {
    std::fs::read_to_string(workspace().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_yaml::from_str(&text(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn release() -> String {
    let manifest = text("Cargo.toml");
    let line = manifest.lines().find_map(|line| line.strip_prefix("version = "));
    line.expect("the workspace has a version").trim_matches('"').to_owned()
}

#[test]
fn the_chart_is_of_the_workspaces_release() {
    let chart = yaml("charts/kv-operator/Chart.yaml");
    assert_eq!((chart["appVersion"].as_str(), chart["version"].as_str()), (Some(&*release()), Some(&*release())));
}

#[test]
fn the_documents_name_the_images_of_this_release() {
    for path in ["README.md", "docs/operations.md"] {
        let text = text(path);
        let tags = text.match_indices("kvcluster/kv-").map(|(at, _)| {
            let image =
                text[at..].split(|c: char| c.is_whitespace() || "`\"',)".contains(c)).next().unwrap_or_default();
            image.split_once(':').map_or("", |(_, tag)| tag)
        });
        let other: Vec<&str> =
            tags.filter(|tag| !tag.is_empty() && !tag.starts_with('<') && *tag != release()).collect();
        assert!(other.is_empty(), "{path}: {other:?}");
    }
}

#[test]
fn every_alert_says_what_to_do_and_is_explained() {
    let operations = text("docs/operations.md");
    let rules = yaml("charts/kv-operator/files/alerts.yaml");
    let groups = rules["groups"].as_array().unwrap().iter();
    let alerts: Vec<&Value> = groups.flat_map(|group| group["rules"].as_array().unwrap()).collect();
    assert!(alerts.len() >= 6);
    for alert in alerts {
        let name = alert["alert"].as_str().unwrap();
        let annotations = &alert["annotations"];
        assert!(operations.contains(&format!("\n### {name}\n")), "docs/operations.md has no section {name}");
        assert_eq!(annotations["runbook_url"], format!("docs/operations.md#{}", name.to_lowercase()), "{name}");
        assert!(annotations["summary"].is_string() && annotations["description"].is_string(), "{name}");
        assert!(["critical", "warning"].map(Value::from).contains(&alert["labels"]["severity"]), "{name}");
    }
}

#[test]
fn every_value_of_the_chart_has_a_description_and_a_type() {
    let (values, schema) = (yaml("charts/kv-operator/values.yaml"), yaml("charts/kv-operator/values.schema.json"));
    let mut wrong = Vec::new();
    described("", &values, &schema, &mut wrong);
    assert!(wrong.is_empty(), "{wrong:?}");
}

fn described(path: &str, values: &Value, schema: &Value, wrong: &mut Vec<String>) {
    let Some(members) = schema["properties"].as_object() else { return };
    let known: BTreeSet<&String> = members.keys().filter(|name| *name != "global").collect();
    let present: BTreeSet<&String> = values.as_object().into_iter().flat_map(|values| values.keys()).collect();
    wrong.extend(known.symmetric_difference(&present).map(|name| format!("{path}{name}: in one of the two alone")));
    for (name, member) in members {
        if !member["description"].is_string() || (!member["type"].is_string() && !member["enum"].is_array()) {
            wrong.push(format!("{path}{name}"));
        }
        described(&format!("{path}{name}."), &values[name], member, wrong);
    }
}

#[test]
fn the_chart_asks_for_no_right_by_wildcard() {
    for entry in std::fs::read_dir(workspace().join("charts/kv-operator/templates")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let rules = text.lines().filter(|line| ["verbs:", "resources:", "apiGroups:"].iter().any(|k| line.contains(k)));
        let wild: Vec<&str> = rules.filter(|line| line.contains('*')).collect();
        assert!(wild.is_empty(), "{}: {wild:?}", path.display());
    }
}

#[test]
fn every_cluster_in_the_documents_is_an_example_that_can_be_applied() {
    let dir = std::fs::read_dir(workspace().join("charts/examples")).unwrap();
    let examples: Vec<String> = dir.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    let operations = text("docs/operations.md");
    let blocks: Vec<&str> =
        operations.split("```yaml\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0)).collect();
    assert!(blocks.len() >= 3);
    for block in blocks {
        assert!(examples.iter().any(|example| example.ends_with(block)), "no file of charts/examples ends in\n{block}");
    }
}
