//! One run: a group, clients, faults; then peace, and the verdict.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kv_core::contract::Failover;
use kv_tests::{Caller, Load, wait_until};

use crate::client::{ATTEMPT_TIMEOUT, Client, Field};
use crate::dice::Dice;
use crate::faults::{Fault, Nemesis, Plan};
use crate::group::{Group, errors};
use crate::verdict;

pub(crate) const CLIENTS: u64 = 8;
/// Writers of keys of their own, whose every write must be answered and found again.
const WRITERS: usize = 2;
/// Longest that a write may take over all its retries, whatever happens.
const PATIENCE: Duration = Duration::from_secs(90);
/// When the faults have ended, so many writes must succeed within this time.
const PROGRESS: (u64, u64) = (200, 60);

/// What a run did and found.
pub(crate) struct Report {
    pub(crate) voters: u16,
    pub(crate) failover: Failover,
    pub(crate) disk: &'static str,
    pub(crate) faults: BTreeMap<Fault, u32>,
    pub(crate) writers_acknowledged: usize,
    pub(crate) wrong: Vec<String>,
}

pub(crate) fn field(group: &Group) -> Field {
    Field {
        caller: Caller::new(group.cluster.site.client().clone(), ATTEMPT_TIMEOUT),
        urls: group.urls(),
        stop: AtomicBool::new(false),
        written: AtomicU64::new(0),
    }
}

pub(crate) async fn start(seed: u64) -> Group {
    let voters = *Dice::of(seed, 1 << 32).pick(&[3, 3, 4, 5]);
    let failover = if seed.is_multiple_of(4) { Failover::Manual } else { Failover::Automatic };
    Group::start(voters, failover).await
}

/// Panics where the group does not get on by itself.
pub(crate) async fn run(mut group: Group, field: Arc<Field>, seed: u64, plan: Plan) -> Report {
    let mut report = Report {
        voters: u16::try_from(group.cluster.nodes.len()).expect("few"),
        failover: group.failover,
        disk: if group.volume.is_some() { "a full tmpfs, and --storage-limit" } else { "--storage-limit alone" },
        faults: BTreeMap::new(),
        writers_acknowledged: 0,
        wrong: Vec::new(),
    };
    let clients: Vec<_> =
        (0..CLIENTS).map(|index| tokio::spawn(Client::new(Arc::clone(&field), index, seed).run())).collect();
    let load = Load::start(&group.cluster.site, &group.cluster.urls(), WRITERS, PATIENCE);
    let mut nemesis = Nemesis::new(&mut group, seed);
    nemesis.run(plan).await;
    report.faults = std::mem::take(&mut nemesis.done);
    report.wrong = std::mem::take(&mut nemesis.wrong);
    group.heal().await;
    let goal = field.written.load(Ordering::Relaxed) + PROGRESS.0;
    wait_until("writes go on in peace", PROGRESS.1, || async { field.written.load(Ordering::Relaxed) >= goal }).await;
    field.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("a client does not panic");
    }
    let written = load.stop().await;
    report.writers_acknowledged = written.acknowledged.len();
    written.nothing_lost();
    in_peace(&mut group, &field, &mut report).await;
    for node in &group.cluster.nodes {
        written.check(node).await;
    }
    stop_all(&mut group, &mut report).await;
    report.wrong.extend(field.caller.take_strange());
    report
}

/// Everybody holds the same, before and after all were killed once more.
async fn in_peace(group: &mut Group, field: &Field, report: &mut Report) {
    let at = group.cluster.settle().await;
    report.wrong.extend(verdict::differences(group).await);
    for node in 0..group.cluster.nodes.len() {
        group.kill(node);
    }
    for node in 0..group.cluster.nodes.len() {
        group.start_again(node).await;
    }
    for node in &mut group.cluster.nodes {
        node.wait_ready().await;
    }
    group.cluster.leader().await;
    group.cluster.settle().await;
    report.wrong.extend(verdict::differences(group).await);
    verdict::read_all(field, at).await;
}

async fn stop_all(group: &mut Group, report: &mut Report) {
    for node in &mut group.cluster.nodes {
        let exit = node.stop().await;
        if !exit.status.success() {
            report.wrong.push(format!("SIGTERM ended {} with {}", node.name(), exit.status));
        }
        report.wrong.extend(errors(node));
    }
    report.wrong.extend(verdict::damage(group));
}
