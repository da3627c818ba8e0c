//! What is remembered of each cluster between two reconciles, and what a plan draws of time and chance. Lost with the
//! process, which costs only time: docs/decisions/0011 says why.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::Resource;
use kv_core::group::ClusterId;

use super::Clusters;
use crate::plan::{Defaults, Draw, Memory};

/// By the uid of the KvCluster.
#[derive(Debug, Default)]
pub(super) struct ByCluster(Mutex<HashMap<String, Remembered>>);

/// Of one cluster.
#[derive(Debug, Default, Clone)]
pub(super) struct Remembered {
    pub(super) memory: Memory,
    /// The token as it was last seen: a Secret that was deleted by hand comes back as it was.
    pub(super) token: Option<String>,
    pub(super) reported: Option<Instant>,
    pub(super) failures: u32,
    pub(super) leadership: Leadership,
}

/// Who led last, to tell a failover from a change that was asked for.
#[derive(Debug, Default, Clone)]
pub(super) struct Leadership {
    last: Option<String>,
    lost: Option<Instant>,
    expected: Option<String>,
}

impl ByCluster {
    pub(super) fn recall(&self, uid: &str) -> Remembered {
        self.all().get(uid).cloned().unwrap_or_default()
    }

    pub(super) fn remember(&self, uid: String, remembered: Remembered) {
        self.all().insert(uid, remembered);
    }

    /// Of clusters that are gone, nothing is kept.
    pub(super) fn forget_all_but(&self, clusters: &Clusters) {
        let uids: Vec<String> = clusters.state().iter().filter_map(|cluster| cluster.meta().uid.clone()).collect();
        self.all().retain(|uid, _| uids.contains(uid));
    }

    /// Cannot be poisoned in a way that matters: what is remembered costs only time when it is lost.
    fn all(&self) -> MutexGuard<'_, HashMap<String, Remembered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    /// `running`: for how long the operator runs.
    pub(super) fn draw(&self, running: Duration, defaults: &Defaults) -> Draw {
        Draw {
            now_ms: u64::try_from(running.as_millis()).unwrap_or(u64::MAX),
            cluster_id: ClusterId::new(&random_hex()).expect("hexadecimal digits are legal in an id"),
            token: self.token.clone().unwrap_or_else(|| format!("{}{}", random_hex(), random_hex())),
            defaults: defaults.clone(),
        }
    }
}

/// 128 bits.
fn random_hex() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    format!("{:032x}", u128::from_be_bytes(bytes))
}

impl Leadership {
    pub(super) fn expect(&mut self, pod: String) {
        self.expected = Some(pod);
    }

    /// `before`: as was reported last, for a process that is new. Some: it was a failover; for how long nobody led.
    pub(super) fn note(&mut self, before: Option<&str>, leader: Option<&str>, now: Instant) -> Option<Duration> {
        let last = self.last.take().or_else(|| before.map(str::to_owned));
        let Some(leader) = leader else {
            self.lost = last.as_ref().and(self.lost.or(Some(now)));
            self.last = last;
            return None;
        };
        let (lost, expected) = (self.lost.take(), self.expected.take_if(|expected| expected == leader));
        let changed = last.is_some_and(|last| last != leader);
        self.last = Some(leader.to_owned());
        (changed && expected.is_none()).then(|| lost.map_or(Duration::ZERO, |lost| now - lost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_was_lost_is_a_failover_and_one_that_was_asked_for_is_not() {
        let (start, mut leadership) = (Instant::now(), Leadership::default());
        let note = |leadership: &mut Leadership, leader: Option<&str>, seconds: u64| {
            leadership.note(Some("demo-0"), leader, start + Duration::from_secs(seconds)).map(|time| time.as_secs())
        };
        assert_eq!(note(&mut leadership, Some("demo-0"), 0), None);
        assert_eq!(note(&mut leadership, None, 1), None);
        assert_eq!(note(&mut leadership, None, 2), None);
        assert_eq!(note(&mut leadership, Some("demo-1"), 3), Some(2));
        leadership.expect("demo-2".to_owned());
        assert_eq!(note(&mut leadership, Some("demo-1"), 4), None);
        assert_eq!(note(&mut leadership, Some("demo-2"), 5), None);
        assert_eq!(note(&mut leadership, Some("demo-0"), 6), Some(0));
        assert_eq!(note(&mut leadership, None, 7), None);
        assert_eq!(note(&mut leadership, Some("demo-0"), 8), None, "the same again is no change");
    }
}
