//! One node: its volume, its clocks and, while it runs, its process: the real replica over the real log.
//! Around them stands, as thin as it can be, what the driver of `kv-node` does with threads and tasks: a
//! queue of what has happened, a log that works off operations one batch at a time, reads and snapshots
//! on the side. Nothing here waits: each piece of work is an event of the world.
//!
//! ```text
//!  packets, requests, results ──▶ inbox ──▶ round: step … step, take_effects ──▶ effects
//!                                                                                │
//!  Persisted, Installed ◀── log: gather, Wal::persist on the SimDisk ◀── ops ◀───┘
//! ```

mod compaction;
mod effects;
mod log;
mod reading;
mod scrubbing;
mod snapshots;
mod start;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kv_core::Replica;
use kv_core::contract::{Input, Now, Persist, Token, View};
use kv_core::entry::EntryId;
use kv_core::group::{MemberId, MemberInfo, NodeName};
use kv_core::message::Message;
use kv_node::driver::{BootOptions, Fetches};
use kv_node::wal::{LogReader, Wal};

use self::compaction::Compaction;
use self::scrubbing::Rot;
pub(crate) use self::snapshots::Transfers;
use super::clock::Clock;
use super::disk::SimDisk;
use super::network::{ConnectionId, End};
use super::watch::Ledger;
use super::world::Waiter;

/// A process: the node and the number of the start. Whatever is meant for an earlier start is void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) node: usize,
    pub(crate) start: u64,
}

pub(crate) struct Node {
    pub(crate) name: NodeName,
    pub(crate) volume: Volume,
    pub(crate) clock: Clock,
    /// Stopped, and continued at this time.
    pub(crate) paused_until_us: u64,
    /// Everything that its disk does takes this much longer.
    pub(crate) disk_delay_us: u64,
    pub(crate) process: Option<Process>,
}

/// A disk and what is known of what it must hold.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) disk: SimDisk,
    pub(crate) ledger: Ledger,
}

/// What waits for the driver.
#[derive(Debug)]
pub(crate) enum Happening {
    Step(Input),
    /// As the transport hands it on.
    Received {
        from: End,
        message: Message,
    },
    /// A snapshot was received whole.
    SnapshotStaged(Input),
    /// A snapshot has replaced the log.
    Installed(Input),
    /// From here on the replica knows how far the peer is, and compaction need not wait.
    SnapshotSent {
        input: Input,
        floor: EntryId,
    },
    /// The log has failed.
    Failed(String),
    /// A compaction asks what is applied.
    Settle,
}

pub(crate) struct Process {
    pub(crate) place: Place,
    pub(crate) replica: Replica,
    pub(crate) wal: Wal<SimDisk>,
    pub(crate) reader: LogReader<SimDisk>,
    pub(crate) boot: BootOptions,
    pub(crate) member: MemberId,
    pub(crate) inbox: VecDeque<Happening>,
    /// When the next round is due; later ones are not scheduled.
    pub(crate) round_at_us: Option<u64>,
    pub(crate) ops: VecDeque<(u64, Persist)>,
    /// An operation that found no room and is tried again.
    pub(crate) unfinished: Option<(u64, Persist)>,
    pub(crate) log_is_busy: bool,
    pub(crate) is_full: bool,
    pub(crate) fetches: Fetches,
    pub(crate) compaction: Compaction,
    /// A sealed file is damaged since the start.
    pub(crate) rot: Option<Box<Rot>>,
    /// One was: what was begun on it fails later.
    pub(crate) has_rotted: bool,
    pub(crate) view: View,
    pub(crate) waiting: BTreeMap<Token, Waiter>,
    /// Linearizable reads that wait until this is applied here.
    pub(crate) reads: Vec<(EntryId, Waiter)>,
    pub(crate) peers: Vec<MemberInfo>,
    pub(crate) connections: BTreeMap<MemberId, ConnectionId>,
    /// Dials that are scheduled.
    pub(crate) dialing: BTreeSet<MemberId>,
    /// Connections that ended and of which the replica was not told yet.
    pub(crate) lost: BTreeSet<MemberId>,
    /// Where snapshots under way end; compaction must not pass them.
    pub(crate) floors: Vec<EntryId>,
    /// A snapshot is on its way here, or is not installed yet: no other is taken.
    pub(crate) is_receiving: bool,
}

impl Node {
    pub(crate) fn now(&self, now_us: u64) -> Now {
        self.clock.now(now_us)
    }
}

impl Process {
    pub(crate) fn applied(&self) -> EntryId {
        self.replica.state().applied()
    }

    /// What compaction may cover.
    pub(crate) fn compaction_limit(&self) -> EntryId {
        self.floors.iter().copied().fold(self.view.compaction_limit, EntryId::min)
    }
}
