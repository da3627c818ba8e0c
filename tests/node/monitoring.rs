//! Alerts and dashboard of the chart against what real nodes say of themselves: every series that an
//! expression asks for exists, with the labels that it is asked for by. The operator's own metrics are
//! checked beside their registry.

use std::path::Path;

use kv_tests::Cluster;
use serde_json::Value;

/// Set by the scrape, not by a node.
const TARGET_LABELS: [&str; 3] = ["namespace", "pod", "kvcluster"];

#[tokio::test]
async fn alerts_and_dashboard_ask_for_metrics_that_nodes_have() {
    let cluster = Cluster::manual().await;
    cluster.nodes[0].put("key", "1").await.ok();
    let series = cluster.nodes[0].get("/metrics").await.ok().text();
    let asked: Vec<Selector> = expressions().iter().flat_map(|expression| selectors(expression)).collect();
    assert!(asked.len() > 40, "{asked:?}");
    let missing: Vec<&Selector> = asked.iter().filter(|selector| !selector.exists_in(&series)).collect();
    assert!(missing.is_empty(), "not in /metrics of a leader: {missing:#?}");
}

#[tokio::test]
async fn a_leader_counts_its_voters_and_what_they_lack() {
    let mut cluster = Cluster::manual().await;
    let metrics = async |cluster: &Cluster| cluster.nodes[0].get("/metrics").await.ok().text();
    for line in ["kv_lease_held 1", "kv_voters 3", "kv_voters_fit 3", "kv_quarantined 0", "kv_storage_limit_bytes -1"] {
        assert!(metrics(&cluster).await.contains(line), "{line}");
    }
    let down = cluster.nodes[2].name().to_owned();
    cluster.nodes[2].kill();
    cluster.wait_seen(0, 2, "down").await;
    cluster.nodes[0].put("key", "1").await.ok();
    let text = metrics(&cluster).await;
    for line in ["kv_voters_fit 2".to_owned(), format!("kv_member_lag_entries{{member=\"{down}\"}} 1")] {
        assert!(text.contains(&line), "{line} is missing in\n{text}");
    }
    assert!(
        !cluster.nodes[1].get("/metrics").await.ok().text().contains("kv_member_lag_entries{"),
        "only a leader knows"
    );
}

/// `name{label="value",...}` of an expression.
#[derive(Debug)]
struct Selector {
    name: String,
    labels: Vec<(String, Vec<String>)>,
}

impl Selector {
    /// Each value that it names, whether to have or to leave out.
    fn exists_in(&self, series: &str) -> bool {
        let lines = || series.lines().filter(|line| line.split(['{', ' ']).next() == Some(&self.name));
        let has = |label: &str, value: &String| lines().any(|line| line.contains(&format!("{label}=\"{value}\"")));
        lines().next().is_some() && self.labels.iter().all(|(label, values)| values.iter().all(|v| has(label, v)))
    }
}

fn chart_file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/kv-operator/files").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn expressions() -> Vec<String> {
    let alerts: Value = serde_yaml::from_str(&chart_file("alerts.yaml")).unwrap();
    let dashboard: Value = serde_json::from_str(&chart_file("dashboard.json")).unwrap();
    let mut found = Vec::new();
    collect("expr", &alerts, &mut found);
    collect("expr", &dashboard, &mut found);
    found
}

fn collect(member: &str, document: &Value, found: &mut Vec<String>) {
    match document {
        Value::Object(members) => members.iter().for_each(|(name, value)| match value {
            Value::String(text) if name == member => found.push(text.clone()),
            value => collect(member, value, found),
        }),
        Value::Array(elements) => elements.iter().for_each(|element| collect(member, element, found)),
        _ => {}
    }
}

/// Those of nodes.
fn selectors(expression: &str) -> Vec<Selector> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = expression.match_indices("kv_").map(|(at, _)| at);
    let starts = starts.filter(|at| !expression[..*at].ends_with(is_word));
    let found = starts.map(|at| {
        let rest = &expression[at..];
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let labels = rest[end..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
        Selector { name: rest[..end].to_owned(), labels: labels.map_or_else(Vec::new, |(inner, _)| matchers(inner)) }
    });
    found.filter(|selector| !selector.name.starts_with("kv_operator_")).collect()
}

fn matchers(inner: &str) -> Vec<(String, Vec<String>)> {
    let parts = inner.split(',').map(|part| part.split_once('"').unwrap_or_else(|| panic!("a matcher: {part}")));
    let parts = parts.map(|(label, value)| (label.trim_end_matches(['=', '!', '~']), value.trim_end_matches('"')));
    let own = parts.filter(|(label, _)| !TARGET_LABELS.contains(label));
    own.map(|(label, value)| (label.to_owned(), value.split('|').map(str::to_owned).collect())).collect()
}
