//! A small world for stories: replicas, disks that sync at once unless told otherwise, a network that
//! delivers in order unless cut, and a clock that moves when told. What a story prints is notes and
//! replies; `status` prints positions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use kv_core::Replica;
use kv_core::command::{Change, Command, Entity, Key, OperationKind, Precondition, RequestId, Value};
use kv_core::contract::{
    Base, Boot, Effect, Failover, HardState, Input, Limits, Lost, Now, Persist, Quarantine, Reply, Request,
    SettingsChange, Token, Tuning, Written,
};
use kv_core::entry::{Body, Control, Entry, EntryId, Epoch, LogPosition};
use kv_core::group::{ClusterId, ConfigurationAt, MemberId, MemberInfo, NodeName, Settings};
use kv_core::message::{Message, Promise};
use kv_core::state_machine::StateMachine;

const HEARTBEAT_MS: u64 = 100;
const TIMEOUT_MS: u64 = 1000;
/// A story that does not come to rest has a loop in the protocol.
const STEPS_MAX: usize = 100_000;

#[derive(Default)]
pub(crate) struct World {
    nodes: BTreeMap<String, Node>,
    network: VecDeque<(String, String, Message)>,
    cut: BTreeSet<(String, String)>,
    now_ms: u64,
    token: u64,
    failover: Option<Failover>,
    out: String,
    /// Every write that was answered with success.
    acknowledged: Vec<Written>,
}

/// What survives a crash.
#[derive(Clone)]
struct Disk {
    hard: HardState,
    base: Base,
    log: Vec<Entry>,
}

struct Node {
    disk: Disk,
    replica: Option<Replica>,
    starts: u64,
    /// Some: the disk holds back what it is given, until it is released.
    held: Option<VecDeque<(u64, Persist)>>,
    lead_at_start: bool,
    /// A snapshot that waits to be installed.
    staged: Option<(Base, Vec<Entry>)>,
}

impl World {
    pub(crate) fn execute(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["nodes", ref names @ ..] => names.iter().for_each(|name| self.add(name)),
            ["automatic"] => self.failover = Some(Failover::Automatic),
            ["bootstrap", ref names @ ..] => self.bootstrap(names),
            ["lead", name] => self.request(name, Request::Lead { target: None }),
            ["put", name, key, value, ref options @ ..] => self.put(name, key, value, options),
            ["delete", name, key, ref options @ ..] => self.write(name, key, Change::Delete, options),
            ["read", name] => self.request(name, Request::ReadIndex),
            ["learner", name, member] => self.add_member(name, member, false),
            ["voter", name, member] => self.add_member(name, member, true),
            ["remove", name, member] => {
                let member_id = self.nodes[member].disk.hard.member_id;
                self.request(name, Request::RemoveMember { target: None, member_id });
            }
            ["history-limit", name, limit] => {
                let settings = SettingsChange { history_limit: limit.parse().ok(), ..SettingsChange::default() };
                self.request(name, Request::ChangeSettings { target: None, settings });
            }
            ["recover", name, epoch] => {
                let accept_data_loss_at_epoch = Epoch(epoch.parse().expect("an epoch"));
                let new_cluster_id = ClusterId::new("recovered").expect("legal");
                let request = Request::Recover { target: None, accept_data_loss_at_epoch, new_cluster_id };
                self.request(name, request);
            }
            ["hand-over", name] => self.request(name, Request::HandOver),
            ["tick", ms] => self.advance(ms.parse().expect("milliseconds")),
            ["cut", name] => self.cut_off(name),
            ["cut-way", from, to] => drop(self.cut.insert((from.into(), to.into()))),
            ["heal"] => self.heal(),
            ["crash", name] => self.crash(name),
            ["start", name] => self.start(name),
            ["start-as-leader", name] => {
                self.node(name).lead_at_start = true;
                self.start(name);
            }
            ["hold-disk", name] => drop(self.node(name).held.get_or_insert_default()),
            ["release-disk", name] => self.release(name),
            ["copy-disk", from, to] => self.node(to).disk = self.nodes[from].disk.clone(),
            ["save-disk", name, copy] => {
                let disk = self.nodes[name].disk.clone();
                let node = Node { disk, replica: None, starts: 100, held: None, lead_at_start: false, staged: None };
                self.nodes.insert(copy.into(), node);
            }
            ["lose-disk", name] => self.lose(name),
            ["compact", name] => self.compact(name),
            ["status"] => self.status(),
            _ => panic!("no such command: {line}"),
        }
        self.settle();
        std::mem::take(&mut self.out)
    }

    fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.get_mut(name).expect("a node of this story")
    }

    fn now(&self) -> Now {
        Now { mono_ms: self.now_ms, wall_ms: 1_700_000_000_000 + self.now_ms }
    }

    fn add(&mut self, name: &str) {
        let member_id = MemberId(self.nodes.len() as u64 + 1);
        let disk = Disk { hard: empty_state(name, member_id), base: Base::default(), log: Vec::new() };
        let node = Node { disk, replica: None, starts: 0, held: None, lead_at_start: false, staged: None };
        self.nodes.insert(name.into(), node);
        self.start(name);
    }

    fn info(&self, name: &str) -> MemberInfo {
        let hard = &self.nodes[name].disk.hard;
        MemberInfo { name: hard.name.clone(), member_id: hard.member_id, peer_url: format!("{name}:9000") }
    }

    fn start(&mut self, name: &str) {
        let (now, failover) = (self.now(), self.failover.unwrap_or(Failover::Manual));
        let node = self.node(name);
        node.starts += 1;
        node.disk.hard.incarnation += 1;
        let boot = boot(name, &node.disk, failover, node.starts, node.lead_at_start);
        node.replica = Some(Replica::new(boot, now));
        self.connect(name);
    }

    /// Opens connections between `name` and all that it can reach.
    fn connect(&mut self, name: &str) {
        let others: Vec<String> = self.nodes.keys().filter(|other| *other != name).cloned().collect();
        for other in others {
            let cut = self.is_cut(name, &other) || self.is_cut(&other, name);
            let hellos = (self.hello(name), self.hello(&other));
            if let (false, (Some(mine), Some(theirs))) = (cut, hellos)
                && (mine.cluster_id == theirs.cluster_id || mine.cluster_id.is_none() || theirs.cluster_id.is_none())
            {
                self.step(name, Input::Connected { hello: theirs });
                self.step(&other, Input::Connected { hello: mine });
            }
        }
    }

    fn hello(&self, name: &str) -> Option<kv_core::message::Hello> {
        self.nodes[name].replica.as_ref().map(Replica::hello)
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        self.cut.contains(&(from.to_owned(), to.to_owned()))
    }

    fn step(&mut self, name: &str, input: Input) {
        let now = self.now();
        if let Some(replica) = self.node(name).replica.as_mut() {
            replica.step(now, input);
            replica.check_invariants();
        }
    }

    fn request(&mut self, name: &str, request: Request) {
        self.token += 1;
        let token = Token(self.token);
        self.step(name, Input::Request { token, request });
    }

    fn bootstrap(&mut self, names: &[&str]) {
        let voters: Vec<MemberInfo> = names.iter().map(|name| self.info(name)).collect();
        for name in names {
            let request = Request::Bootstrap {
                target_member_id: None,
                cluster_id: ClusterId::new("story").expect("legal"),
                voters: voters.clone(),
                settings: Settings::default(),
            };
            self.request(name, request);
        }
    }

    fn add_member(&mut self, leader: &str, member: &str, voter: bool) {
        let member = self.info(member);
        self.request(leader, Request::AddMember { target: None, member, voter });
    }

    fn put(&mut self, name: &str, key: &str, value: &str, options: &[&str]) {
        let value = Value::from_json(format!("\"{value}\"").as_bytes(), 1000).expect("a value");
        self.write(name, key, Change::Set(value), options);
    }

    fn write(&mut self, name: &str, key: &str, change: Change, options: &[&str]) {
        let mut command = Command {
            key: Key::new(key).expect("a key"),
            change,
            precondition: Precondition::default(),
            request: None,
        };
        for option in options {
            match option.split_once('=').expect("name=value") {
                ("version", n) => command.precondition.version = n.parse().ok(),
                ("if-id", n) => command.precondition.entity = Entity::Is(EntryId(n.parse().expect("an id"))),
                ("request", id) => command.request = RequestId::new("client", id).ok(),
                _ => panic!("no such option: {option}"),
            }
        }
        self.request(name, Request::Write(command));
    }

    fn advance(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        loop {
            self.settle();
            let due = self.nodes.values().filter_map(|n| n.replica.as_ref()).map(Replica::deadline_ms).min();
            let Some(due) = due.filter(|due| *due <= until) else { break };
            self.now_ms = due.max(self.now_ms + 1);
            let names: Vec<String> = self.nodes.keys().cloned().collect();
            names.iter().for_each(|name| self.step(name, Input::Tick));
        }
        self.now_ms = self.now_ms.max(until);
    }

    fn cut_off(&mut self, name: &str) {
        for other in self.nodes.keys().filter(|other| *other != name) {
            self.cut.insert((name.into(), other.clone()));
            self.cut.insert((other.clone(), name.into()));
        }
    }

    fn heal(&mut self) {
        let cut = std::mem::take(&mut self.cut);
        let names: BTreeSet<String> = cut.into_iter().map(|(from, _)| from).collect();
        names.iter().for_each(|name| self.connect(name));
    }

    fn crash(&mut self, name: &str) {
        let node = self.node(name);
        node.replica = None;
        node.held = None;
        let member_id = node.disk.hard.member_id;
        self.network.retain(|(from, to, _)| from != name && to != name);
        let others: Vec<String> = self.nodes.keys().filter(|other| *other != name).cloned().collect();
        for other in others {
            let refused = !self.is_cut(&other, name);
            self.step(&other, Input::Disconnected { peer: member_id, refused });
        }
    }

    fn lose(&mut self, name: &str) {
        let member_id = MemberId(self.nodes.values().map(|n| n.disk.hard.member_id.0).max().unwrap_or(0) + 1);
        let node = self.node(name);
        node.disk = Disk { hard: empty_state(name, member_id), base: Base::default(), log: Vec::new() };
    }

    /// Moves the horizon to the applied id, as compaction does when everything is sealed.
    fn compact(&mut self, name: &str) {
        let node = self.node(name);
        let replica = node.replica.as_ref().expect("a running node");
        let applied = replica.state().applied();
        let settings = replica.state().settings();
        if let Some(entry) = node.disk.log.iter().find(|entry| entry.id == applied) {
            let horizon = entry.position();
            node.disk.base = Base { horizon, settings, ..base_at(&node.disk, applied) };
            self.step(name, Input::Compacted { horizon });
        }
    }

    fn release(&mut self, name: &str) {
        for (seq, op) in self.node(name).held.take().unwrap_or_default() {
            self.persist(name, seq, op);
        }
    }

    /// Carries out effects and delivers messages until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            let now = self.now();
            let names: Vec<String> = self.nodes.keys().cloned().collect();
            let mut quiet = true;
            for name in &names {
                let Some(replica) = self.node(name).replica.as_mut() else { continue };
                let effects = replica.take_effects(now);
                replica.check_invariants();
                quiet &= effects.iter().all(|effect| matches!(effect, Effect::ViewChanged | Effect::Peers(_)));
                effects.into_iter().for_each(|effect| self.carry_out(name, effect));
            }
            if let Some((from, to, message)) = self.network.pop_front() {
                quiet = false;
                if !self.is_cut(&from, &to) {
                    let from = self.nodes[&from].disk.hard.member_id;
                    self.step(&to, Input::Received { from, message });
                }
            }
            if quiet {
                return;
            }
        }
        panic!("the world does not come to rest:\n{}", self.out);
    }

    fn by_member(&self, member: MemberId) -> Option<String> {
        let found = |node: &&Node| node.replica.is_some() && node.disk.hard.member_id == member;
        self.nodes.iter().find(|(_, node)| found(node)).map(|(name, _)| name.clone())
    }

    fn carry_out(&mut self, name: &str, effect: Effect) {
        match effect {
            Effect::Persist { seq, op } => match &mut self.node(name).held {
                Some(held) => held.push_back((seq, op)),
                None => self.persist(name, seq, op),
            },
            Effect::Send { to, message } => {
                if let Some(to) = self.by_member(to) {
                    self.network.push_back((name.into(), to, message));
                }
            }
            Effect::Reply { token, reply } => {
                if let Reply::Written { written, .. } = &reply {
                    self.acknowledged.push(written.clone());
                }
                writeln!(self.out, "{name} answers {}: {}", token.0, describe(&reply)).expect("a String takes it");
            }
            Effect::Note(note) => writeln!(self.out, "{name}: {note:?}").expect("a String takes it"),
            Effect::Stop { reason } => {
                writeln!(self.out, "{name} stops: {reason}").expect("a String takes it");
                self.crash(name);
            }
            Effect::Fetch { peer, from, .. } => {
                let log = &self.nodes[name].disk.log;
                let entries = log.iter().filter(|entry| entry.id >= from).cloned().collect();
                self.step(name, Input::Fetched { peer, from, entries });
            }
            Effect::SendSnapshot { peer, epoch } => self.send_snapshot(name, peer, epoch),
            Effect::Peers(_) | Effect::Redial { .. } | Effect::ViewChanged => {}
        }
    }

    fn send_snapshot(&mut self, from: &str, peer: MemberId, epoch: Epoch) {
        let node = &self.nodes[from];
        let sender = node.disk.hard.member_id;
        let applied = node.replica.as_ref().expect("it sent it").state().applied();
        let position = position_of(&node.disk, applied);
        let cluster_id = node.disk.hard.cluster_id.clone().expect("a leader has a group");
        let (base, log) = (node.disk.base.clone(), node.disk.log.clone());
        let Some(to) = self.by_member(peer) else { return };
        writeln!(self.out, "{from} sends a snapshot at {applied} to {to}").expect("a String takes it");
        let log = log.into_iter().filter(|entry| entry.id <= applied).collect();
        self.node(&to).staged = Some((base, log));
        self.step(&to, Input::SnapshotStaged { from: sender, epoch, position, cluster_id });
        self.step(from, Input::SnapshotSent { peer, result: Ok(position) });
    }

    fn persist(&mut self, name: &str, seq: u64, op: Persist) {
        let failover = self.failover.unwrap_or(Failover::Manual);
        let disk = &mut self.node(name).disk;
        match op {
            Persist::Append { entries, .. } => disk.log.extend(entries),
            Persist::Truncate { keep } => disk.log.retain(|entry| entry.id <= keep),
            Persist::State(hard) => disk.hard = *hard,
            Persist::Found { state, base } => (disk.hard, disk.base) = (*state, *base),
            Persist::Recover { state, configuration } => {
                disk.hard = *state;
                disk.base.configuration = configuration;
            }
            Persist::Install { state, .. } => {
                let node = self.node(name);
                node.disk.hard = *state;
                (node.disk.base, node.disk.log) = node.staged.take().expect("a snapshot was staged");
                let node = &self.nodes[name];
                let boot = Box::new(boot(name, &node.disk, failover, node.starts, false));
                return self.step(name, Input::Installed { boot });
            }
        }
        self.step(name, Input::Persisted { seq });
    }

    /// All running replicas have the same state, and it holds every acknowledged SET.
    #[allow(dead_code, reason = "the fixed stories state what they expect in their output")]
    pub(crate) fn check_agreement(&self, context: &str) {
        let states: Vec<&StateMachine> =
            self.nodes.values().filter_map(|node| node.replica.as_ref()).map(Replica::state).collect();
        for state in &states {
            assert_eq!(state.applied(), states[0].applied(), "not all have caught up; {context}");
            assert_eq!(state.digest(), states[0].digest(), "states differ; {context}");
        }
        for written in &self.acknowledged {
            let later = |w: &&Written| w.key == written.key && w.id > written.id;
            let current = states[0].keyspace().get(written.key.as_str()).found.map(|c| c.id);
            let expected = (written.operation == OperationKind::Set).then_some(written.id);
            // A later write to the key may have taken effect without an answer that anybody got.
            let superseded =
                self.acknowledged.iter().any(|w| later(&w)) || current > expected || self.is_deleted(written);
            assert!(superseded || current == expected, "{written:?} was acknowledged; {context}");
        }
    }

    /// A DELETE that nobody got an answer to may stand in the log.
    fn is_deleted(&self, written: &Written) -> bool {
        let deletes =
            |e: &Entry| matches!(&e.body, Body::Delete { key, .. } if *key == written.key && e.id > written.id);
        self.nodes.values().any(|node| node.disk.log.iter().any(deletes))
    }

    fn status(&mut self) {
        for (name, node) in &self.nodes {
            let line = match &node.replica {
                None => "stopped".to_owned(),
                Some(replica) => {
                    let status = replica.status(Now { mono_ms: self.now_ms, wall_ms: 0 });
                    let members: Vec<&str> =
                        status.members.iter().filter(|m| m.voter).map(|m| m.name.as_str()).collect();
                    format!(
                        "{:?} epoch {} last {} durable {} committed {} applied {} voters {}{}",
                        status.role,
                        status.epoch,
                        status.last_id,
                        status.durable_id,
                        status.committed_id,
                        status.applied_id,
                        members.join(","),
                        status.quarantined.map_or(String::new(), |reason| format!(" quarantined: {reason}")),
                    )
                }
            };
            writeln!(self.out, "{name}: {line}").expect("a String takes it");
        }
    }
}

fn empty_state(name: &str, member_id: MemberId) -> HardState {
    HardState {
        name: NodeName::new(name).expect("a legal name"),
        member_id,
        cluster_id: None,
        promise: Promise::default(),
        incarnation: 0,
        quarantine: None::<Quarantine>,
        seen: BTreeMap::new(),
        committed: EntryId::ZERO,
    }
}

fn position_of(disk: &Disk, id: EntryId) -> LogPosition {
    disk.log.iter().find(|entry| entry.id == id).map_or(disk.base.horizon, Entry::position)
}

/// The base with the configuration in force at `id`.
fn base_at(disk: &Disk, id: EntryId) -> Base {
    let mut base = disk.base.clone();
    for entry in disk.log.iter().filter(|entry| entry.id <= id) {
        if let Body::Control(Control::Config(configuration)) = &entry.body {
            base.configuration = ConfigurationAt { id: entry.id, configuration: configuration.clone() };
        }
    }
    base
}

/// What recovery would find. The disk keeps all lines, so state is replayed from the first.
fn boot(name: &str, disk: &Disk, failover: Failover, start_id: u64, lead_at_start: bool) -> Boot {
    let mut state = StateMachine::new(&Base { horizon: LogPosition::default(), ..disk.base.clone() }, 7);
    let only = disk.base.configuration.configuration.voters.len() == 1;
    let known = if only { EntryId(u64::MAX) } else { disk.hard.committed.max(disk.base.horizon.id) };
    let (applied, tail): (Vec<Entry>, Vec<Entry>) = disk.log.iter().cloned().partition(|entry| entry.id <= known);
    applied.iter().for_each(|entry| drop(state.apply(entry)));
    let above = disk.log.iter().filter(|entry| entry.id > disk.base.horizon.id);
    let mut epoch_runs: Vec<LogPosition> = Vec::new();
    for entry in above.clone() {
        if epoch_runs.last().is_none_or(|run| run.epoch != entry.epoch) {
            epoch_runs.push(entry.position());
        }
    }
    let config = |entry: &Entry| match &entry.body {
        Body::Control(Control::Config(c)) => Some(ConfigurationAt { id: entry.id, configuration: c.clone() }),
        _ => None,
    };
    Boot {
        hard: disk.hard.clone(),
        base: disk.base.clone(),
        start_id,
        url: format!("http://{name}:8000"),
        peer_url: format!("{name}:9000"),
        tuning: Tuning { heartbeat_interval_ms: HEARTBEAT_MS, heartbeat_timeout_ms: TIMEOUT_MS, failover },
        seed: disk.hard.member_id.0,
        state,
        epoch_runs,
        configurations: above.filter_map(config).collect::<Vec<_>>(),
        tail,
        lost: Lost::default(),
        lead_at_start,
        limits: Limits::default(),
    }
}

fn describe(reply: &Reply) -> String {
    match reply {
        Reply::Written { written, replay } => {
            let replay = if *replay { " (replay)" } else { "" };
            format!("ok id {} version {}{replay}", written.id, written.version)
        }
        other => format!("{other:?}"),
    }
}
