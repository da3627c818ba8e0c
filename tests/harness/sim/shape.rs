//! What kind of a world a seed makes: how large, how fast, how tight its limits.

use kv_core::contract::Limits;
use kv_core::group::Settings;

use crate::random::Random;

/// Of what there is more than usual in a tight world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Emphasis {
    Nothing,
    /// Bad weather from the beginning, and leadership that is moved all the time: what is late meets later epochs.
    Storms,
    /// Slow disks, and leaders that are cut off: what is not synced yet meets the log of a successor.
    Disks,
    /// Volumes that are lost, damaged, put back and started twice.
    Volumes,
}

#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    /// Of the group's beginning.
    pub(crate) voters: usize,
    pub(crate) is_manual: bool,
    pub(crate) clients: usize,
    /// The administrator has the group for himself this long.
    pub(crate) clients_wait_us: u64,
    pub(crate) emphasis: Emphasis,
    pub(crate) keys: u64,
    pub(crate) heartbeat_ms: u64,
    pub(crate) timeout_ms: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) cache_bytes: usize,
    pub(crate) window_entries: usize,
    pub(crate) down_us_max: u64,
    /// The memory for requests is short, and is changed.
    pub(crate) forgets_requests: bool,
    pub(crate) settings: Settings,
    /// The majority is lost for good, and a survivor recovered, from then on. None: never.
    pub(crate) majority_lasts_us: Option<u64>,
    /// Nodes are tuned while they run.
    pub(crate) is_tuned: bool,
    /// Bits flip under processes that run.
    pub(crate) rots: bool,
    /// Copies of volumes run beside their originals.
    pub(crate) copies: bool,
}

/// Draws of their own, so that seeds without these go the way that they go without them.
const ASIDE: u64 = 0x7e57_a51d_e000_1651;

impl Shape {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let voters = random.pick(&[1, 2, 3, 3, 3, 3, 3, 4, 5]).expect("not empty");
        let heartbeat_ms = random.pick(&[50, 100, 100, 200]).expect("not empty");
        let small = random.percent(50);
        let forgets_requests = random.percent(50);
        let mut aside = Random::new(random.clone().draw() ^ ASIDE);
        let loses_majority = voters > 1 && aside.percent(30);
        let shape = Self {
            nodes: (voters + 2).clamp(4, 6),
            voters,
            is_manual: random.percent(20),
            clients: random.pick(&[1, 2, 3, 5]).expect("not empty"),
            clients_wait_us: 0,
            emphasis: Emphasis::Nothing,
            keys: random.between(1, 8),
            heartbeat_ms,
            timeout_ms: heartbeat_ms * random.between(4, 8),
            segment_bytes: random.pick(&[300, 900, 2_500]).expect("not empty"),
            cache_bytes: if random.percent(50) { 600 } else { 1 << 20 },
            window_entries: Limits::default().window_entries_max,
            down_us_max: if random.percent(50) { 400_000 } else { 3_000_000 },
            forgets_requests,
            settings: Settings {
                history_limit: if small { 2 } else { 20 },
                dedup_expiry_seconds: if forgets_requests { random.between(1, 30) } else { 1_000_000 },
                dedup_limit: if forgets_requests { random.pick(&[5, 60]).expect("two") } else { 100_000 },
            },
            majority_lasts_us: loses_majority.then(|| aside.between(200_000, 4_000_000)),
            is_tuned: aside.percent(30),
            rots: aside.percent(30),
            copies: false,
        };
        if aside.percent(30) { shape.with_copies(&mut aside) } else { shape }
    }

    /// Mostly of an even number of voters, where anything may happen to them; one of the voters is not needed.
    fn with_copies(self, aside: &mut Random) -> Self {
        let voters = aside.pick(&[3, 4, 4, 4, 5]).expect("not empty");
        Self { copies: true, voters, nodes: (voters + 2).clamp(4, 6), majority_lasts_us: None, ..self }
    }
}
