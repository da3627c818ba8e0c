//! Every write of every way that a cluster goes fails once in each way; the end is the same. What the operator
//! can write is listed here, and all of it is among what fails.

use super::*;
use crate::fake::Fault;
use crate::fake::writes::Write;
use crate::names::{APP_LABEL, INSTANCE_LABEL};
use crate::plan::{Directive, Labelled, Plan};
use crate::resources::Kind;

const SMALLEST: &str = "{storage: {size: 1Gi}}";

/// From where the writes begin that are broken.
#[derive(Debug, Clone, Copy)]
enum Start {
    Nothing,
    NothingInManualFailover,
    Roll,
    LiveSettings,
    MoreReplicas,
    FewerReplicas,
    LostVolume,
    LostMajority,
    LostMajorityInManualFailover,
    DeadLeaderInManualFailover,
    EditedByHand,
    PodMonitorOn,
    PodMonitorOff,
}

impl Start {
    const ALL: [Self; 13] = [
        Self::Nothing,
        Self::NothingInManualFailover,
        Self::Roll,
        Self::LiveSettings,
        Self::MoreReplicas,
        Self::FewerReplicas,
        Self::LostVolume,
        Self::LostMajority,
        Self::LostMajorityInManualFailover,
        Self::DeadLeaderInManualFailover,
        Self::EditedByHand,
        Self::PodMonitorOn,
        Self::PodMonitorOff,
    ];

    async fn world(self) -> World {
        match self {
            Self::Nothing => world("{leader: demo-1, storage: {size: 1Gi}}").await,
            Self::NothingInManualFailover => world("{failover: Manual, leader: demo-1, storage: {size: 1Gi}}").await,
            Self::Roll => {
                changed(SMALLEST, "{image: 'kvcluster/kv-node:2', historyLimit: 7, storage: {size: 2Gi}}").await
            }
            Self::LiveSettings => {
                let live =
                    "{failover: Manual, heartbeat: {timeout: 3s}, compaction: {enabled: false}, storage: {size: 1Gi}}";
                changed(SMALLEST, live).await
            }
            Self::MoreReplicas => changed(SMALLEST, "{replicas: 5, storage: {size: 1Gi}}").await,
            Self::FewerReplicas => {
                changed("{replicas: 5, storage: {size: 1Gi}}", "{replicas: 1, storage: {size: 1Gi}}").await
            }
            Self::LostVolume => {
                let world = settled(SMALLEST).await;
                world.state().nodes.lose_volume(1);
                world
            }
            Self::LostMajority => lost_majority("failover: Automatic").await,
            Self::LostMajorityInManualFailover => lost_majority("failover: Manual, leader: demo-2").await,
            Self::DeadLeaderInManualFailover => {
                let manual =
                    |leader: u32| format!("{{failover: Manual, leader: demo-{leader}, storage: {{size: 1Gi}}}}");
                let world = changed(&manual(0), &manual(2)).await;
                world.state().nodes.leader = None;
                world
            }
            Self::EditedByHand => edited_by_hand().await,
            Self::PodMonitorOn => {
                let world = changed(SMALLEST, "{monitoring: {podMonitor: true}, storage: {size: 1Gi}}").await;
                world.state().has_pod_monitors = true;
                world
            }
            Self::PodMonitorOff => {
                let world = world("{monitoring: {podMonitor: true}, storage: {size: 1Gi}}").await;
                world.state().has_pod_monitors = true;
                Operator::new(&world).converge().await;
                set_spec(&mut world.state(), SMALLEST);
                world
            }
        }
    }
}

async fn settled(spec: &str) -> World {
    let world = world(spec).await;
    Operator::new(&world).converge().await;
    world
}

async fn changed(from: &str, to: &str) -> World {
    let world = settled(from).await;
    set_spec(&mut world.state(), to);
    world
}

/// Two of three volumes are lost for good, and a person has accepted it.
async fn lost_majority(leading: &str) -> World {
    let world = settled(&format!("{{{leading}, storage: {{size: 1Gi}}}}")).await;
    (0..2).for_each(|ordinal| world.state().nodes.lose_volume(ordinal));
    Operator::new(&world).reconcile().await.unwrap();
    let epoch = stored(&world).status.unwrap().epoch.unwrap();
    let recovery = format!("{{forceLeader: demo-2, acceptDataLossAtEpoch: {epoch}}}");
    set_spec(&mut world.state(), &format!("{{{leading}, recovery: {recovery}, storage: {{size: 1Gi}}}}"));
    world
}

async fn edited_by_hand() -> World {
    let world = settled(SMALLEST).await;
    for (plural, name, place, value) in [
        ("pods", "demo-1", "/metadata/labels", json!({ APP_LABEL: "forged" })),
        ("persistentvolumeclaims", "data-demo-2", "/metadata/labels", json!({ INSTANCE_LABEL: "forged" })),
        ("services", "demo-leader", "/spec/selector", json!({ "forged": "yes" })),
        ("configmaps", "demo", "/data/MAX_VALUE_SIZE", json!("1")),
    ] {
        let key = (plural.to_owned(), name.to_owned());
        let mut object = world.state().objects[&key].clone();
        let (parent, member) = place.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[member] = value;
        world.state().store(key, object);
    }
    world
}

/// Breaks each write of the way from the start to the end in each way, one at a time. What it comes to without.
async fn breaks_nothing(start: Start) -> World {
    let world = start.world().await;
    let state = world.state().clone();
    let begin = |fault| {
        let mut state = state.clone();
        (state.fault, state.writes) = (fault, Vec::new());
        *world.state() = state;
    };
    begin(None);
    let expected = Operator::new(&world).converge().await;
    let writes = world.state().writes.clone();
    for (at, write) in writes.iter().enumerate() {
        for fault in Fault::ALL {
            begin(Some((at, fault)));
            let outcome = Operator::new(&world).converge().await;
            assert_same(&outcome, &expected, &format!("{fault:?} at write {at}, {write}"));
            assert_eq!(world.state().nodes.refused, [""; 0], "{fault:?} at write {at}, {write}");
            let founded = world.state().nodes.cluster_id.clone();
            let reported = stored(&world).status.unwrap().cluster_id;
            assert_eq!(founded, reported, "{fault:?} at write {at}, {write}");
        }
    }
    world
}

#[tokio::test]
async fn whatever_write_fails_a_new_cluster_ends_the_same() {
    breaks_nothing(Start::Nothing).await;
    breaks_nothing(Start::NothingInManualFailover).await;
}

#[tokio::test]
async fn whatever_write_fails_a_roll_with_growth_and_new_settings_ends_the_same() {
    breaks_nothing(Start::Roll).await;
}

#[tokio::test]
async fn whatever_write_fails_settings_of_running_nodes_end_the_same() {
    breaks_nothing(Start::LiveSettings).await;
}

#[tokio::test]
async fn whatever_write_fails_more_and_fewer_replicas_end_the_same() {
    breaks_nothing(Start::MoreReplicas).await;
    let world = breaks_nothing(Start::FewerReplicas).await;
    assert_eq!(world.state().of_kind("persistentvolumeclaims").len(), 5, "no claim is deleted");
}

#[tokio::test]
async fn whatever_write_fails_a_lost_volume_is_replaced() {
    let world = breaks_nothing(Start::LostVolume).await;
    assert_eq!(world.state().nodes.voters.len(), 3);
}

#[tokio::test]
async fn whatever_write_fails_a_recovery_is_carried_out_once_and_the_others_join() {
    for start in [Start::LostMajority, Start::LostMajorityInManualFailover] {
        let world = breaks_nothing(start).await;
        let State { nodes, written, .. } = world.state().clone();
        assert_eq!((nodes.leader, nodes.voters.len()), (Some(2), 3), "{start:?}");
        assert!(written.contains(&Write::Recover), "{start:?}: {written:?}");
    }
}

#[tokio::test]
async fn whatever_write_fails_the_next_leader_of_a_manual_failover_leads() {
    let world = breaks_nothing(Start::DeadLeaderInManualFailover).await;
    assert_eq!(world.state().nodes.leader, Some(2));
}

#[tokio::test]
async fn whatever_write_fails_edits_by_hand_are_undone() {
    let world = breaks_nothing(Start::EditedByHand).await;
    // Labels of pods that are not the operator's own come back with the pod; their addresses are those of the test.
    let without_pods = |world: &World| -> BTreeMap<String, Value> {
        let outcome = world.state().outcome().into_iter();
        outcome.filter(|(name, _)| !name.starts_with("pods/")).collect()
    };
    let labels = world.state().get("pods", "demo-1").unwrap()["metadata"]["labels"].clone();
    assert_eq!((&labels[APP_LABEL], &labels[INSTANCE_LABEL]), (&json!("kvcluster"), &json!("demo")));
    let (undone, expected) = (without_pods(&world), without_pods(&settled(SMALLEST).await));
    assert_same(&undone, &expected, "edits");
}

#[tokio::test]
async fn whatever_write_fails_a_pod_monitor_comes_and_goes() {
    let world = breaks_nothing(Start::PodMonitorOn).await;
    assert_eq!(world.state().of_kind("podmonitors").len(), 1);
    let world = breaks_nothing(Start::PodMonitorOff).await;
    assert_eq!(world.state().of_kind("podmonitors").len(), 0);
}

/// What apply writes. A part of a plan or a directive that is new does not compile before it is here: then its writes
/// belong into the list below, and into some start above.
const _: fn(Plan, Directive) = |plan, directive| {
    #[rustfmt::skip]
    let Plan {
        ensure: _, remove: _, grow: _, replace_set: _, labels: _, assignment: _, tune: _, directive: _,
        progress: _, leadership: _, image: _, updated: _, memory: _, next: _,
    } = plan;
    match directive {
        Directive::Bootstrap { .. } | Directive::Join { .. } | Directive::Remove { .. } | Directive::Lead { .. } => {}
        Directive::ChangeSettings { .. } | Directive::Recover { .. } | Directive::Restart { .. } => {}
    }
};

#[tokio::test]
async fn every_kind_of_write_is_among_those_that_fail() {
    let mut written = BTreeSet::new();
    for start in Start::ALL {
        let world = start.world().await;
        world.state().written.clear();
        Operator::new(&world).converge().await;
        written.append(&mut world.state().written);
    }
    let applied = Kind::ALL.map(Write::Apply);
    let removed = [Kind::PodDisruptionBudget, Kind::PodMonitor].map(Write::Remove);
    let objects = [Write::Trim, Write::Orphan, Write::Grow, Write::Evict, Write::Assign, Write::Report];
    let labels = [Labelled::Pod, Labelled::Claim].map(Write::Label);
    let group = [Write::Bootstrap, Write::AddLearner, Write::Promote, Write::RemoveMember, Write::Lead];
    let others = [Write::ChangeSettings, Write::Recover, Write::Tune, Write::ConfigureCompaction];
    let all = applied.into_iter().chain(removed).chain(objects).chain(labels).chain(group).chain(others);
    assert_eq!(written, all.collect());
}
