//! Decides when compaction runs and remembers how it went: one run at a time, on every node by
//! itself. Never reads the log; the [`CompactionJob`] that the driver hands in does the work. HTTP
//! asks it to run, for its status and to change the schedule.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kv_core::status::CompactionSchedule;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::config::bounds::SCHEDULE_SECONDS_MAX;
use crate::metrics::Metrics;

/// Runs remembered for `/compaction/status`.
const HISTORY_MAX: usize = 10;
/// How often it is looked whether there is too little room, or too many files: then compaction does not wait for its turn.
const PRESSED_LOOK: Duration = Duration::from_secs(1);
/// Shortest interval that can be configured, in seconds.
pub const INTERVAL_SECONDS_MIN: u64 = 60;

/// What one run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompactionOutcome {
    pub segments_compacted: u64,
    pub entries_removed: u64,
}

/// One compaction from choosing its horizon to the manifest swap.
pub trait CompactionJob: Send + Sync + 'static {
    /// Blocks; called on a blocking thread, never twice at a time. The error is fit for a client.
    fn run(&self) -> Result<CompactionOutcome, String>;

    /// While there is too little room: a number that rises with what there may be to gain.
    fn pressed_at(&self) -> Option<u64>;
}

/// Whether a run respects the minimum interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    WhenDue,
    Forced,
}

/// The body of `POST /compaction/run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct RunDocument {
    pub status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    pub segments_compacted: u64,
    pub entries_removed: u64,
}

/// The body of `GET /compaction/status`.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct StatusDocument {
    pub enabled: bool,
    pub compaction_interval_seconds: u64,
    pub min_compaction_interval_seconds: u64,
    pub last_compaction: Option<String>,
    pub compaction_running: bool,
    pub compaction_history: Vec<RunRecord>,
}

/// One run in the history; `error` is set when it failed.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct RunRecord {
    pub timestamp: String,
    pub duration_seconds: f64,
    pub segments_compacted: u64,
    pub entries_removed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What `POST /compaction/configure` may change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ScheduleChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    #[serde(rename = "interval", skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<u64>,
    #[serde(rename = "min_interval", skip_serializing_if = "Option::is_none")]
    pub min_interval_seconds: Option<u64>,
}

/// The body of `POST /compaction/configure`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ConfigureDocument {
    pub status: &'static str,
    pub changes: ScheduleChange,
}

/// An interval that no schedule may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be {least} to {SCHEDULE_SECONDS_MAX} seconds")]
pub struct IntervalOutOfRange {
    /// As `/compaction/configure` calls it.
    pub setting: &'static str,
    least: u64,
}

struct State {
    schedule: CompactionSchedule,
    /// End of the last successful run, for the minimum interval.
    last_success: Option<Instant>,
    last_success_text: Option<String>,
    history: VecDeque<RunRecord>,
}

struct Shared {
    job: Arc<dyn CompactionJob>,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// One permit: holding it is running.
    turn: Semaphore,
    schedule_changed: Notify,
}

/// A handle; clones share one schedule and one history.
#[derive(Clone)]
pub struct Compactor(Arc<Shared>);

impl Compactor {
    /// Starts the schedule; its task ends when the runtime does. Needs a Tokio runtime.
    pub fn start(job: Arc<dyn CompactionJob>, schedule: CompactionSchedule, metrics: Arc<Metrics>) -> Self {
        let state = State { schedule, last_success: None, last_success_text: None, history: VecDeque::new() };
        let compactor = Self(Arc::new(Shared {
            job,
            metrics,
            state: Mutex::new(state),
            turn: Semaphore::new(1),
            schedule_changed: Notify::new(),
        }));
        tokio::spawn(follow_schedule(compactor.clone()));
        compactor
    }

    /// Runs now, unless the minimum interval has not passed and it is not forced, or a run is under
    /// way. Cancelling it stops the waiting, not the run.
    pub async fn run(&self, urgency: Urgency) -> RunDocument {
        let compactor = self.clone();
        let run = tokio::spawn(async move { compactor.run_to_end(urgency).await });
        run.await.unwrap_or_else(|e| failed(format!("compaction panicked: {e}")))
    }

    pub fn status(&self) -> StatusDocument {
        let running = self.0.turn.available_permits() == 0;
        let state = self.state();
        StatusDocument {
            enabled: state.schedule.enabled,
            compaction_interval_seconds: state.schedule.interval_seconds,
            min_compaction_interval_seconds: state.schedule.min_interval_seconds,
            last_compaction: state.last_success_text.clone(),
            compaction_running: running,
            compaction_history: state.history.iter().cloned().collect(),
        }
    }

    pub fn schedule(&self) -> CompactionSchedule {
        self.state().schedule
    }

    /// Changes the schedule until the next start; nothing is changed on an error.
    pub fn configure(&self, change: ScheduleChange) -> Result<ConfigureDocument, IntervalOutOfRange> {
        for (setting, seconds, least) in [
            ("interval", change.interval_seconds, INTERVAL_SECONDS_MIN),
            ("min_interval", change.min_interval_seconds, 0),
        ] {
            if seconds.is_some_and(|seconds| !(least..=SCHEDULE_SECONDS_MAX).contains(&seconds)) {
                return Err(IntervalOutOfRange { setting, least });
            }
        }
        let mut state = self.state();
        state.schedule.enabled = change.enabled.unwrap_or(state.schedule.enabled);
        state.schedule.interval_seconds = change.interval_seconds.unwrap_or(state.schedule.interval_seconds);
        let minimum = change.min_interval_seconds.unwrap_or(state.schedule.min_interval_seconds);
        state.schedule.min_interval_seconds = minimum;
        drop(state);
        self.0.schedule_changed.notify_one();
        Ok(ConfigureDocument { status: "success", changes: change })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("nothing panics while it holds the schedule")
    }

    async fn run_to_end(&self, urgency: Urgency) -> RunDocument {
        let Ok(_turn) = self.0.turn.try_acquire() else { return skipped() };
        if urgency == Urgency::WhenDue && !self.minimum_has_passed() {
            return skipped();
        }
        let started = Instant::now();
        let job = Arc::clone(&self.0.job);
        let result = tokio::task::spawn_blocking(move || job.run()).await;
        let result = result.unwrap_or_else(|e| Err(format!("compaction panicked: {e}")));
        self.record(started, &result);
        match result {
            Ok(CompactionOutcome { segments_compacted, entries_removed }) => {
                RunDocument { status: "success", message: None, segments_compacted, entries_removed }
            }
            Err(message) => failed(message),
        }
    }

    fn minimum_has_passed(&self) -> bool {
        let state = self.state();
        let minimum = Duration::from_secs(state.schedule.min_interval_seconds);
        state.last_success.is_none_or(|at| at.elapsed() >= minimum)
    }

    fn record(&self, started: Instant, result: &Result<CompactionOutcome, String>) {
        let timestamp = timestamp(OffsetDateTime::now_utc());
        let outcome = result.as_ref().copied().unwrap_or_default();
        let mut state = self.state();
        if result.is_ok() {
            state.last_success = Some(Instant::now());
            state.last_success_text = Some(timestamp.clone());
        }
        if state.history.len() == HISTORY_MAX {
            state.history.pop_front();
        }
        state.history.push_back(RunRecord {
            timestamp,
            duration_seconds: started.elapsed().as_secs_f64(),
            segments_compacted: outcome.segments_compacted,
            entries_removed: outcome.entries_removed,
            error: result.as_ref().err().cloned(),
        });
        drop(state);
        match result {
            Ok(outcome) => self.0.metrics.observe_compaction(started.elapsed(), outcome.entries_removed),
            Err(_) => self.0.metrics.count_compaction_failure(),
        }
        if let Err(error) = result {
            tracing::warn!(%error, "compaction failed; the log is as it was");
        }
    }
}

fn skipped() -> RunDocument {
    RunDocument { status: "skipped", message: None, segments_compacted: 0, entries_removed: 0 }
}

fn failed(message: String) -> RunDocument {
    RunDocument { status: "error", message: Some(message), segments_compacted: 0, entries_removed: 0 }
}

/// The form of Python's `datetime.isoformat()`: no zone, microseconds.
fn timestamp(at: OffsetDateTime) -> String {
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second, micro) = at.to_hms_micro();
    let month = u8::from(month);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micro:06}")
}

/// Waits out the interval, anew whenever the schedule changes, and runs; sooner while there is too little room, or
/// too many files, and something was written since the last run for that reason.
async fn follow_schedule(compactor: Compactor) {
    let mut run_at = None;
    loop {
        let CompactionSchedule { enabled, interval_seconds, .. } = compactor.state().schedule;
        let changed = compactor.0.schedule_changed.notified();
        if !enabled {
            changed.await;
            continue;
        }
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(Duration::from_secs(interval_seconds.max(1))) => {
                compactor.run(Urgency::WhenDue).await;
            }
            pressed = pressed_beyond(&compactor, run_at) => {
                run_at = Some(pressed);
                compactor.run(Urgency::Forced).await;
            }
        }
    }
}

/// May be cancelled.
async fn pressed_beyond(compactor: &Compactor, run_at: Option<u64>) -> u64 {
    loop {
        tokio::time::sleep(PRESSED_LOOK).await;
        if let Some(pressed) = compactor.0.job.pressed_at().filter(|&at| run_at.is_none_or(|before| at > before)) {
            return pressed;
        }
    }
}

#[cfg(test)]
mod tests;
