//! Whole reconciles against an API server and nodes in this process: whatever write fails, is answered late or
//! is the last one of an operator, the next reconciles come to the same end.

mod broken;
mod rights;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::*;
use crate::error::NodeError;
use crate::fake::nodes::{Says, serve};
use crate::fake::{State, World};
use crate::watches::Caches;

/// More than any change needs.
const RECONCILES_MAX: usize = 120;
/// Between two reconciles, so that nothing is held back because it was just asked for.
const APART: Duration = Duration::from_secs(3);

struct Operator {
    world: World,
    context: Context,
    remembered: Remembered,
}

impl Operator {
    fn new(world: &World) -> Self {
        let defaults = Defaults { image: "kvcluster/kv-node:1".to_owned(), pull_secrets: Vec::new() };
        let options = Options { namespaces: Vec::new(), defaults };
        let sources = Sources { client: world.client(), nodes: NodeClient::default(), caches: world.state().caches() };
        let context = Context::new(sources, Arc::default(), &options);
        Self { world: world.clone(), context, remembered: Remembered::default() }
    }

    async fn reconcile(&mut self) -> Result<Duration, Error> {
        let caches = self.world.state().caches();
        let cluster = stored(&self.world);
        self.reconcile_as(cluster, caches).await
    }

    async fn reconcile_as(&mut self, cluster: KvCluster, caches: Caches) -> Result<Duration, Error> {
        self.context.sources.caches = caches;
        self.context.started = self.context.started.checked_sub(APART).unwrap();
        five_verbs(&cluster, &self.context, &mut self.remembered).await
    }

    /// Until a reconcile finds nothing to do. An operator that has ended begins anew.
    async fn converge(&mut self) -> BTreeMap<String, Value> {
        for _ in 0..RECONCILES_MAX {
            self.world.state().run_controllers();
            let writes = self.world.state().writes.len();
            let result = self.reconcile().await;
            if std::mem::take(&mut self.world.state().dead) {
                *self = Self::new(&self.world);
                continue;
            }
            let cluster = stored(&self.world);
            let wished = cluster.spec.leader;
            let led_as_wished = wished.is_none() || wished == cluster.status.and_then(|status| status.leader);
            let at_rest = result.is_ok_and(|next| next == Duration::from_secs(5)) && led_as_wished;
            if at_rest && self.world.state().writes.len() == writes {
                return self.world.state().outcome();
            }
        }
        panic!("it does not come to rest: {:#?}", self.world.state().writes);
    }
}

/// Shows what differs and no more.
#[track_caller]
fn assert_same(outcome: &BTreeMap<String, Value>, expected: &BTreeMap<String, Value>, when: &str) {
    let names: BTreeSet<&String> = outcome.keys().chain(expected.keys()).collect();
    let differ = names.into_iter().filter(|name| outcome.get(*name) != expected.get(*name));
    let shown: Vec<String> =
        differ.map(|name| format!("{name}: {:#?} != {:#?}", outcome.get(name), expected.get(name))).collect();
    assert!(shown.is_empty(), "{when}: {}", shown.join("\n"));
}

fn stored(world: &World) -> KvCluster {
    serde_json::from_value(world.state().get("kvclusters", "demo").unwrap().clone()).unwrap()
}

fn set_spec(state: &mut State, spec: &str) {
    let spec: Value = serde_yaml::from_str(spec).unwrap();
    let mut cluster = state.get("kvclusters", "demo").cloned().unwrap_or_else(|| {
        json!({ "apiVersion": "kvcluster.dev/v1alpha1", "kind": "KvCluster", "metadata": { "name": "demo", "generation": 0 } })
    });
    cluster["metadata"]["generation"] = json!(cluster["metadata"]["generation"].as_i64().unwrap() + 1);
    cluster["spec"] = spec;
    state.store(("kvclusters".to_owned(), "demo".to_owned()), cluster);
}

async fn world(spec: &str) -> World {
    let world = World::default();
    serve(&world).await;
    set_spec(&mut world.state(), spec);
    world
}

#[tokio::test]
async fn caches_that_are_late_cost_time_and_nothing_else() {
    let world = world("{leader: demo-1, storage: {size: 1Gi}}").await;
    let start = world.state().clone();
    let expected = Operator::new(&world).converge().await;
    *world.state() = start;
    let mut operator = Operator::new(&world);
    let mut late = (stored(&world), world.state().caches());
    for _ in 0..30 {
        world.state().run_controllers();
        let now = (stored(&world), world.state().caches());
        let (cluster, caches) = std::mem::replace(&mut late, now);
        let conflict = operator.reconcile_as(cluster, caches).await.err();
        assert!(conflict.is_none_or(|error| matches!(error, Error::Conflict { .. } | Error::Node(_))));
    }
    assert_same(&operator.converge().await, &expected, "late caches");
    assert_eq!(world.state().nodes.refused, [""; 0]);
}

#[tokio::test]
async fn two_operators_at_once_do_no_harm() {
    let world = world("{leader: demo-1, storage: {size: 1Gi}}").await;
    let start = world.state().clone();
    let expected = Operator::new(&world).converge().await;
    *world.state() = start;
    let (mut one, mut other) = (Operator::new(&world), Operator::new(&world));
    for _ in 0..15 {
        world.state().run_controllers();
        let seen = (stored(&world), world.state().caches());
        let results =
            [one.reconcile_as(seen.0.clone(), seen.1.clone()).await, other.reconcile_as(seen.0, seen.1).await];
        let harmless = |error: &Error| matches!(error, Error::Conflict { .. } | Error::Node(_));
        assert!(results.iter().all(|result| result.as_ref().err().is_none_or(harmless)), "{results:?}");
    }
    assert_same(&one.converge().await, &expected, "two operators");
    assert_eq!(world.state().nodes.refused, [""; 0]);
    let reported = stored(&world).status.unwrap().cluster_id;
    assert_eq!(world.state().nodes.cluster_id, reported);
}

#[tokio::test]
async fn what_was_edited_or_deleted_by_hand_comes_back() {
    let world = world("{storage: {size: 1Gi}}").await;
    let mut operator = Operator::new(&world);
    let expected = operator.converge().await;
    for kind in ["services", "configmaps", "secrets", "poddisruptionbudgets", "networkpolicies", "statefulsets"] {
        world.state().objects.retain(|(plural, _), _| plural != kind);
        assert_same(&operator.converge().await, &expected, kind);
    }
    let mut cluster = world.state().get("kvclusters", "demo").cloned().unwrap();
    for (member, value) in [("epoch", json!(999)), ("leader", json!("demo-9")), ("clusterId", json!("forged"))] {
        cluster["status"][member] = value;
    }
    world.state().store(("kvclusters".to_owned(), "demo".to_owned()), cluster);
    assert_same(&operator.converge().await, &expected, "an edited status");
    assert_eq!(stored(&world).status.unwrap().epoch, Some(1));
    for (plural, name) in [("pods", "demo-1"), ("persistentvolumeclaims", "data-demo-2"), ("services", "demo")] {
        let key = (plural.to_owned(), name.to_owned());
        let mut object = world.state().objects[&key].clone();
        object["metadata"]["labels"] = json!({ "app.kubernetes.io/instance": "forged" });
        world.state().objects.insert(key, object);
    }
    let mut repaired = operator.converge().await;
    // Labels that are not the operator's own come back with the pod.
    repaired.insert("pods/demo-1".to_owned(), expected["pods/demo-1"].clone());
    assert_same(&repaired, &expected, "edited labels");
}

#[tokio::test]
async fn volumes_that_cannot_grow_keep_nothing_else_from_being_done() {
    let world = world("{leader: demo-0, storage: {size: 1Gi}}").await;
    let mut operator = Operator::new(&world);
    operator.converge().await;
    set_spec(&mut world.state(), "{leader: demo-1, image: 'kvcluster/kv-node:2', storage: {size: 2Gi}}");
    world.state().refuses = Some(("persistentvolumeclaims", 403));
    for _ in 0..RECONCILES_MAX / 2 {
        world.state().run_controllers();
        operator.reconcile().await.unwrap_err();
    }
    let status = stored(&world).status.unwrap();
    assert_eq!((status.updated_replicas, status.leader.as_deref()), (3, Some("demo-1")), "{:?}", status.conditions);
    let leads = world.state().get("pods", "demo-1").unwrap()["metadata"]["labels"]["kvcluster.dev/role"].clone();
    assert_eq!(leads, "leader");
    assert_eq!(spec_invalid(&world), ("True".to_owned(), "StorageCannotGrow".to_owned()));
    assert_spec_is_not_to_blame_for_a_failure(&world, &mut operator, "persistentvolumeclaims").await;
}

#[tokio::test]
async fn a_spec_that_makes_an_object_which_the_api_server_refuses_is_invalid() {
    let world = world("{storage: {size: 1Gi}}").await;
    let mut operator = Operator::new(&world);
    operator.converge().await;
    set_spec(&mut world.state(), "{pod: {labels: {'not a label': x}}, storage: {size: 1Gi}}");
    world.state().refuses = Some(("statefulsets", 422));
    operator.reconcile().await.unwrap_err();
    assert_eq!(spec_invalid(&world), ("True".to_owned(), "BadValue".to_owned()));
    assert_spec_is_not_to_blame_for_a_failure(&world, &mut operator, "statefulsets").await;
}

async fn assert_spec_is_not_to_blame_for_a_failure(world: &World, operator: &mut Operator, plural: &'static str) {
    world.state().refuses = Some((plural, 500));
    operator.reconcile().await.unwrap_err();
    assert_eq!(spec_invalid(world), ("False".to_owned(), "Valid".to_owned()), "the spec is not to blame");
}

fn spec_invalid(world: &World) -> (String, String) {
    condition(world, "SpecInvalid")
}

/// Its status and reason.
fn condition(world: &World, kind: &str) -> (String, String) {
    let conditions = stored(world).status.unwrap().conditions;
    let condition = conditions.into_iter().find(|condition| condition.type_ == kind).unwrap();
    (condition.status, condition.reason)
}

#[tokio::test]
async fn what_was_added_by_hand_where_nothing_but_ours_may_be_goes() {
    let world = world("{storage: {size: 1Gi}}").await;
    let mut operator = Operator::new(&world);
    let expected = operator.converge().await;
    for (plural, name, place, added) in [
        ("services", "demo", "/spec/selector", "x"),
        ("services", "demo-leader", "/spec/selector", "x"),
        ("networkpolicies", "demo", "/spec/podSelector/matchLabels", "x"),
        ("poddisruptionbudgets", "demo", "/spec/selector/matchLabels", "x"),
        ("configmaps", "demo", "/data", "MAX_VALUE_SIZE"),
        ("secrets", "demo-auth", "/data", "more"),
    ] {
        let key = (plural.to_owned(), name.to_owned());
        let mut object = world.state().objects[&key].clone();
        object.pointer_mut(place).unwrap()[added] = json!("eQ==");
        world.state().store(key, object);
        assert_same(&operator.converge().await, &expected, &format!("{plural} {name}"));
        let left = world.state().get(plural, name).unwrap().pointer(place).unwrap().clone();
        assert!(left[added].is_null(), "{plural} {name}: {left}");
    }
}

#[tokio::test]
async fn an_answer_that_is_garbage_or_late_is_unknown_and_nobody_is_taken_for_gone() {
    let world = world("{storage: {size: 1Gi}}").await;
    let mut operator = Operator::new(&world);
    operator.converge().await;
    let leader = world.state().nodes.leader.unwrap();
    let [garbage, late] = [1, 2].map(|further| (leader + further) % 3);
    world.state().nodes.says = [(garbage, Says::Garbage), (late, Says::Nothing)].into();
    world.state().writes.clear();
    operator.reconcile().await.unwrap();
    operator.reconcile().await.unwrap();
    let writes = world.state().writes.clone();
    assert!(writes.iter().all(|write| write == "PUT kvclusters/demo"), "{writes:?}");
    let members = stored(&world).status.unwrap().members;
    for (ordinal, words) in [(garbage, "makes no sense"), (late, "does not answer")] {
        let member = &members[usize::try_from(ordinal).unwrap()];
        assert!(member.voter && member.member_id.is_some() && member.role.is_none(), "{member:?}");
        assert!(member.message.as_ref().unwrap().contains(words), "{member:?}");
    }
    assert_eq!(world.state().nodes.voters.len(), 3);
}

#[tokio::test]
async fn a_directive_without_the_token_is_refused_and_told_and_sent_again_with_it() {
    let world = world("{leader: demo-0, storage: {size: 1Gi}}").await;
    let mut operator = Operator::new(&world);
    operator.converge().await;
    let secret = ("secrets".to_owned(), "demo-auth".to_owned());
    let mut emptied = world.state().objects[&secret].clone();
    emptied["data"] = json!({});
    world.state().store(secret, emptied);
    set_spec(&mut world.state(), "{leader: demo-1, storage: {size: 1Gi}}");
    let refused = operator.reconcile().await.unwrap_err();
    assert!(matches!(&refused, Error::Node(NodeError::Refused { code, .. }) if code == "401"), "{refused}");
    assert_eq!(world.state().nodes.leader, Some(0), "nobody was told anything");
    let conditions = stored(&world).status.unwrap().conditions;
    let told = conditions.iter().find(|condition| condition.type_ == "Progressing").unwrap();
    assert!(told.message.contains("demo-1 refused"), "{}", told.message);
    operator.converge().await;
    assert_eq!(world.state().nodes.leader, Some(1));
}

#[tokio::test]
async fn one_kvcluster_that_cannot_be_read_is_told_and_counted_and_keeps_no_other_from_its_turn() {
    let world = world("{storage: {size: 1Gi}}").await;
    let context = Arc::new(Operator::new(&world).context);
    let good = world.state().get("kvclusters", "demo").cloned().unwrap();
    let mut bad = good.clone();
    (bad["metadata"]["name"], bad["metadata"]["uid"]) = (json!("bad"), json!("uid-bad"));
    bad["spec"]["replicas"] = json!("three");
    let list = json!({ "apiVersion": "kvcluster.dev/v1alpha1", "kind": "KvClusterList", "metadata": {}, "items": [bad, good] });
    let list: kube::core::ObjectList<Guarded> = serde_json::from_value(list).unwrap();
    let clusters = list.items.iter().map(|guarded| guarded.0.as_ref().ok());
    assert!(context.metrics.render(clusters).contains("kv_operator_clusters 2"));
    let [bad, good] = <[Guarded; 2]>::try_from(list.items).ok().unwrap().map(Arc::new);
    assert_eq!(reconcile(bad, context.clone()).await.unwrap(), Action::await_change());
    assert_eq!(world.state().writes, [""; 0]);
    let events = std::mem::take(&mut world.state().events);
    let [event] = events.as_slice() else { panic!("{events:#?}") };
    assert_eq!(
        (&event["type"], &event["reason"], &event["regarding"]["name"], &event["regarding"]["uid"]),
        (&json!("Warning"), &json!("Unreadable"), &json!("bad"), &json!("uid-bad"))
    );
    assert!(event["note"].as_str().unwrap().contains("three"), "{event:#?}");
    reconcile(good, context).await.unwrap();
    assert!(world.state().get("statefulsets", "demo").is_some());
}

#[tokio::test]
async fn a_failure_that_stays_makes_nothing_else_late() {
    let world = world("{storage: {size: 1Gi}}").await;
    let context = Arc::new(Operator::new(&world).context);
    let cluster = Arc::new(DeserializeGuard(Ok(stored(&world))));
    let error = Error::Node(NodeError::Unreachable { pod: "demo-0".to_owned() });
    let pauses: Vec<Action> = (0..20).map(|_| retry(cluster.clone(), &error, context.clone())).collect();
    assert_eq!(pauses[0], Action::requeue(Duration::from_millis(500)));
    assert_eq!(pauses[19], Action::requeue(Duration::from_secs(5)), "a status has to be true within 10 s");
}

#[tokio::test]
async fn a_spec_that_lets_no_pod_start_is_put_right_with_no_leader_and_before_there_ever_was_one() {
    let world = world("{image: no-such-image, storage: {size: 1Gi}}").await;
    let mut operator = Operator::new(&world);
    for image in ["kvcluster/kv-node:1", "kvcluster/kv-node:2"] {
        for _ in 0..5 {
            world.state().run_controllers();
            operator.reconcile().await.unwrap();
        }
        assert_ne!(condition(&world, "Available").0, "True");
        set_spec(&mut world.state(), &format!("{{image: '{image}', storage: {{size: 1Gi}}}}"));
        operator.converge().await;
        assert_eq!(condition(&world, "Available").0, "True", "{image}");
        set_spec(&mut world.state(), "{image: no-such-image, storage: {size: 1Gi}}");
        operator.reconcile().await.unwrap();
        world.state().objects.retain(|(plural, _), _| plural != "pods");
    }
}

#[tokio::test]
async fn a_leader_that_is_no_pod_keeps_nothing_else_from_being_done() {
    let world = world("{leader: demo-7, storage: {size: 1Gi}}").await;
    let mut operator = Operator::new(&world);
    for replicas in [3, 4] {
        set_spec(&mut world.state(), &format!("{{leader: demo-7, replicas: {replicas}, storage: {{size: 1Gi}}}}"));
        world.state().objects.remove(&("services".to_owned(), "demo".to_owned()));
        for _ in 0..RECONCILES_MAX / 4 {
            world.state().run_controllers();
            operator.reconcile().await.unwrap();
        }
        assert_eq!(condition(&world, "SpecInvalid"), ("True".to_owned(), "UnknownLeader".to_owned()));
        let status = stored(&world).status.unwrap();
        assert_eq!((status.leader.is_some(), status.followers.len()), (true, replicas - 1), "{status:#?}");
        assert!(world.state().get("services", "demo").is_some());
    }
}

#[tokio::test]
async fn a_spec_that_makes_no_sense_does_not_change_which_pods_are_updated() {
    let world = world("{storage: {size: 1Gi}}").await;
    let mut operator = Operator::new(&world);
    operator.converge().await;
    set_spec(&mut world.state(), "{dedupExpiry: soon, image: 'kvcluster/kv-node:2', storage: {size: 1Gi}}");
    operator.reconcile().await.unwrap();
    let status = stored(&world).status.unwrap();
    assert_eq!((status.updated_replicas, status.observed_generation), (3, Some(2)));
}

#[tokio::test]
async fn nothing_is_written_over_what_is_somebody_elses() {
    for (plural, kind, name) in [
        ("services", "Service", "demo"),
        ("pods", "Pod", "demo-1"),
        ("persistentvolumeclaims", "PersistentVolumeClaim", "data-demo-2"),
    ] {
        let world = world_of_a_stranger(plural, kind, name);
        let mut operator = Operator::new(&world);
        operator.reconcile().await.unwrap();
        operator.reconcile().await.unwrap();
        let writes: Vec<String> = std::mem::take(&mut world.state().writes);
        assert!(writes.iter().all(|write| write == "PUT kvclusters/demo"), "{writes:?}");
        let conditions = stored(&world).status.unwrap().conditions;
        let invalid = conditions.iter().find(|condition| condition.type_ == "SpecInvalid").unwrap();
        assert_eq!((invalid.status.as_str(), invalid.reason.as_str()), ("True", "NameTaken"), "{name}");
        assert!(invalid.message.contains(name), "{}", invalid.message);
    }
}

fn world_of_a_stranger(plural: &str, kind: &str, name: &str) -> World {
    let world = World::default();
    set_spec(&mut world.state(), "{storage: {size: 1Gi}}");
    let object = json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name },
        "spec": { "containers": [], "resources": { "requests": { "storage": "1Gi" } } } });
    world.state().store((plural.to_owned(), name.to_owned()), object);
    world
}
