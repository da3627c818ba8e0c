//! The rights that the chart gives an operator are those that it uses: no verb less, and none more.

use super::*;
use crate::fake::{NAMESPACE, Right};
use crate::lease::{Claimant, Turns};
use crate::resources::Kind;

const ALL_OF_IT: &str = "{monitoring: {podMonitor: true}, storage: {size: 1Gi}}";

#[tokio::test]
async fn the_chart_gives_the_rights_that_are_used_and_no_others() {
    let world = world(ALL_OF_IT).await;
    world.state().has_pod_monitors = true;
    let mut operator = Operator::new(&world);
    for spec in [
        ALL_OF_IT,
        "{image: 'kvcluster/kv-node:2', storage: {size: 2Gi}}",
        "{image: 'kvcluster/kv-node:2', replicas: 1, storage: {size: 2Gi}}",
    ] {
        set_spec(&mut world.state(), spec);
        operator.converge().await;
    }
    world.state().add_service_account("kv");
    let claimant = Claimant { name: "one".to_owned(), service_account: Some("kv".to_owned()) };
    let mut turns = Turns::new(world.client(), NAMESPACE, claimant);
    turns.acquire().await;
    turns.release().await;

    let mut used = world.state().asked.clone();
    used.extend(watched());
    used.extend([
        // Of an Event that is told again.
        right("events.k8s.io", "events", "patch"),
        // Owner references that block the deletion of their owner.
        right("kvcluster.dev", "kvclusters/finalizers", "update"),
    ]);
    let given = given();
    let missing: Vec<_> = used.difference(&given).collect();
    let too_many: Vec<_> = given.difference(&used).collect();
    assert!(missing.is_empty() && too_many.is_empty(), "missing: {missing:?}, too many: {too_many:?}");
}

fn right(group: &str, resource: &str, verb: &str) -> Right {
    (group.to_owned(), resource.to_owned(), verb.to_owned())
}

fn watched() -> Vec<Right> {
    let children = Kind::ALL.map(|kind| (kind.api().0, kind.api().2));
    let others = [
        ("kvcluster.dev", "kvclusters"),
        ("", "pods"),
        ("", "persistentvolumeclaims"),
        ("", "nodes"),
        ("apiextensions.k8s.io", "customresourcedefinitions"),
    ];
    let all = children.into_iter().chain(others);
    all.flat_map(|(group, resource)| ["list", "watch"].map(|verb| right(group, resource, verb))).collect()
}

/// By the template, of which nothing but the rules is read.
fn given() -> BTreeSet<Right> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/kv-operator/templates/rbac.yaml");
    let template = std::fs::read_to_string(path).unwrap();
    let plain: Vec<&str> = template.lines().filter(|line| !line.contains("{{")).collect();
    let mut given = BTreeSet::new();
    for document in plain.join("\n").split("\n---\n") {
        let object: Value = serde_yaml::from_str(document).unwrap();
        for rule in object["rules"].as_array().into_iter().flatten() {
            let words = |member: &str| -> Vec<&str> {
                rule[member].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
            };
            for (group, resource) in words("apiGroups").into_iter().flat_map(|group| {
                let resources = words("resources").into_iter();
                resources.map(move |resource| (group, resource)).collect::<Vec<_>>()
            }) {
                given.extend(words("verbs").into_iter().map(|verb| right(group, resource, verb)));
            }
        }
    }
    given
}
