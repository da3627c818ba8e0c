//! Replays the original's lines into what its key-value store held at the end: for each key the
//! current value and the versions before it. Lines come in any order and are replayed by id, because
//! a compacted segment of the original is not in id order. Holds all values in memory.

use std::collections::BTreeMap;

use kv_core::command::{Key, Value};
use kv_core::entry::EntryId;

use super::line::{BadLine, PythonChange, PythonLine};

/// One version of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) id: EntryId,
    pub(super) version: u64,
    pub(super) value: Value,
}

/// Versions that exist, oldest first; the last one is current. Never empty.
pub(super) type Keys = BTreeMap<Key, Vec<Version>>;

/// Lines by id, waiting to be replayed.
#[derive(Debug, Default)]
pub(super) struct Lines(BTreeMap<EntryId, (Key, PythonChange)>);

impl Lines {
    /// The same line twice (an interrupted compaction of the original) counts once.
    pub(super) fn add(&mut self, line: PythonLine) -> Result<(), BadLine> {
        let PythonLine { id, key, change, checked: _ } = line;
        match self.0.get(&id) {
            Some((known_key, known_change)) if *known_key == key && *known_change == change => Ok(()),
            Some(_) => Err(BadLine::Repeated(id)),
            None => {
                self.0.insert(id, (key, change));
                Ok(())
            }
        }
    }

    pub(super) fn last_id(&self) -> EntryId {
        self.0.last_key_value().map_or(EntryId::ZERO, |(&id, _)| id)
    }

    /// What the original's store holds after the last line.
    pub(super) fn replay(self) -> Keys {
        let mut keys = Keys::new();
        for (id, (key, change)) in self.0 {
            match change {
                PythonChange::Delete => {
                    keys.remove(&key);
                }
                PythonChange::Set { value, version } => {
                    let versions = keys.entry(key).or_default();
                    let current = versions.last().map_or(0, |v| v.version);
                    let version = version.unwrap_or(current + 1);
                    // The version fell: the DELETE in between is gone, and everything before it with it.
                    if version <= current {
                        versions.clear();
                    }
                    versions.push(Version { id, version, value });
                }
            }
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::parse;
    use super::*;

    fn replayed(lines: &[&str]) -> Vec<(u64, u64, String)> {
        let mut all = Lines::default();
        for line in lines {
            all.add(parse(line.as_bytes()).expect(line)).expect(line);
        }
        let mut keys = all.replay();
        let versions = keys.remove("a").unwrap_or_default();
        versions.into_iter().map(|v| (v.id.0, v.version, format!("{:?}", v.value))).collect()
    }

    #[test]
    fn versions_are_counted_where_none_is_written() {
        let lines = [
            r#"{"id":1,"operation":"SET","key":"a","value":"x"}"#,
            r#"{"id":2,"operation":"SET","key":"a","value":"y"}"#,
            r#"{"id":3,"operation":"DELETE","key":"a","value":null}"#,
            r#"{"id":5,"operation":"SET","key":"a","value":"w","version":null}"#,
            r#"{"id":4,"operation":"SET","key":"a","value":"z"}"#,
        ];
        assert_eq!(replayed(&lines), [(4, 1, "\"z\"".into()), (5, 2, "\"w\"".into())]);
    }

    #[test]
    fn versions_lost_to_compaction_stay_away_and_lost_deletes_are_noticed() {
        let gap = [
            r#"{"id":7,"operation":"SET","key":"a","value":7,"version":3}"#,
            r#"{"id":9,"operation":"SET","key":"a","value":9,"version":4}"#,
        ];
        assert_eq!(replayed(&gap), [(7, 3, "7".into()), (9, 4, "9".into())]);
        let lost_delete = [gap[0], r#"{"id":9,"operation":"SET","key":"a","value":9,"version":1}"#];
        assert_eq!(replayed(&lost_delete), [(9, 1, "9".into())]);
    }

    #[test]
    fn a_line_may_come_twice_but_an_id_may_not() {
        let line = || parse(br#"{"id":1,"operation":"SET","key":"a","value":1}"#).expect("valid");
        let mut lines = Lines::default();
        assert_eq!(lines.add(line()), Ok(()));
        assert_eq!(lines.add(line()), Ok(()));
        let other = parse(br#"{"id":1,"operation":"DELETE","key":"a","value":null}"#).expect("valid");
        assert_eq!(lines.add(other), Err(BadLine::Repeated(EntryId(1))));
    }
}
