//! What is done to the group, one fault after the other, some of them on a slow network: chosen by the
//! dice, carried out, and undone. Panics when the group does not do what it promises to do by itself.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use kv_tests::{Rule, flip_byte, pass, sealed_files, target_of, wait_until};
use serde_json::json;

use crate::dice::Dice;
use crate::group::Group;

/// For what the group must manage by itself, on a loaded machine.
const SECONDS_MAX: u64 = 90;
/// What a full volume has left: below the node's reserve, with room for its log.
const LEFT_BYTES: u64 = 12 << 20;
const BALLAST_STEP_BYTES: usize = 1 << 20;
/// Of a configuration that no run comes to.
const NO_CONFIG_ID: u64 = 1_000_000_000;
/// Entries that a follower may lack and still be counted as caught up under load.
const LAG_ENTRIES_MAX: u64 = 2_000;

/// Every fault, and how often it is chosen.
const FAULTS: [(Fault, usize); 17] = [
    (Fault::KillOne, 14),
    (Fault::KillLeader, 10),
    (Fault::KillSome, 8),
    (Fault::KillAll, 5),
    (Fault::PauseOne, 8),
    (Fault::PauseLeader, 8),
    (Fault::CutOneWay, 8),
    (Fault::Isolate, 10),
    (Fault::Halves, 6),
    (Fault::Stall, 6),
    (Fault::Drops, 6),
    (Fault::Lead, 10),
    (Fault::FullDisk, 8),
    (Fault::Compaction, 8),
    (Fault::Damage, 8),
    (Fault::LostVolume, 8),
    (Fault::Membership, 8),
];
/// What takes a few seconds each.
const QUICK: [Fault; 14] = [
    Fault::KillOne,
    Fault::KillLeader,
    Fault::KillSome,
    Fault::PauseOne,
    Fault::PauseLeader,
    Fault::CutOneWay,
    Fault::Isolate,
    Fault::Halves,
    Fault::Stall,
    Fault::Drops,
    Fault::Lead,
    Fault::FullDisk,
    Fault::Compaction,
    Fault::Damage,
];
/// Of a fault that may come to nothing.
const ATTEMPTS_MAX: usize = 5;
/// Chosen once for each this many others, as it takes longest.
const OTHERS_FOR_A_ROLL: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    KillOne,
    KillLeader,
    KillSome,
    KillAll,
    PauseOne,
    PauseLeader,
    CutOneWay,
    Isolate,
    Halves,
    Stall,
    Drops,
    Lead,
    FullDisk,
    Compaction,
    /// Of a sealed file, at rest.
    Damage,
    LostVolume,
    Membership,
    RollingRestart,
}

/// Which faults a run makes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Plan {
    /// Any, for so long.
    For(Duration),
    /// Each of [`QUICK`] once.
    EachQuick,
}

pub(crate) struct Nemesis<'g> {
    group: &'g mut Group,
    dice: Dice,
    begin: Instant,
    /// How often each was made; one that came to nothing does not count.
    pub(crate) done: BTreeMap<Fault, u32>,
    /// What was not as it should be and did not stop the run.
    pub(crate) wrong: Vec<String>,
}

impl<'g> Nemesis<'g> {
    pub(crate) fn new(group: &'g mut Group, seed: u64) -> Self {
        Self { group, dice: Dice::of(seed, u64::MAX), begin: Instant::now(), done: BTreeMap::new(), wrong: Vec::new() }
    }

    pub(crate) async fn run(&mut self, plan: Plan) {
        match plan {
            Plan::For(length) => {
                while self.begin.elapsed() < length {
                    let fault = self.choose();
                    self.make(fault).await;
                }
            }
            Plan::EachQuick => {
                for fault in QUICK {
                    for _ in 0..ATTEMPTS_MAX {
                        if self.make(fault).await {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// False: it came to nothing.
    async fn make(&mut self, fault: Fault) -> bool {
        let slow = self.dice.percent(30).then(|| self.dice.millis(1..25));
        let slowly = slow.map_or(String::new(), |delay| format!(" over links that delay {delay:?}"));
        println!("{:7.2} s  {fault:?}{slowly}", self.begin.elapsed().as_secs_f64());
        self.set_all(slow.map_or(Rule::Open, Rule::Delay));
        let is_made = self.carry_out(fault).await;
        self.group.network.heal();
        *self.done.entry(fault).or_default() += u32::from(is_made);
        self.last(100..1_500).await;
        is_made
    }

    fn choose(&mut self) -> Fault {
        if self.dice.below(OTHERS_FOR_A_ROLL) == 0 {
            return Fault::RollingRestart;
        }
        let mut at = self.dice.below(FAULTS.iter().map(|(_, weight)| weight).sum());
        for (fault, weight) in FAULTS {
            if at < weight {
                return fault;
            }
            at -= weight;
        }
        unreachable!("below the sum of all weights")
    }

    /// False: it came to nothing.
    async fn carry_out(&mut self, fault: Fault) -> bool {
        let leader = self.group.leader().await;
        let any = self.dice.below(self.size());
        let led = leader.unwrap_or(any);
        match fault {
            Fault::KillOne => self.kill(&[any]).await,
            Fault::KillLeader => self.kill(&[led]).await,
            Fault::KillSome => {
                let some = self.some();
                self.kill(&some).await;
            }
            Fault::KillAll => self.kill(&(0..self.size()).collect::<Vec<_>>()).await,
            Fault::PauseOne => self.pause(any).await,
            Fault::PauseLeader => self.pause(led).await,
            Fault::CutOneWay => self.cut_one_way(led, any).await,
            Fault::Isolate => {
                let victim = *self.dice.pick(&[led, any]);
                self.isolate(victim).await;
            }
            Fault::Halves => self.halves().await,
            Fault::Stall => self.stall(any).await,
            Fault::Drops => self.drops().await,
            Fault::Lead => return self.lead(any).await,
            Fault::FullDisk => self.full_disk().await,
            Fault::Compaction => return self.compaction().await,
            Fault::Damage => return self.damage(any).await,
            Fault::LostVolume => self.lost_volume(any).await,
            Fault::Membership => self.membership().await,
            Fault::RollingRestart => self.rolling_restart().await,
        }
        true
    }

    fn size(&self) -> usize {
        self.group.cluster.nodes.len()
    }

    /// Each with even chances, and at least one.
    fn some(&mut self) -> Vec<usize> {
        let some: Vec<usize> = (0..self.size()).filter(|_| self.dice.percent(50)).collect();
        if some.is_empty() { vec![self.dice.below(self.size())] } else { some }
    }

    async fn last(&mut self, millis: std::ops::Range<usize>) {
        pass(self.dice.millis(millis)).await;
    }

    fn set_all(&self, rule: Rule) {
        let names = self.group.names();
        for from in &names {
            for to in names.iter().filter(|to| *to != from) {
                self.group.network.rule(from, to, rule);
            }
        }
    }

    async fn kill(&mut self, nodes: &[usize]) {
        for node in nodes {
            self.group.kill(*node);
        }
        if self.dice.percent(70) {
            self.last(0..2_500).await;
        }
        for node in nodes {
            self.group.start_again(*node).await;
            if self.dice.percent(30) {
                self.last(0..500).await;
            }
        }
    }

    async fn pause(&mut self, node: usize) {
        self.group.cluster.nodes[node].pause();
        self.last(100..4_000).await;
        self.group.cluster.nodes[node].resume();
    }

    async fn cut_one_way(&mut self, from: usize, other: usize) {
        let to = if other == from { (other + 1) % self.size() } else { other };
        let names = self.group.names();
        self.group.network.rule(&names[from], &names[to], Rule::Cut);
        self.last(300..4_000).await;
    }

    /// Cut off from all others, one way or both.
    async fn isolate(&mut self, node: usize) {
        let names = self.group.names();
        let ways = self.dice.below(3);
        for other in names.iter().filter(|other| **other != names[node]) {
            if ways != 1 {
                self.group.network.rule(&names[node], other, Rule::Cut);
            }
            if ways != 2 {
                self.group.network.rule(other, &names[node], Rule::Cut);
            }
        }
        self.last(300..4_000).await;
    }

    async fn halves(&mut self) {
        let names = self.group.names();
        let one = self.some();
        for (from, to) in (0..names.len()).flat_map(|a| (0..names.len()).map(move |b| (a, b))) {
            if one.contains(&from) != one.contains(&to) {
                self.group.network.rule(&names[from], &names[to], Rule::Cut);
            }
        }
        self.last(300..4_000).await;
    }

    async fn stall(&mut self, node: usize) {
        let names = self.group.names();
        for other in names.iter().filter(|other| **other != names[node]) {
            self.group.network.rule(&names[node], other, Rule::Stall);
            self.group.network.rule(other, &names[node], Rule::Stall);
        }
        self.last(100..3_000).await;
    }

    async fn drops(&mut self) {
        let names = self.group.names();
        for _ in 0..8 {
            let (one, other) = (self.dice.pick(&names), self.dice.pick(&names));
            self.group.network.drop_connections(one, other);
            pass(self.dice.millis(0..200)).await;
        }
    }

    /// By a target that is right, absent, or of another configuration: that one must be refused.
    async fn lead(&mut self, node: usize) -> bool {
        let node = &self.group.cluster.nodes[node];
        let mut body = json!({});
        let is_wrong = self.dice.percent(30);
        if is_wrong || self.dice.percent(60) {
            let Some(status) = node.try_status().await else { return false };
            body = target_of(&status);
        }
        if is_wrong {
            body["if_config_id"] = json!(NO_CONFIG_ID);
        }
        let order = node.request("POST", "/cluster/lead").header("content-type", "application/json");
        let Some(answer) = node.try_request(order.body(body.to_string())).await else { return false };
        if is_wrong && answer.status == 200 {
            self.wrong.push(format!("{} led for a configuration that there is not", node.name()));
        }
        true
    }

    /// By its volume when there is one, else by a limit; sometimes so many that nobody can write.
    async fn full_disk(&mut self) {
        let by_limit = if self.group.volume.is_none() || self.dice.percent(50) { self.some() } else { Vec::new() };
        for node in &by_limit {
            self.set_storage_limit(*node, Some(1_000)).await;
        }
        let ballast =
            self.group.volume.as_ref().filter(|_| by_limit.is_empty()).map(|volume| volume.path().join("ballast"));
        if let Some(ballast) = &ballast {
            fill(ballast);
        }
        self.last(500..3_000).await;
        if let Some(ballast) = &ballast {
            std::fs::remove_file(ballast).expect("it was just written");
        }
        for node in &by_limit {
            self.set_storage_limit(*node, None).await;
        }
    }

    async fn set_storage_limit(&self, node: usize, bytes: Option<u64>) {
        let node = &self.group.cluster.nodes[node];
        let body = json!({"storage_limit": bytes}).to_string();
        node.try_request(node.request("POST", "/settings").header("content-type", "application/json").body(body)).await;
    }

    async fn compaction(&mut self) -> bool {
        let mut compacted = 0;
        for node in self.some() {
            let node = &self.group.cluster.nodes[node];
            let answer = node.try_request(node.request("POST", "/compaction/run?force=true")).await;
            compacted += usize::from(answer.is_some_and(|answer| answer.status == 200));
        }
        compacted > 0
    }

    /// A byte of a sealed file flips, while the node runs or is down. Only in a group that is whole, as for a lost
    /// volume; it puts the file right by itself, if no compaction takes it away first.
    async fn damage(&mut self, node: usize) -> bool {
        self.group.network.heal();
        self.whole().await;
        let is_running = self.dice.percent(60);
        if !is_running {
            self.group.kill(node);
        }
        let dir = self.group.cluster.nodes[node].spec.data_dir.clone();
        let files = sealed_files(&dir);
        let at = self.dice.below(1 << 20) as u64;
        let struck = files.get(self.dice.below(files.len().max(1))).and_then(|(kind, name)| {
            println!("           a byte of {name} ({kind}) of {}", self.group.cluster.nodes[node].name());
            let path = dir.join(name);
            Some((flip_byte(&path, at)?, path))
        });
        if !is_running {
            self.group.start_again(node).await;
        }
        let Some((damaged, path)) = struck else { return false };
        let node = &self.group.cluster.nodes[node];
        wait_until(&format!("{} is repaired", path.display()), SECONDS_MAX, || async {
            let Some(status) = node.try_status().await else { return false };
            status["corruption"]["unrepaired"] == json!([]) && std::fs::read(&path).ok() != Some(damaged.clone())
        })
        .await;
        self.whole().await;
        true
    }

    /// Only in a group that is whole: what is promised holds while a majority of the volumes survives.
    async fn lost_volume(&mut self, node: usize) {
        self.group.network.heal();
        self.whole().await;
        let name = self.group.cluster.nodes[node].name().to_owned();
        let before = eventually("the leader knows the member", || self.group.member(&name)).await["member_id"].clone();
        self.group.kill(node);
        std::fs::remove_dir_all(&self.group.cluster.nodes[node].spec.data_dir).expect("a data directory");
        self.group.start_again(node).await;
        let group = &*self.group;
        wait_until(&format!("{name} is replaced under its name"), SECONDS_MAX, || async {
            let Some(member) = group.member(&name).await else { return false };
            member["member_id"] != before && member["voter"] == true && is_fit(&member)
        })
        .await;
    }

    /// Every voter is up, fit and caught up.
    async fn whole(&self) {
        let group = &*self.group;
        wait_until("the group is whole", SECONDS_MAX, || async {
            for name in group.names() {
                let whole = group.member(&name).await.is_some_and(|member| {
                    member["voter"] == true && is_fit(&member) && member["lag"].as_u64() <= Some(LAG_ENTRIES_MAX)
                });
                if !whole {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// A node comes as learner, becomes a voter, and goes.
    async fn membership(&mut self) {
        self.group.start_spare().await;
        let group = &*self.group;
        let body = eventually("the spare node answers", || group.spare_body("learner")).await;
        let name = body["name"].as_str().expect("a name").to_owned();
        let path = format!("/cluster/members/{}", body["member_id"].as_str().expect("a member id"));
        self.until(&body, false).await;
        let victim = self.dice.percent(40).then(|| self.dice.below(self.size()));
        if let Some(victim) = victim {
            self.group.kill(victim);
        }
        let body = eventually("the spare node answers", || self.group.spare_body("voter")).await;
        self.until(&body, true).await;
        self.last(300..2_000).await;
        if let Some(victim) = victim {
            self.group.start_again(victim).await;
        }
        let group = &*self.group;
        wait_until("the spare node is let go", SECONDS_MAX, || async {
            group.change("DELETE", &path, &json!({})).await;
            group.leader().await.is_some() && group.member(&name).await.is_none_or(|member| member["voter"] != true)
        })
        .await;
        let errors = self.group.end_spare();
        self.wrong.extend(errors);
    }

    /// Asks until the spare node is a member as this body says.
    async fn until(&self, body: &serde_json::Value, voter: bool) {
        let group = &*self.group;
        let name = body["name"].as_str().expect("a name");
        wait_until(&format!("the spare node is a member: {body}"), SECONDS_MAX, || async {
            if group.member(name).await.is_some_and(|member| member["voter"] == voter && is_fit(&member)) {
                return true;
            }
            group.change("POST", "/cluster/members", body).await;
            false
        })
        .await;
    }

    async fn rolling_restart(&mut self) {
        self.group.network.heal();
        for index in 0..self.size() {
            let node = &mut self.group.cluster.nodes[index];
            node.wait_ready().await;
            let exit = node.stop().await;
            self.group.network.close(self.group.cluster.nodes[index].name());
            if !exit.status.success() {
                self.wrong.push(format!("SIGTERM ended {} with {}", self.group.names()[index], exit.status));
            }
            self.group.start_again(index).await;
            self.group.cluster.nodes[index].wait_ready().await;
        }
    }
}

fn is_fit(member: &serde_json::Value) -> bool {
    member["health"] == "healthy" && member["unfit"] == false
}

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, attempt: impl FnMut() -> F) -> T {
    kv_tests::wait_for(what, SECONDS_MAX, attempt).await
}

/// Writes until the volume has little left.
fn fill(ballast: &Path) {
    let mut file = std::fs::File::create(ballast).expect("the volume is ours");
    let step = vec![0; BALLAST_STEP_BYTES];
    while available_bytes(ballast) > LEFT_BYTES {
        file.write_all(&step).expect("there was room");
    }
}

fn available_bytes(path: &Path) -> u64 {
    let volume = rustix::fs::statvfs(path).expect("a mounted volume");
    volume.f_bavail * volume.f_frsize
}
