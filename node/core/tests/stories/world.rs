//! A small world for stories: replicas, disks that sync at once unless told otherwise, a network that
//! delivers in order unless cut, and a clock that moves when told. What a story prints is notes and
//! replies; `status` prints positions.

#[path = "disk.rs"]
mod disk;
#[path = "network.rs"]
mod network;
#[path = "watch.rs"]
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use disk::{Disk, Held, Staged, base_at, boot, empty_disk, position_of};
use kv_core::Replica;
use kv_core::command::{Change, Command, Entity, Key, OperationKind, Precondition, RequestId, Value};
use kv_core::contract::{
    Base, Boot, Effect, Failover, Input, Now, Persist, Reply, Request, SettingsChange, Target, Token,
};
use kv_core::entry::{Body, Control, Entry, EntryId, Epoch, LogPosition};
use kv_core::group::{ClusterId, FeatureLevel, MemberId, MemberInfo, Settings};
use kv_core::message::{Accepted, Append, Message, Round, VoteKind, VoteReply, VoteRequest};
use network::{Network, Packet, Parcel};
use watch::Watch;

const HEARTBEAT_MS: u64 = 100;
const TIMEOUT_MS: u64 = 1000;
/// A story that does not come to rest has a loop in the protocol.
const STEPS_MAX: usize = 100_000;

#[derive(Default)]
pub(crate) struct World {
    nodes: BTreeMap<String, Node>,
    network: Network,
    cut: BTreeSet<(String, String)>,
    now_ms: u64,
    token: u64,
    starts: u64,
    failover: Option<Failover>,
    /// Entries on the way to one peer, when a story wants few.
    window: Option<usize>,
    /// Nodes that run a release of an older feature level.
    older: BTreeSet<String>,
    /// Which node holds the connection of a member with another node: the last that opened one.
    held_by: BTreeMap<(String, MemberId), String>,
    /// Some: that a snapshot has arrived, its sender learns when a story says so.
    reports: Option<Vec<(String, Input)>>,
    out: String,
    watch: Watch,
}

struct Node {
    disk: Disk,
    replica: Option<Replica>,
    start_id: u64,
    /// Some: the disk holds back what it is given, until it is released.
    held: Option<Held>,
    lead_at_start: bool,
    /// A snapshot that waits to be installed.
    staged: Option<Staged>,
}

impl World {
    pub(crate) fn execute(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["nodes", ref names @ ..] => names.iter().for_each(|name| self.add(name)),
            ["window", entries] => self.window = entries.parse().ok(),
            ["automatic"] => self.failover = Some(Failover::Automatic),
            ["bootstrap", ref names @ ..] => self.bootstrap(names),
            ["lead", name] => self.request(name, Request::Lead { target: None }),
            ["put", name, key, value, ref options @ ..] => self.put(name, key, value, options),
            ["delete", name, key, ref options @ ..] => self.write(name, key, Change::Delete, options),
            ["chaos", seed] => self.network.chaos(seed.parse().ok()),
            ["keep-snapshots"] => self.network.keep_snapshots(),
            ["release-snapshots", n] => self.network.release_snapshots(n.parse().expect("a number")),
            ["keep-reports"] => drop(self.reports.get_or_insert_default()),
            ["release-reports"] => {
                self.reports.take().into_iter().flatten().for_each(|(name, input)| self.step(&name, input));
            }
            ["calm"] => self.network.chaos(None),
            ["read", name] => self.request(name, Request::ReadIndex),
            ["storage-full", name] => self.step(name, Input::Storage { full: true }),
            ["storage-room", name] => self.step(name, Input::Storage { full: false }),
            ["request-status", name, id] => self.request_status(name, id),
            ["lead-if-config", name, id] => self.lead_if(name, id),
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
            ["heal-way", from, to] => drop(self.cut.remove(&(from.into(), to.into()))),
            ["heal"] => self.heal(),
            ["crash", name] => self.crash(name),
            ["crash-after", name, ops, entries] => {
                self.write_some(name, ops.parse().expect("a number"), entries.parse().expect("a number"));
                self.crash(name);
            }
            ["start", name] => self.start(name),
            ["start-as-leader", name] => {
                self.node(name).lead_at_start = true;
                self.start(name);
            }
            ["hold-disk", name] => drop(self.node(name).held.get_or_insert_default()),
            ["release-disk", name] => self.release(name, usize::MAX),
            ["release-some", name, ops] => self.release(name, ops.parse().expect("a number")),
            ["lose-disk", name] => self.lose(name),
            ["compact", name] => self.compact(name),
            ["status"] => self.out += &self.describe(),
            _ => self.upset(&words),
        }
        self.settle();
        std::mem::take(&mut self.out)
    }

    /// What no cluster does by itself: volumes put back, lines that nobody sends, other releases.
    fn upset(&mut self, words: &[&str]) {
        match *words {
            ["copy-disk", from, to] => {
                let disk = self.nodes[from].disk.clone();
                self.bury(to, disk);
            }
            ["save-disk", name, copy] => {
                let disk = self.nodes[name].disk.clone();
                let node = Node { disk, replica: None, start_id: 0, held: None, lead_at_start: false, staged: None };
                self.nodes.insert(copy.into(), node);
            }
            ["lose-base", name] => {
                let disk = self.nodes[name].disk.without_base();
                self.bury(name, disk);
            }
            ["damaged", name] => self.step(name, Input::Damaged { reason: "damaged: a file".into() }),
            ["contradict", to, from, epoch, id] => {
                let append = self.contradiction(to, from, Epoch(epoch.parse().expect("an epoch")), id);
                let from = self.nodes[from].disk.hard.member_id;
                self.step(to, Input::Received { from, message: Message::Append(append) });
            }
            ["reconnect", name] => self.connect(name),
            ["late-acceptance", to, from, incarnation, start] => {
                let from = self.nodes[from].disk.hard.member_id;
                let number = |text: &str| text.parse().expect("a number");
                let (incarnation, start_id) = (number(incarnation), number(start));
                let message = Message::Accepted(Accepted { incarnation, start_id, voters: None });
                self.step(to, Input::Received { from, message });
            }
            ["late-vote", to, from, epoch, start] => {
                let from = self.nodes[from].disk.hard.member_id;
                let number = |text: &str| text.parse().expect("a number");
                let (epoch, start_id) = (Epoch(number(epoch)), number(start));
                let (kind, last) = (VoteKind::Directed, LogPosition::default());
                let message = Message::VoteReply(VoteReply { epoch, kind, granted: true, last, start_id });
                self.step(to, Input::Received { from, message });
            }
            ["older-release", name] => drop(self.older.insert(name.into())),
            ["newer-release", name] => drop(self.older.remove(name)),
            ["older-group", ref names @ ..] => {
                names.iter().for_each(|name| self.node(name).disk.base.feature_level = FeatureLevel(0));
            }
            ["feature-level", name] => self.show_feature_level(name),
            ["caught-up", name] => self.show_caught_up(name),
            ["former-leader", name] => self.show_former_leader(name),
            _ => panic!("no such command: {words:?}"),
        }
    }

    fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.get_mut(name).expect("a node of this story")
    }

    fn now(&self) -> Now {
        Now { mono_ms: self.now_ms, wall_ms: 1_700_000_000_000 + self.now_ms }
    }

    fn add(&mut self, name: &str) {
        let member_id = MemberId(self.nodes.len() as u64 + 1);
        let disk = empty_disk(name, member_id);
        let node = Node { disk, replica: None, start_id: 0, held: None, lead_at_start: false, staged: None };
        self.nodes.insert(name.into(), node);
        self.start(name);
    }

    fn info(&self, name: &str) -> MemberInfo {
        let hard = &self.nodes[name].disk.hard;
        MemberInfo { name: hard.name.clone(), member_id: hard.member_id, peer_url: format!("{name}:9000") }
    }

    fn start(&mut self, name: &str) {
        let now = self.now();
        self.starts += 1;
        let start_id = self.starts;
        let node = self.node(name);
        node.start_id = start_id;
        node.staged = None;
        node.disk.hard.incarnation += 1;
        let lead_at_start = node.lead_at_start;
        let boot = Boot { lead_at_start, ..self.boot(name) };
        self.node(name).replica = Some(Replica::new(boot, now));
        self.watch_started(name);
        self.connect(name);
    }

    fn boot(&self, name: &str) -> Boot {
        let node = &self.nodes[name];
        let mut boot = boot(name, &node.disk, self.failover.unwrap_or(Failover::Manual), node.start_id);
        let window = self.window.unwrap_or(boot.limits.window_entries_max);
        boot.limits.window_entries_max = window;
        boot
    }

    /// Opens connections between `name` and all that it can reach.
    fn connect(&mut self, name: &str) {
        let others: Vec<String> = self.nodes.keys().filter(|other| *other != name).cloned().collect();
        for other in others {
            let cut = self.is_cut(name, &other) || self.is_cut(&other, name);
            let hellos = (self.hello(name), self.hello(&other));
            if let (false, (Some(mine), Some(theirs))) = (cut, hellos)
                && (mine.cluster_id == theirs.cluster_id || mine.cluster_id.is_none() || theirs.cluster_id.is_none())
                && mine.member_id != theirs.member_id
            {
                self.held_by.insert((other.clone(), mine.member_id), name.into());
                self.held_by.insert((name.into(), theirs.member_id), other.clone());
                self.step(name, Input::Connected { hello: theirs });
                self.step(&other, Input::Connected { hello: mine });
            }
        }
    }

    fn hello(&self, name: &str) -> Option<kv_core::message::Hello> {
        let mut hello = self.nodes[name].replica.as_ref().map(Replica::hello)?;
        if self.older.contains(name) {
            hello.feature_level = FeatureLevel(0);
        }
        Some(hello)
    }

    fn running(&self, name: &str) -> &Replica {
        self.nodes[name].replica.as_ref().expect("a running node")
    }

    fn show_feature_level(&mut self, name: &str) {
        let level = self.running(name).status(self.now()).feature_level;
        writeln!(self.out, "{name}: {level:?}").expect("a String takes it");
    }

    fn show_caught_up(&mut self, name: &str) {
        let has = if self.running(name).view(self.now()).caught_up { "has" } else { "has not" };
        writeln!(self.out, "{name} {has} caught up").expect("a String takes it");
    }

    fn show_former_leader(&mut self, name: &str) {
        let silent = self.running(name).view(self.now()).leader_fell_silent;
        let how = if silent { "fell silent" } else { "was heard to the last" };
        writeln!(self.out, "{name}: the leader before {how}").expect("a String takes it");
    }

    /// What no leader ever sends: another entry in the place of one that `to` knows to be committed.
    fn contradiction(&self, to: &str, from: &str, epoch: Epoch, id: &str) -> Append {
        let id = EntryId(id.parse().expect("an id"));
        let prev = position_of(&self.nodes[to].disk, id.prev());
        let leader = self.nodes[from].disk.hard.member_id;
        let entry = Entry::encode(id, epoch, None, Body::Control(Control::Epoch { leader }));
        Append { epoch, round: Round::default(), prev, committed: EntryId::ZERO, entries: vec![entry] }
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        self.cut.contains(&(from.to_owned(), to.to_owned()))
    }

    fn step(&mut self, name: &str, input: Input) {
        let now = self.now();
        if let Some(replica) = self.node(name).replica.as_mut() {
            replica.step(now, input);
            self.watch(name);
        }
    }

    fn request(&mut self, name: &str, request: Request) {
        self.token += 1;
        let token = Token(self.token);
        if matches!(request, Request::ReadIndex) {
            self.watch_read(token);
        }
        self.step(name, Input::Request { token, request });
    }

    fn bootstrap(&mut self, names: &[&str]) {
        let voters: Vec<MemberInfo> = names.iter().map(|name| self.info(name)).collect();
        for name in names {
            let request = Request::Bootstrap {
                target_member_id: None,
                if_config_id: None,
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

    fn request_status(&mut self, name: &str, id: &str) {
        let request = RequestId::new("client", id).expect("legal");
        self.request(name, Request::RequestStatus { request, operation: OperationKind::Set });
    }

    fn lead_if(&mut self, name: &str, config_id: &str) {
        let hard = &self.nodes[name].disk.hard;
        let cluster_id = hard.cluster_id.clone().expect("a member");
        let if_config_id = EntryId(config_id.parse().expect("an id"));
        let target = Some(Target { cluster_id, target_member_id: hard.member_id, if_config_id });
        self.request(name, Request::Lead { target });
    }

    fn advance(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        loop {
            self.settle();
            let due = self.nodes.values().filter_map(|n| n.replica.as_ref()).map(Replica::deadline_ms).min();
            let due = due.into_iter().chain(self.network.next_due_ms()).min();
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
        for packet in self.network.drop_packets(|packet| packet.to == name) {
            if let Parcel::Snapshot { receiver, .. } = packet.parcel {
                self.snapshot_failed(&packet.from, receiver);
            }
        }
        let others: Vec<String> = self.nodes.keys().filter(|other| *other != name).cloned().collect();
        for other in others {
            let refused = !self.is_cut(&other, name);
            self.step(&other, Input::Disconnected { peer: member_id, refused });
        }
    }

    fn lose(&mut self, name: &str) {
        let known = self.nodes.values().map(|node| &node.disk).chain(&self.watch.graveyard);
        let member_id = MemberId(known.map(|disk| disk.hard.member_id.0).max().unwrap_or(0) + 1);
        self.bury(name, empty_disk(name, member_id));
    }

    /// Another volume takes the place of the node's own; nothing of the old one's process is still under way.
    fn bury(&mut self, name: &str, disk: Disk) {
        self.network.drop_packets(|packet| packet.from == name);
        let old = std::mem::replace(&mut self.node(name).disk, disk);
        self.watch.graveyard.push(old);
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

    /// The disk works off this many of the operations that it held back.
    fn release(&mut self, name: &str, ops: usize) {
        let mut held = self.node(name).held.take().unwrap_or_default();
        for _ in 0..ops {
            let Some((seq, op)) = held.pop_front() else { break };
            self.persist(name, seq, op);
        }
        if ops < usize::MAX {
            self.node(name).held = Some(held);
        }
    }

    /// A disk that dies has done some of what it was given, the last of it in part, and told nobody.
    fn write_some(&mut self, name: &str, ops: usize, entries: usize) {
        let Node { disk, held, staged, .. } = self.node(name);
        let mut held = held.take().unwrap_or_default();
        for _ in 0..ops {
            let Some((_, op)) = held.pop_front() else { return };
            disk.write(op, staged);
        }
        if let Some((_, Persist::Append { entries: mut torn, committed })) = held.pop_front() {
            torn.truncate(entries);
            disk.write(Persist::Append { entries: torn, committed }, staged);
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
                self.watch(name);
                quiet &= effects.iter().all(|effect| matches!(effect, Effect::ViewChanged | Effect::Peers(_)));
                effects.into_iter().for_each(|effect| self.carry_out(name, effect));
            }
            if let Some(packet) = self.network.next(now.mono_ms) {
                quiet = false;
                self.deliver(packet);
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

    fn reached_by(&self, from: &str, member: MemberId) -> Option<String> {
        let is_there = |name: &&String| self.nodes.get(*name).is_some_and(|node| node.replica.is_some());
        let held = self.held_by.get(&(from.to_owned(), member)).filter(is_there);
        held.filter(|name| self.nodes[*name].disk.hard.member_id == member).cloned().or_else(|| self.by_member(member))
    }

    /// No other process of its member has taken its place.
    fn holds(&self, name: &str, member: MemberId, at: &str) -> bool {
        let holder = self.held_by.get(&(at.to_owned(), member));
        let runs = |holder: &String| self.nodes.get(holder).is_some_and(|node| node.replica.is_some());
        holder.is_none_or(|holder| holder == name || !runs(holder))
    }

    fn carry_out(&mut self, name: &str, effect: Effect) {
        match effect {
            Effect::Persist { seq, op } => match &mut self.node(name).held {
                Some(held) => held.push_back((seq, op)),
                None => self.persist(name, seq, op),
            },
            Effect::Send { to, mut message } => {
                match &mut message {
                    _ if !self.older.contains(name) => {}
                    Message::Show { hello, .. } => hello.feature_level = FeatureLevel(0),
                    Message::VoteRequest(VoteRequest { start_id, .. })
                    | Message::VoteReply(VoteReply { start_id, .. }) => {
                        *start_id = 0;
                    }
                    _ => {}
                }
                let sender = self.nodes[name].disk.hard.member_id;
                if let Some(to) = self.reached_by(name, to).filter(|to| self.holds(name, sender, to)) {
                    let parcel = Parcel::Message(message);
                    self.network.send(self.now_ms, Packet { from: name.into(), sender, to, parcel });
                }
            }
            Effect::Reply { token, reply } => {
                self.watch_reply(name, token, &reply);
                writeln!(self.out, "{name} answers {}: {}", token.0, answer(&reply)).expect("a String takes it");
            }
            Effect::Note(note) => writeln!(self.out, "{name}: {note:?}").expect("a String takes it"),
            Effect::Stop { reason } => {
                writeln!(self.out, "{name} stops: {reason}").expect("a String takes it");
                self.watch.stops.push(format!("{name}: {reason}"));
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
        let Some(to) = self.by_member(peer) else { return self.snapshot_failed(from, peer) };
        writeln!(self.out, "{from} sends a snapshot at {applied} to {to}").expect("a String takes it");
        let log = log.into_iter().filter(|entry| entry.id <= applied).collect();
        let parcel = Parcel::Snapshot { staged: (base, log), receiver: peer, epoch, position, cluster_id };
        self.network.send(self.now_ms, Packet { from: from.into(), sender, to, parcel });
    }

    fn snapshot_failed(&mut self, from: &str, peer: MemberId) {
        self.step(from, Input::SnapshotSent { peer, result: Err("no connection".into()) });
    }

    fn deliver(&mut self, packet: Packet) {
        let Packet { from, sender, to, parcel } = packet;
        let cut = self.is_cut(&from, &to);
        match parcel {
            Parcel::Message(message) if !cut => self.step(&to, Input::Received { from: sender, message }),
            Parcel::Message(_) => {}
            Parcel::Snapshot { staged, receiver, epoch, position, cluster_id } => {
                let node = self.node(&to);
                let installs = |(_, op): &(u64, Persist)| matches!(op, Persist::Install { .. });
                let busy = node.held.iter().flatten().any(installs);
                if cut || busy || node.replica.is_none() || node.disk.hard.member_id != receiver {
                    return self.snapshot_failed(&from, receiver);
                }
                node.staged = Some(staged);
                self.step(&to, Input::SnapshotStaged { from: sender, epoch, position, cluster_id });
                let sent = Input::SnapshotSent { peer: receiver, result: Ok(position) };
                match &mut self.reports {
                    Some(reports) => reports.push((from, sent)),
                    None => self.step(&from, sent),
                }
            }
        }
    }

    fn persist(&mut self, name: &str, seq: u64, op: Persist) {
        let Node { disk, staged, .. } = self.node(name);
        if disk.write(op, staged) {
            let boot = Box::new(self.boot(name));
            return self.step(name, Input::Installed { boot });
        }
        self.step(name, Input::Persisted { seq });
    }

    pub(crate) fn describe(&self) -> String {
        let mut out = String::new();
        for (name, node) in &self.nodes {
            let line = match &node.replica {
                None => "stopped".to_owned(),
                Some(replica) => {
                    let now = Now { mono_ms: self.now_ms, wall_ms: 0 };
                    let (status, view) = (replica.status(now), replica.view(now));
                    let answers = view.answers_default_reads(now.mono_ms);
                    let members: Vec<&str> =
                        status.members.iter().filter(|m| m.voter).map(|m| m.name.as_str()).collect();
                    format!(
                        "{:?} epoch {} last {} durable {} committed {} applied {} voters {}{}{}{}",
                        status.role,
                        status.epoch,
                        status.last_id,
                        status.durable_id,
                        status.committed_id,
                        status.applied_id,
                        members.join(","),
                        if view.forgotten { " forgotten" } else { "" },
                        if view.serves && !answers { " no default reads" } else { "" },
                        status.quarantined.map_or(String::new(), |reason| format!(" quarantined: {reason}")),
                    )
                }
            };
            writeln!(out, "{name}: {line}").expect("a String takes it");
        }
        out
    }
}

fn answer(reply: &Reply) -> String {
    match reply {
        Reply::Written { written, replay } => {
            let replay = if *replay { " (replay)" } else { "" };
            format!("ok id {} version {}{replay}", written.id, written.version)
        }
        other => format!("{other:?}"),
    }
}
