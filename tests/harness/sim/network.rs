//! Connections between processes and what travels on them: late, lost, twice, overtaking, one way only,
//! and broken off. Keeps who is connected with whom as the transport of a node does: one connection for a
//! pair of members, a new process takes the place of an old one. Never looks into a message.

use std::collections::{BTreeMap, BTreeSet};

use kv_core::group::MemberId;
use kv_core::message::Message;

use super::node::Place;
use crate::random::Random;

/// How messages travel for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    /// In order, within a millisecond.
    Calm,
    /// In order, and slow.
    Slow,
    /// Late by up to a quarter of a second, sometimes lost or twice, in any order.
    Chaos,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnectionId(pub(crate) u64);

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) place: Place,
    pub(crate) member: MemberId,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) ends: [End; 2],
    pub(crate) opened_us: u64,
    /// When the last message to each end arrives.
    last_arrival_us: [u64; 2],
}

/// A message on its way to one end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) connection: ConnectionId,
    pub(crate) from: End,
    pub(crate) to: End,
    pub(crate) message: Message,
}

/// What becomes of a message.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    pub(crate) arrivals_us: Vec<u64>,
    pub(crate) overtakes: bool,
}

#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) weather: Weather,
    /// How much later a message that comes twice comes again; 0: as late as any.
    pub(crate) echo_us_max: u64,
    /// Of a hundred messages in chaos.
    pub(crate) twice_percent: u64,
    connections: BTreeMap<ConnectionId, Connection>,
    next: u64,
    /// `(from, to)` of nodes between which nothing passes in that direction.
    cut: BTreeSet<(usize, usize)>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            weather: Weather::Calm,
            echo_us_max: 0,
            twice_percent: 6,
            connections: BTreeMap::new(),
            next: 1,
            cut: BTreeSet::new(),
        }
    }
}

impl Network {
    pub(crate) fn open(&mut self, now_us: u64, ends: [End; 2]) -> ConnectionId {
        let id = ConnectionId(self.next);
        self.next += 1;
        self.connections.insert(id, Connection { ends, opened_us: now_us, last_arrival_us: [0; 2] });
        id
    }

    pub(crate) fn close(&mut self, id: ConnectionId) -> Option<Connection> {
        self.connections.remove(&id)
    }

    pub(crate) fn is_open(&self, id: ConnectionId) -> bool {
        self.connections.contains_key(&id)
    }

    pub(crate) fn get(&self, id: ConnectionId) -> Option<&Connection> {
        self.connections.get(&id)
    }

    pub(crate) fn ids(&self) -> Vec<ConnectionId> {
        self.connections.keys().copied().collect()
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut.contains(&(from, to))
    }

    /// Whether a conversation is possible.
    pub(crate) fn passes(&self, a: usize, b: usize) -> bool {
        !self.is_cut(a, b) && !self.is_cut(b, a)
    }

    pub(crate) fn delay_us(&self, random: &mut Random) -> u64 {
        match self.weather {
            Weather::Calm => random.between(50, 1_000),
            Weather::Slow => random.between(5_000, 60_000),
            Weather::Chaos if random.percent(30) => random.below(250_000),
            Weather::Chaos => random.between(50, 4_000),
        }
    }

    /// Decides on a message from an end of an open connection.
    pub(crate) fn send(&mut self, now_us: u64, random: &mut Random, id: ConnectionId, to: End) -> Fate {
        let copies = match self.weather {
            Weather::Chaos if random.percent(4) => 0,
            Weather::Chaos if random.percent(self.twice_percent) => 2,
            _ => 1,
        };
        let mut fate = Fate::default();
        for copy in 0..copies {
            if copy > 0 && self.echo_us_max > 0 {
                fate.arrivals_us.push(now_us + random.below(self.echo_us_max));
                continue;
            }
            let arrival_us = now_us + self.delay_us(random);
            let Some(connection) = self.connections.get_mut(&id) else { return fate };
            let last_us = &mut connection.last_arrival_us[usize::from(connection.ends[1] == to)];
            let in_order_us = if self.weather == Weather::Chaos { arrival_us } else { arrival_us.max(*last_us) };
            fate.overtakes |= in_order_us < *last_us;
            *last_us = in_order_us.max(*last_us);
            fate.arrivals_us.push(in_order_us);
        }
        fate
    }
}

impl Connection {
    /// The other end, seen from a process.
    pub(crate) fn other(&self, place: Place) -> End {
        if self.ends[0].place == place { self.ends[1] } else { self.ends[0] }
    }
}
