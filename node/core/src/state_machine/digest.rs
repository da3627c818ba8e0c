//! One number for the whole applied state, to compare nodes and replays by. Walks everything: for
//! tests, simulation and `verify`. No seed and no order of a hash table enters it.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::StateMachine;
use crate::entry::EntryId;
use crate::group::Settings;
use crate::keyspace::Versions;

impl StateMachine {
    /// Equal for equal applied id, keys, versions, values, history, deduplication, settings, feature level and time.
    pub fn digest(&self) -> u64 {
        let mut digest = Digest(SipHasher13::new_with_keys(0, 0));
        let Settings { history_limit, dedup_expiry_seconds, dedup_limit } = self.settings;
        digest.number(self.applied().0);
        digest.number(u64::from(history_limit));
        digest.number(dedup_expiry_seconds);
        digest.number(dedup_limit);
        digest.number(u64::from(self.feature_level.0));
        digest.number(self.last_ts_ms);
        self.keyspace.for_each(&mut |key, versions| digest.key(key, versions));
        self.sessions.for_each_up_to(EntryId(u64::MAX), &mut |record| digest.bytes(&record.encode()));
        digest.0.finish()
    }
}

struct Digest(SipHasher13);

impl Digest {
    fn number(&mut self, n: u64) {
        self.0.write(&n.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.write(bytes);
    }

    fn key(&mut self, key: &str, versions: &Versions) {
        self.bytes(key.as_bytes());
        self.number(versions.current.id.0);
        self.number(versions.current.version);
        self.bytes(&versions.current.value);
        self.number(versions.earlier.len() as u64);
        for locator in &versions.earlier {
            self.number(locator.version);
            self.number(locator.id.0);
        }
    }
}
