//! The schedule, the documents and the one-run-at-a-time rule, with jobs that do nothing.

use std::sync::mpsc;

use super::*;

const SCHEDULE: CompactionSchedule =
    CompactionSchedule { enabled: true, interval_seconds: 3600, min_interval_seconds: 600 };

struct Always(Result<CompactionOutcome, String>);

impl CompactionJob for Always {
    fn run(&self) -> Result<CompactionOutcome, String> {
        self.0.clone()
    }

    fn pressed_at(&self) -> Option<u64> {
        None
    }
}

/// Runs until it is told to end.
struct Held(Mutex<mpsc::Receiver<()>>);

impl CompactionJob for Held {
    fn run(&self) -> Result<CompactionOutcome, String> {
        let told = self.0.lock().expect("one run at a time").recv();
        told.map(|()| CompactionOutcome::default()).map_err(|e| e.to_string())
    }

    fn pressed_at(&self) -> Option<u64> {
        None
    }
}

struct Panics;

impl CompactionJob for Panics {
    fn run(&self) -> Result<CompactionOutcome, String> {
        panic!("as if by a bug")
    }

    fn pressed_at(&self) -> Option<u64> {
        None
    }
}

fn start(result: Result<CompactionOutcome, String>, schedule: CompactionSchedule) -> Compactor {
    Compactor::start(Arc::new(Always(result)), schedule, Arc::default())
}

fn json<T: Serialize>(document: &T) -> String {
    serde_json::to_string(document).expect("documents are JSON")
}

#[tokio::test]
async fn the_documents_are_the_originals() {
    let compactor = start(Ok(CompactionOutcome { segments_compacted: 2, entries_removed: 150 }), SCHEDULE);
    assert_eq!(
        json(&compactor.status()),
        r#"{"enabled":true,"compaction_interval_seconds":3600,"min_compaction_interval_seconds":600,"last_compaction":null,"compaction_running":false,"compaction_history":[]}"#
    );
    let ran = compactor.run(Urgency::WhenDue).await;
    assert_eq!(json(&ran), r#"{"status":"success","segments_compacted":2,"entries_removed":150}"#);
    let status = compactor.status();
    let [record] = &status.compaction_history[..] else { panic!("one run: {status:?}") };
    assert_eq!(status.last_compaction.as_ref(), Some(&record.timestamp));
    let expected = format!(
        r#"{{"timestamp":"{}","duration_seconds":{},"segments_compacted":2,"entries_removed":150}}"#,
        record.timestamp,
        json(&record.duration_seconds)
    );
    assert_eq!(json(record), expected);
}

#[tokio::test]
async fn within_the_minimum_interval_only_force_runs() {
    let compactor = start(Ok(CompactionOutcome::default()), SCHEDULE);
    assert_eq!(compactor.run(Urgency::WhenDue).await.status, "success");
    let skipped = compactor.run(Urgency::WhenDue).await;
    assert_eq!(json(&skipped), r#"{"status":"skipped","segments_compacted":0,"entries_removed":0}"#);
    assert_eq!(compactor.run(Urgency::Forced).await.status, "success");
    assert_eq!(compactor.status().compaction_history.len(), 2);
}

#[tokio::test]
async fn a_failure_is_kept_in_the_history_and_may_be_tried_again_at_once() {
    let compactor = start(Err("crc".into()), SCHEDULE);
    for _ in 0..2 {
        let ran = compactor.run(Urgency::WhenDue).await;
        assert_eq!((ran.status, ran.message.as_deref()), ("error", Some("crc")));
    }
    let status = compactor.status();
    assert_eq!(status.last_compaction, None);
    assert_eq!(status.compaction_history.last().and_then(|r| r.error.as_deref()), Some("crc"));
}

#[tokio::test]
async fn a_panic_fails_the_run_and_not_the_compactor() {
    let compactor = Compactor::start(Arc::new(Panics), SCHEDULE, Arc::default());
    assert_eq!(compactor.run(Urgency::Forced).await.status, "error");
    assert!(!compactor.status().compaction_running);
}

#[tokio::test]
async fn one_run_at_a_time() {
    let (end, ended) = mpsc::channel();
    let compactor = Compactor::start(Arc::new(Held(Mutex::new(ended))), SCHEDULE, Arc::default());
    let first = tokio::spawn({
        let compactor = compactor.clone();
        async move { compactor.run(Urgency::Forced).await }
    });
    while !compactor.status().compaction_running {
        tokio::task::yield_now().await;
    }
    assert_eq!(compactor.run(Urgency::Forced).await.status, "skipped");
    end.send(()).expect("the job waits");
    assert_eq!(first.await.expect("no panic").status, "success");
}

#[tokio::test]
async fn the_history_holds_the_last_ten() {
    let compactor = start(Ok(CompactionOutcome::default()), SCHEDULE);
    for _ in 0..12 {
        compactor.run(Urgency::Forced).await;
    }
    assert_eq!(compactor.status().compaction_history.len(), HISTORY_MAX);
}

#[tokio::test]
async fn the_schedule_runs_by_itself_and_can_be_changed() {
    let schedule = CompactionSchedule { enabled: false, interval_seconds: 0, min_interval_seconds: 0 };
    let compactor = start(Ok(CompactionOutcome::default()), schedule);
    let refused = compactor.configure(ScheduleChange {
        interval_seconds: Some(59),
        enabled: Some(true),
        ..ScheduleChange::default()
    });
    assert_eq!(refused.map_err(|error| error.setting), Err("interval"));
    assert!(!compactor.status().enabled);
    let changed = compactor.configure(ScheduleChange { enabled: Some(true), ..ScheduleChange::default() });
    assert_eq!(json(&changed.expect("valid")), r#"{"status":"success","changes":{"enabled":true}}"#);
    while compactor.status().last_compaction.is_none() {
        tokio::task::yield_now().await;
    }
    let both = ScheduleChange { enabled: Some(true), interval_seconds: Some(7200), min_interval_seconds: None };
    let expected = r#"{"status":"success","changes":{"enabled":true,"interval":7200}}"#;
    assert_eq!(json(&compactor.configure(both).expect("valid")), expected);
}

#[test]
fn timestamps_look_like_pythons() {
    let at = OffsetDateTime::from_unix_timestamp_nanos(1_692_973_845_123_456_000).expect("in range");
    assert_eq!(timestamp(at), "2023-08-25T14:30:45.123456");
}
