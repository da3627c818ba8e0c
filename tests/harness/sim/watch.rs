//! What must hold, whatever happens, after every step:
//!
//! - one leader an epoch, one vote an epoch, and a leader has all that was committed;
//! - an id and an epoch name one line, and the lines before it;
//! - what is applied anywhere is on a majority's disks, is the same everywhere, and never goes;
//! - an acknowledgement says no more than the disk would hold after a loss of power;
//! - equal applied id, equal state: every replica is compared with a replay of all lines from the first on,
//!   whatever compactions, snapshots and recoveries it went through;
//! - a group that was given up for one that a survivor was recovered to neither elects nor commits any more, and its members
//!   are not believed;
//! - a request takes effect once, an answer is what was decided, a refusal leaves no trace, a read shows
//!   nothing that could vanish and nothing older than what anybody was shown before.
//!
//! The *canon* is the log as it was applied first anywhere, in order. A [`Ledger`] is what one volume holds.

mod acceptance;
mod answers;
mod audit;
mod evidence;
mod groups;
mod ledger;
mod log;
mod rules;
mod standing;
mod tuning;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kv_core::command::{Key, OperationKind, RequestId};
use kv_core::contract::Base;
use kv_core::entry::{EntryId, Epoch};
use kv_core::group::{ClusterId, FEATURE_LEVEL, MemberId, Settings};
use kv_core::quorum::majority;
use kv_core::state_machine::{Outcome, StateMachine};

use super::beside::VolumeId;
use super::node::Place;

use acceptance::Acceptance;
use evidence::Evidence;
use groups::Groups;
pub(crate) use ledger::Ledger;
pub(crate) use rules::Log;
use rules::Rules;
use standing::Standing;
pub(crate) use standing::leads_in;
use tuning::Tuned;

/// What a volume that is gone has acknowledged arrives within this time, and counts.
const GONE_COUNTS_US: u64 = 5_000_000;

/// A majority of these.
pub(crate) fn most(voters: &[MemberId], counts: impl Fn(&MemberId) -> bool) -> bool {
    voters.iter().filter(|voter| counts(voter)).count() >= majority(voters.len())
}

/// A line, with its epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) epoch: Epoch,
    pub(crate) bytes: Bytes,
}

/// What one committed entry did.
#[derive(Debug)]
struct Decided {
    line: Line,
    outcome: Outcome,
    /// Of the state with it.
    digest: u64,
    /// The latest epoch that had a leader when it was seen to be committed.
    known_by: Epoch,
}

/// A request that took effect.
#[derive(Debug)]
struct Effect {
    id: EntryId,
    ts_ms: u64,
    /// Effects with request ids before it.
    number: u64,
}

/// The id and version of a key's value from an id on; None: absent.
type Versions = Vec<(EntryId, Option<(EntryId, u64)>)>;

/// A member of a group, on one volume.
type Voter = (Option<ClusterId>, VolumeId, MemberId);

pub(crate) struct Watch {
    canon: Vec<Decided>,
    oracle: StateMachine,
    keys: BTreeMap<Key, Versions>,
    groups: Groups,
    /// The voters that a line names, by its id and epoch.
    proposed: BTreeMap<(EntryId, Epoch), Vec<MemberId>>,
    /// Of each request, in their order: more than one only when it was forgotten meanwhile.
    effects: BTreeMap<(RequestId, OperationKind), Vec<Effect>>,
    effects_total: u64,
    /// A request took effect again after it was rightly forgotten.
    has_forgotten_requests: bool,
    /// The shortest memory for requests that ever was in force.
    shortest: Settings,
    /// Writes that were answered as having taken no effect.
    without_effect: BTreeSet<u64>,
    /// The line of an id and an epoch, and the epoch of the line before it.
    lines: BTreeMap<(EntryId, Epoch), (Line, Epoch)>,
    /// Processes: a copy of a volume would lead under the same member id.
    leaders: BTreeMap<Epoch, Place>,
    /// For a candidate on one volume.
    votes: BTreeMap<(Voter, Epoch), (MemberId, VolumeId)>,
    /// What a leader has counted as committed, and the epoch of the entry.
    counted: BTreeMap<EntryId, Epoch>,
    /// Who comes in the place of a lost voter, and the epoch in which that one was removed.
    replacing: BTreeMap<MemberId, Epoch>,
    /// Who was the first to apply the beginning of one, until somebody asks.
    replacement_begun_at: Option<Place>,
    applied_here: BTreeMap<Place, EntryId>,
    /// What each start runs on.
    volumes: BTreeMap<u64, VolumeId>,
    rules: Rules,
    acceptance: Acceptance,
    evidence: Evidence,
    standing: Standing,
    tuned: Tuned,
    /// What is gone, and since when.
    graveyard: Vec<(Ledger, u64)>,
    /// The highest id that an answer has shown.
    floor: EntryId,
    rounds: u64,
    operations: u64,
    compactions: u64,
}

impl Watch {
    pub(crate) fn new(settings: Settings, seed: u64) -> Self {
        let base = Base { settings, feature_level: FEATURE_LEVEL, ..Base::default() };
        Self {
            canon: Vec::new(),
            oracle: StateMachine::new(&base, 0),
            keys: BTreeMap::new(),
            groups: Groups::default(),
            proposed: BTreeMap::new(),
            effects: BTreeMap::new(),
            effects_total: 0,
            has_forgotten_requests: false,
            shortest: settings,
            without_effect: BTreeSet::new(),
            lines: BTreeMap::new(),
            leaders: BTreeMap::new(),
            votes: BTreeMap::new(),
            counted: BTreeMap::new(),
            replacing: BTreeMap::new(),
            replacement_begun_at: None,
            applied_here: BTreeMap::new(),
            volumes: BTreeMap::new(),
            rules: Rules::default(),
            acceptance: Acceptance::default(),
            evidence: Evidence::default(),
            standing: Standing::default(),
            tuned: Tuned::default(),
            graveyard: Vec::new(),
            floor: EntryId::ZERO,
            rounds: 0,
            operations: seed, // by which the first audit comes sooner or later
            compactions: 0,
        }
    }

    /// The highest id that was applied anywhere.
    pub(crate) fn committed(&self) -> u64 {
        self.canon.len() as u64
    }

    pub(crate) fn floor(&self) -> EntryId {
        self.floor
    }

    pub(crate) fn has_forgotten_requests(&self) -> bool {
        self.has_forgotten_requests
    }

    pub(crate) fn bury(&mut self, ledger: Ledger, now_us: u64) {
        self.graveyard.retain(|(_, since_us)| now_us - since_us < GONE_COUNTS_US);
        self.graveyard.push((ledger, now_us));
    }

    pub(crate) fn take_replacement_begun_at(&mut self, place: Place) -> bool {
        self.replacement_begun_at.take_if(|at| *at == place).is_some()
    }

    pub(crate) fn took_no_effect(&mut self, call: u64) {
        self.without_effect.insert(call);
    }

    fn decided(&self, id: EntryId) -> Option<&Decided> {
        let index = usize::try_from(id.0.checked_sub(1)?).expect("fits in memory");
        self.canon.get(index)
    }

    pub(crate) fn line(&self, id: EntryId) -> Option<&Line> {
        self.decided(id).map(|decided| &decided.line)
    }
}
