//! Damage at rest on a running node: found by reads that went wrong, or by the scrub that goes through all
//! sealed files once a day. It is told once, the bad lines are kept, and the file is made again byte for
//! byte: from this node's own bytes, else from lines of the present leader or others; a leader hands over first.
//! What cannot be made again, a snapshot replaces. A task of its own; never blocks the driver.

mod asking;

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kv_core::contract::{Reply, Request};
use kv_core::status::Role;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::handle::Call;
use super::lending::Borrowed;
use super::published::Published;
use crate::metrics::Metrics;
use crate::transport::Transport;
use crate::wal::repair::{Found, Salvaged, keep_bad_lines, rebuild, salvage};
use crate::wal::scrub::{DamagedFile, Scrub, Step, look_at};
use crate::wal::{Damage, FileKind, FileStorage};

/// A gentle load: 345 GB a day.
const SCRUB_BYTES_PER_SECOND: u64 = 4 << 20;
/// Once a day, in whole passes.
const SCRUB_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// While a compaction or a snapshot has the disk, the scrub looks again after this.
const BUSY_WAIT: Duration = Duration::from_secs(1);
/// A repair that did not succeed is tried again, at first after this, at last after the other.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LAST: Duration = Duration::from_secs(60);
/// For handing leadership over, and for hearing of it.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(3);
/// Places described one by one since the start; more are only counted.
const PLACES_MAX: usize = 1000;

/// How often all sealed files are gone through.
#[derive(Debug, Clone, Copy)]
pub struct ScrubSchedule {
    /// From the beginning of one pass to that of the next, the start being one: recovery reads everything.
    pub interval: Duration,
}

impl Default for ScrubSchedule {
    fn default() -> Self {
        Self { interval: SCRUB_INTERVAL }
    }
}

/// What was found since the start, for `/status`, and who waits for its repair.
#[derive(Debug)]
pub(crate) struct AtRest {
    found: Mutex<DamageAtRest>,
    repairs: watch::Sender<()>,
}

/// Damage of sealed files that the running node has found.
#[derive(Debug, Clone, Default)]
pub struct DamageAtRest {
    /// The first ones; `places_total` counts all.
    pub places: Vec<Damage>,
    pub places_total: u64,
    /// Files that are damaged now.
    pub unrepaired: BTreeSet<String>,
}

impl Default for AtRest {
    fn default() -> Self {
        Self { found: Mutex::default(), repairs: watch::Sender::new(()) }
    }
}

impl AtRest {
    pub(crate) fn report(&self) -> DamageAtRest {
        self.lock().clone()
    }

    /// Changes whenever a file is whole again.
    pub(crate) fn repairs(&self) -> watch::Receiver<()> {
        self.repairs.subscribe()
    }

    fn add(&self, damaged: &DamagedFile<File>) {
        let mut found = self.lock();
        found.places_total += damaged.damage.len() as u64;
        let room = PLACES_MAX.saturating_sub(found.places.len());
        found.places.extend(damaged.damage.iter().take(room).cloned());
        found.unrepaired.insert(damaged.listed.name());
    }

    fn repaired(&self, name: &str) {
        self.lock().unrepaired.remove(name);
        self.repairs.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, DamageAtRest> {
        self.found.lock().expect("no code panics while it holds this lock")
    }
}

/// The task's surroundings. `calls` is weak: it is no handle that keeps the node running.
pub(crate) struct Repairs {
    pub(crate) published: Arc<Published>,
    pub(crate) calls: mpsc::WeakSender<Call>,
    pub(crate) transport: Transport,
    pub(crate) lines: mpsc::Receiver<Borrowed>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) schedule: ScrubSchedule,
    pub(crate) stopping: CancellationToken,
}

/// A file under repair.
struct Patient {
    file: Arc<DamagedFile<File>>,
    try_at: Instant,
    wait: Duration,
}

struct Pass {
    scrub: Option<Scrub<FileStorage>>,
    began: Instant,
    next_step: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Repaired,
    /// The log has no such file any more.
    Gone,
    Later,
}

impl Repairs {
    /// Ends soon after `stopping` is cancelled, and then keeps nothing of the log open.
    pub(crate) async fn run(mut self) {
        let now = Instant::now();
        let mut pass = Pass { scrub: None, began: now, next_step: now + self.schedule.interval };
        let mut patients: Vec<Patient> = Vec::new();
        while !self.stopping.is_cancelled() {
            let now = Instant::now();
            if let Some(name) = self.published.reader.take_suspect() {
                if patients.iter().all(|patient| patient.file.listed.name() != name) {
                    let reader = self.published.reader.clone();
                    let looked = blocking(move || look_at(&reader, &name)).await;
                    self.note(looked, &mut patients).await;
                }
            } else if let Some(at) = patients.iter().position(|patient| patient.try_at <= now) {
                let patient = patients.swap_remove(at);
                patients.extend(self.treat(patient).await);
            } else if pass.next_step <= now {
                let found = self.scrub(&mut pass).await;
                self.note(found, &mut patients).await;
            } else {
                let next = patients.iter().map(|patient| patient.try_at).min();
                let next = next.map_or(pass.next_step, |next| next.min(pass.next_step));
                tokio::select! {
                    () = self.stopping.cancelled() => {}
                    () = self.published.reader.suspected() => {}
                    () = sleep_until(next) => {}
                }
            }
        }
    }

    /// One step of the pass, and when the next is due.
    async fn scrub(&self, pass: &mut Pass) -> Option<DamagedFile<File>> {
        if self.published.is_busy() {
            pass.next_step = Instant::now() + BUSY_WAIT;
            return None;
        }
        let reader = self.published.reader.clone();
        let scrub = pass.scrub.take();
        if scrub.is_none() {
            pass.began = Instant::now();
            let committer = self.published.committer.clone();
            if let Err(error) = blocking(move || committer.reassert_names()).await {
                tracing::info!(error, "the names of the log's files could not be looked after");
            }
        }
        let (scrub, step) = blocking(move || {
            let mut scrub = scrub.unwrap_or_else(|| Scrub::new(&reader));
            let step = scrub.step();
            (scrub, step)
        })
        .await;
        pass.scrub = Some(scrub);
        pass.next_step = Instant::now();
        match step {
            Step::Read(bytes) => {
                self.metrics.count_scrubbed(bytes);
                pass.next_step += Duration::from_secs_f64(bytes as f64 / SCRUB_BYTES_PER_SECOND as f64);
                None
            }
            Step::Found(damaged) => Some(damaged),
            Step::Done => {
                pass.scrub = None;
                pass.next_step = pass.next_step.max(pass.began + self.schedule.interval);
                None
            }
        }
    }

    /// Tells of new damage, once, and has it repaired.
    async fn note(&self, found: Option<DamagedFile<File>>, patients: &mut Vec<Patient>) {
        let Some(damaged) = found else { return };
        let is_known = |patient: &Patient| patient.file.listed.listed() == damaged.listed.listed();
        if patients.iter().any(is_known) || !self.is_listed(&damaged).await {
            return; // replaced while it was read
        }
        let name = damaged.listed.name();
        let first = damaged.damage.first().expect("damage has a place");
        tracing::warn!(
            file = name,
            places = damaged.damage.len(),
            offset = first.offset,
            reason = first.reason,
            "a sealed file is damaged: repairing it; the bad lines are in quarantine/"
        );
        self.published.at_rest.add(&damaged);
        let file = Arc::new(damaged);
        let (kept, storage) = (Arc::clone(&file), Arc::clone(self.published.reader.storage()));
        if let Err(error) = blocking(move || keep_bad_lines(&*storage, &kept)).await {
            tracing::warn!(file = name, %error, "the bad lines could not be kept");
        }
        patients.push(Patient { file, try_at: Instant::now(), wait: RETRY_FIRST });
    }

    async fn is_listed(&self, damaged: &DamagedFile<File>) -> bool {
        let (committer, listed) = (self.published.committer.clone(), damaged.listed.listed());
        blocking(move || listed.is_some_and(|listed| committer.lists(listed))).await
    }

    /// None: there is nothing left to repair.
    async fn treat(&mut self, patient: Patient) -> Option<Patient> {
        let Patient { file, wait, .. } = patient;
        let name = file.listed.name();
        match self.repair(&file).await {
            Outcome::Later => {
                let try_at = Instant::now() + wait;
                return Some(Patient { file, try_at, wait: (wait * 2).min(RETRY_LAST) });
            }
            Outcome::Repaired => {
                self.metrics.count_repaired();
                tracing::info!(file = name, "repaired a damaged file: it is as it was sealed");
            }
            Outcome::Gone => tracing::info!(file = name, "a damaged file was replaced"),
        }
        self.published.at_rest.repaired(&name);
        None
    }

    async fn repair(&mut self, file: &Arc<DamagedFile<File>>) -> Outcome {
        if !self.is_listed(file).await {
            return Outcome::Gone;
        }
        let (reader, damaged) = (self.published.reader.clone(), Arc::clone(file));
        let salvaged = Arc::new(blocking(move || salvage(&reader, &damaged.listed)).await);
        if self.put_back(&salvaged, self.own_lines(file, &salvaged)).await {
            return Outcome::Repaired;
        }
        self.step_down().await;
        let leader = self.leader();
        let mut is_answered = file.listed.kind == FileKind::Sessions;
        if !is_answered {
            let mut found = Found::new();
            for member in self.lenders(leader) {
                is_answered |= self.ask(member, &salvaged.holes, &mut found).await && leader == Some(member);
                if self.put_back(&salvaged, found.clone()).await {
                    return Outcome::Repaired;
                }
            }
        }
        if is_answered && let Some(calls) = self.calls.upgrade() {
            let first = file.damage.first().expect("damage has a place");
            let reason = format!("damaged: {}: {}", first.file, first.reason);
            let _stopped = calls.send(Call::Damaged { reason }).await;
        }
        Outcome::Later
    }

    /// Deduplication records are no lines of the log; what this node remembers is what it wrote.
    fn own_lines(&self, file: &DamagedFile<File>, salvaged: &Salvaged<File>) -> Found {
        let mut found = Found::new();
        let Some(last) = salvaged.holes.last().map(|hole| hole.ids.last) else { return found };
        if file.listed.kind == FileKind::Sessions {
            let is_lacked = |id| salvaged.holes.iter().any(|hole| hole.ids.first <= id && id <= hole.ids.last);
            self.published.state().sessions.for_each_up_to(last, &mut |record| {
                if is_lacked(record.id) {
                    found.insert(record.id, record.encode().into());
                }
            });
        }
        found
    }

    /// Whether the file is as it was sealed, and in its place.
    async fn put_back(&self, salvaged: &Arc<Salvaged<File>>, found: Found) -> bool {
        let (reader, committer) = (self.published.reader.clone(), self.published.committer.clone());
        let salvaged = Arc::clone(salvaged);
        let put_back = blocking(move || match rebuild(&reader, &salvaged, &found) {
            Ok(Some(file)) => committer.swap_repaired(file).map(|()| true),
            Ok(None) => Ok(false),
            Err(error) => Err(error.to_string()),
        });
        let put_back = put_back.await;
        put_back.unwrap_or_else(|error| {
            tracing::info!(error, "a damaged file could not be replaced: tried again");
            false
        })
    }

    /// Only a leader knows what is right, and one that lacks lines cannot tell itself. Nobody who could take
    /// over: it goes on.
    async fn step_down(&self) {
        if self.published.view().role != Role::Leader {
            return;
        }
        let Some(calls) = self.calls.upgrade() else { return };
        let (reply, answer) = oneshot::channel();
        if calls.send(Call::Replica { request: Request::StepDown, reply }).await.is_err() {
            return;
        }
        drop(calls);
        if let Ok(Ok(Reply::Done { .. })) = timeout(HAND_OVER_PATIENCE, answer).await {
            let mut changes = self.published.view_changes();
            let follows = async {
                while self.published.view().role != Role::Leader && self.published.view().leader.is_none() {
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
            };
            let _elapsed = timeout(HAND_OVER_PATIENCE, follows).await;
        }
    }
}

/// Runs on a thread that may block; not cancelled by the node's end.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the work does not panic")
}
