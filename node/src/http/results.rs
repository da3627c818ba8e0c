//! The results of GET requests that carried request ids, remembered by this node alone. Bounded by
//! count, bytes and age; the oldest goes first. What PUT and DELETE did is remembered by the group.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use kv_core::command::RequestId;
use kv_core::entry::EntryId;

/// Most results remembered.
const RESULTS_MAX: usize = 10_000;
/// Most bytes of bodies remembered.
const RESULT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What was asked; a request id stands for one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) key: Box<str>,
    pub(crate) version: Option<u64>,
}

/// A result that is given again.
#[derive(Debug)]
pub(crate) struct Remembered {
    pub(crate) question: Question,
    pub(crate) id: EntryId,
    pub(crate) body: Bytes,
}

/// All that look at results name the age at which they expire: the group's setting then, which can change.
#[derive(Default)]
pub(crate) struct Results(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    by_request: HashMap<RequestId, Arc<Remembered>>,
    /// In the order of their arrival, which is that of their expiry.
    order: VecDeque<(Instant, RequestId)>,
    bytes: usize,
    stored_total: u64,
    sweeps_total: u64,
}

/// What `/deduplication_stats` adds from here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ResultCounts {
    pub(crate) stored_total: u64,
    pub(crate) sweeps_total: u64,
}

impl Results {
    pub(crate) fn lookup(&self, request: &RequestId, expiry: Duration) -> Option<Arc<Remembered>> {
        let mut inner = self.lock();
        inner.expire(Instant::now(), expiry);
        inner.by_request.get(request).cloned()
    }

    /// Some: another copy of the request was first, and this is its result.
    pub(crate) fn remember(&self, request: RequestId, result: Remembered, expiry: Duration) -> Option<Arc<Remembered>> {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.expire(now, expiry);
        if let Some(earlier) = inner.by_request.get(&request) {
            return Some(Arc::clone(earlier));
        }
        inner.bytes += result.body.len();
        inner.stored_total += 1;
        inner.by_request.insert(request.clone(), Arc::new(result));
        inner.order.push_back((now, request));
        while inner.order.len() > RESULTS_MAX || inner.bytes > RESULT_BYTES_MAX {
            inner.drop_oldest();
        }
        None
    }

    pub(crate) fn counts(&self) -> ResultCounts {
        let inner = self.lock();
        ResultCounts { stored_total: inner.stored_total, sweeps_total: inner.sweeps_total }
    }

    /// The requests remembered now.
    pub(crate) fn requests(&self, expiry: Duration) -> Vec<RequestId> {
        let mut inner = self.lock();
        inner.expire(Instant::now(), expiry);
        inner.by_request.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nothing panics while it holds the results")
    }
}

impl Inner {
    fn expire(&mut self, now: Instant, expiry: Duration) {
        let before = self.order.len();
        while self.order.front().is_some_and(|(at, _)| now.duration_since(*at) >= expiry) {
            self.drop_oldest();
        }
        self.sweeps_total += u64::from(self.order.len() < before);
    }

    fn drop_oldest(&mut self) {
        let oldest = self.order.pop_front().and_then(|(_, request)| self.by_request.remove(&request));
        self.bytes -= oldest.map_or(0, |result| result.body.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn request(n: usize) -> RequestId {
        RequestId::new("client", &n.to_string()).unwrap()
    }

    fn result(body: &'static str) -> Remembered {
        let question = Question { key: "k".into(), version: None };
        Remembered { question, id: EntryId(1), body: Bytes::from_static(body.as_bytes()) }
    }

    #[test]
    fn the_first_of_two_copies_in_flight_is_the_result_of_both() {
        let results = Results::default();
        assert!(results.remember(request(1), result("first"), MINUTE).is_none());
        let kept = results.remember(request(1), result("second"), MINUTE).unwrap();
        assert_eq!(kept.body, "first");
        assert_eq!(results.counts().stored_total, 1);
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many_and_all_go_when_they_are_too_old() {
        let results = Results::default();
        for n in 0..=RESULTS_MAX {
            results.remember(request(n), result("x"), MINUTE);
        }
        assert!(results.lookup(&request(0), MINUTE).is_none());
        assert!(results.lookup(&request(1), MINUTE).is_some());
        assert!(results.lookup(&request(1), Duration::ZERO).is_none(), "the setting of the moment counts");
        assert!(results.requests(MINUTE).is_empty());
        assert_eq!(results.counts().sweeps_total, 1);
    }
}
