//! The world: nodes, a network, clients, an administrator and trouble, moved by one queue of events in
//! the order of their time. Nothing happens but by an event, and every event is drawn from one seed.

use std::collections::BTreeMap;
use std::fmt::Arguments;

use kv_core::contract::{Reply, Token};
use kv_core::group::{MemberId, NodeName};
use kv_node::driver::Fetch;

use super::admin::{Admin, Order};
use super::beside::Beside;
use super::clients::{Clients, Delivery};
use super::clock::Clock;
use super::coverage::Coverage;
use super::disk::SimDisk;
use super::faults::Faults;
use super::lost_majority::LostMajority;
use super::network::{Network, Packet};
use super::node::{Happening, Node, Place, Process, Transfers, Volume};
use super::shape::{Emphasis, Shape};
use super::trace::Trace;
use super::watch::{Ledger, Watch};
use super::{Options, Profile};
use crate::random::Random;

/// Names of the nodes; as many as a shape wants are used.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "twin"];

/// A message that comes twice comes again within this time.
const ECHO_US_MAX: u64 = 3_000_000;

/// Most disks are fast, and some take this long for everything.
const DISK_DELAYS_US: [u64; 4] = [0, 0, 5_000, 100_000];

/// What happens at its time.
#[derive(Debug)]
pub(crate) enum Event {
    Start(usize),
    Round(Place),
    Inbox(Place, Happening),
    Log(Place),
    Fetch(Place, Fetch),
    FinishCompaction(Place),
    Dial(Place, MemberId),
    Packet(Box<Packet>),
    Piece(u64),
    Call(Delivery),
    Answer(Delivery, super::clients::Answer),
    CallTimeout(u64, u64),
    Client(usize),
    Admin,
    /// Who was cut off is reached again, and everybody else; its disk is fast again.
    Rejoin(usize),
    /// The administrator asks for one more voter.
    Promote(usize),
    Fault,
    /// A node is to lose its volume, if the promise allows it by then.
    Lose(usize),
    /// A leader falls.
    Fall(usize),
    /// All sealed files of a node are gone through.
    Scrub(Place),
    /// A copy is to run beside its original; how often that was tried.
    StartCopy(u64),
    StopCopy(u64),
    /// A process has done its last, and is started again.
    End(Place),
    /// A process finds damage that it cannot mend.
    FindDamage {
        index: usize,
        tries: u64,
    },
    /// A node whose running process has found damage is to fall.
    Worsen(usize),
    PutBack {
        index: usize,
        tries: u64,
    },
}

/// Who waits for a reply of a replica.
#[derive(Debug, Clone)]
pub(crate) enum Waiter {
    Call(Delivery),
    Admin(Order),
}

impl Waiter {
    pub(crate) fn changes_voters(&self) -> bool {
        matches!(self, Self::Admin(order) if order.changes_voters())
    }
}

pub(crate) struct World {
    pub(crate) profile: Profile,
    pub(crate) shape: Shape,
    pub(crate) now_us: u64,
    pub(crate) random: Random,
    queue: BTreeMap<(u64, u64), Event>,
    number: u64,
    pub(crate) starts: u64,
    pub(crate) steps: u64,
    pub(crate) disk_calls: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Network,
    pub(crate) transfers: Transfers,
    pub(crate) clients: Clients,
    pub(crate) admin: Admin,
    pub(crate) faults: Faults,
    pub(crate) lost_majority: LostMajority,
    pub(crate) beside: Beside,
    pub(crate) watch: Watch,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Trace,
}

impl World {
    pub(crate) fn new(seed: u64, options: &Options) -> Self {
        let Options { steps: _, tells, profile } = *options;
        let mut random = Random::new(seed);
        let mut shape = Shape::draw(&mut random);
        let mut disk_delays_us: &[u64] = &[0];
        let mut network = Network::default();
        if profile == Profile::Tight {
            shape.window_entries = random.pick(&[1, 3, shape.window_entries]).expect("not empty");
            shape.clients_wait_us = random.pick(&[0, 0, 2_000_000]).expect("not empty");
            shape.emphasis =
                random.pick(&[Emphasis::Storms, Emphasis::Disks, Emphasis::Volumes, Emphasis::Volumes]).expect("some");
            match shape.emphasis {
                Emphasis::Storms => (network.echo_us_max, network.twice_percent) = (ECHO_US_MAX, 30),
                Emphasis::Disks => disk_delays_us = &DISK_DELAYS_US,
                Emphasis::Volumes | Emphasis::Nothing => {}
            }
        }
        let nodes = NAMES[..shape.nodes].iter().map(|name| {
            let volume = Volume { disk: SimDisk::new(random.draw()), ledger: Ledger::default() };
            Node {
                name: NodeName::new(name).expect("a letter is a name"),
                volume,
                clock: Clock::new(random.between(950, 1050)),
                paused_until_us: 0,
                disk_delay_us: if disk_delays_us.len() > 1 { random.pick(disk_delays_us).expect("some") } else { 0 },
                process: None,
            }
        });
        let nodes = nodes.collect();
        Self {
            profile,
            watch: Watch::new(shape.settings, seed),
            clients: Clients::new(shape.clients),
            admin: Admin::default(),
            faults: Faults::default(),
            lost_majority: LostMajority::default(),
            beside: Beside::default(),
            shape,
            now_us: 0,
            random,
            queue: BTreeMap::new(),
            number: 0,
            starts: 0,
            steps: 0,
            disk_calls: 0,
            nodes,
            network,
            transfers: Transfers::new(),
            coverage: Coverage::default(),
            trace: Trace::new(tells),
        }
    }

    pub(crate) fn at(&mut self, at_us: u64, event: Event) {
        let number = self.next_number();
        self.queue.insert((at_us.max(self.now_us), number), event);
    }

    pub(crate) fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// Steps so far: of replicas, and calls to disks.
    pub(crate) fn steps(&self) -> u64 {
        self.steps + self.disk_calls
    }

    pub(crate) fn process(&mut self, place: Place) -> Option<&mut Process> {
        self.nodes[place.node].process.as_mut().filter(|process| process.place == place)
    }

    pub(crate) fn tell(&self, node: usize, what: Arguments<'_>) {
        self.trace.tell(self.now_us, self.nodes[node].name.as_str(), what);
    }

    /// Runs until the time has come, or, before that, `enough`.
    pub(crate) fn run_until(&mut self, until_us: u64, enough: impl Fn(&Self) -> bool) {
        while !enough(self) {
            let Some((&(at_us, number), _)) = self.queue.first_key_value() else { return };
            if at_us > until_us {
                self.now_us = until_us;
                return;
            }
            let event = self.queue.remove(&(at_us, number)).expect("it is the first");
            self.now_us = at_us;
            self.trace.number(at_us);
            self.happen(event);
        }
    }

    fn happen(&mut self, event: Event) {
        if let Some((place, until_us)) = self.paused(&event) {
            self.trace.number(place.start);
            return self.at(until_us, event);
        }
        match event {
            Event::Start(index) => self.start(index),
            Event::Round(place) => self.round(place),
            Event::Inbox(place, happening) => self.arrives(place, happening),
            Event::Log(place) => self.work_log(place),
            Event::Fetch(place, fetch) => self.read_fetch(place, fetch),
            Event::FinishCompaction(place) => self.finish_compaction(place),
            Event::Dial(place, member) => self.dial(place, member),
            Event::Packet(packet) => self.deliver(*packet),
            Event::Piece(number) => self.piece(number),
            Event::Call(delivery) => self.call(delivery),
            Event::Answer(delivery, answer) => self.answered(delivery, answer),
            Event::CallTimeout(call, attempt) => self.timed_out(call, attempt),
            Event::Client(client) => self.client_acts(client),
            Event::Admin => self.administer(),
            Event::Rejoin(index) => self.rejoin(index),
            Event::Promote(index) => self.promote(index),
            Event::Fault => self.fault(),
            Event::Lose(index) => self.lose_volume(index),
            Event::Fall(index) => self.crash(index),
            Event::Scrub(place) => self.scrub(place),
            Event::StartCopy(tries) => self.start_copy(tries),
            Event::StopCopy(number) => self.stop_copy(number),
            Event::End(place) => self.end(place),
            Event::FindDamage { index, tries } => self.find_damage_in_time(index, tries),
            Event::Worsen(index) => self.worsen(index),
            Event::PutBack { index, tries } => self.put_back(index, tries),
        }
    }

    /// A stopped process does nothing; what is due for it waits.
    fn paused(&self, event: &Event) -> Option<(Place, u64)> {
        let place = match event {
            Event::Piece(number) => self.transfers.get(number)?.paused_end(|place| self.is_paused(place.node)),
            Event::Round(place)
            | Event::Inbox(place, _)
            | Event::Log(place)
            | Event::Fetch(place, _)
            | Event::FinishCompaction(place)
            | Event::Scrub(place)
            | Event::Dial(place, _) => *place,
            Event::Packet(packet) => packet.to.place,
            Event::Call(delivery) => Place { node: delivery.node, start: 0 },
            _ => return None,
        };
        self.is_paused(place.node).then(|| (place, self.nodes[place.node].paused_until_us))
    }

    pub(crate) fn replied(&mut self, place: Place, token: Token, reply: Reply) {
        let Some(waiter) = self.process(place).and_then(|process| process.waiting.remove(&token)) else { return };
        self.watch_answered(place, token, &waiter, &reply);
        self.check_directed(place, token, &reply);
        match waiter {
            Waiter::Call(delivery) => self.replied_to_call(place, delivery, reply),
            Waiter::Admin(order) => self.replied_to_admin(place, order, &reply),
        }
    }

    /// Whoever waited for a process that is gone gets no answer.
    pub(crate) fn answer_nobody(&mut self, waiters: impl IntoIterator<Item = Waiter>) {
        for waiter in waiters {
            if let Waiter::Call(delivery) = waiter {
                self.give_answer(delivery, super::clients::Answer::Broken);
            }
        }
    }
}
