//! Opening damaged and undamaged directories.

use std::sync::Arc;

use kv_core::command::{Key, Precondition, Value};
use kv_core::contract::{Base, HardState};
use kv_core::entry::{Body, Entry, EntryId, Epoch};
use kv_core::group::{ClusterId, Configuration, ConfigurationAt, MemberId, MemberInfo, NodeName, Settings};

use super::{NewVolume, Opened, open};
use crate::wal::memory::{MemoryStorage, Survives};
use crate::wal::{Options, Storage, Wal, WalError};

pub(crate) const ME: MemberId = MemberId(1);

pub(crate) fn options() -> Options {
    Options { segment_bytes_max: 300, reserve_bytes: 0, ..Options::default() }
}

pub(crate) fn new_volume() -> NewVolume {
    let name = NodeName::new("a").expect("test name");
    NewVolume { name, member_id: ME, settings: Settings::default() }
}

pub(crate) fn set(id: u64) -> Entry {
    let body = Body::Set {
        key: Key::new(&format!("key{}", id % 5)).expect("test key"),
        value: Value::from_json(format!("\"value {id}\"").as_bytes(), 1000).expect("test value"),
        version: id.div_ceil(5),
        precondition: Precondition::default(),
        request: None,
    };
    Entry::encode(EntryId(id), Epoch(1), None, body)
}

pub(crate) fn sets(ids: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    ids.map(set).collect()
}

pub(crate) fn member(id: u64) -> MemberInfo {
    let name = NodeName::new(&format!("n{id}")).expect("test name");
    MemberInfo { name, member_id: MemberId(id), peer_url: "localhost:1".to_owned() }
}

/// Makes the member one of `voters`.
pub(crate) fn found<S: Storage>(wal: &mut Wal<S>, hard: &HardState, voters: &[u64]) -> Result<(), WalError> {
    let configuration = Configuration::new(voters.iter().map(|id| member(*id)).collect());
    let base = Base { configuration: ConfigurationAt { id: EntryId(0), configuration }, ..Base::default() };
    let cluster_id = ClusterId::new("c").ok();
    wal.found(HardState { cluster_id, ..hard.clone() }, base)
}

pub(crate) fn reopen(storage: &MemoryStorage) -> Result<Opened<MemoryStorage>, WalError> {
    open(Arc::new(storage.clone()), &options(), &new_volume())
}

#[test]
fn what_was_appended_is_there_again() {
    let storage = MemoryStorage::default();
    let mut opened = reopen(&storage).expect("new volume");
    found(&mut opened.wal, &opened.recovered.hard, &[1]).expect("found");
    opened.wal.append(&sets(1..=7), EntryId(3)).expect("append");
    opened.wal.append(&sets(8..=20), EntryId(20)).expect("append");
    let after = storage.after_power_loss(Survives::Nothing);
    let opened = reopen(&after).expect("reopen");
    assert_eq!(opened.recovered.state.applied(), EntryId(20));
    assert_eq!(opened.recovered.hard.incarnation, 2);
    assert!(!opened.recovered.report.is_damaged());
    assert!(opened.reader.segments().len() > 3);
    assert_eq!(opened.reader.read_from(EntryId(2), 100_000).expect("read"), sets(2..=20));
    assert_eq!(opened.reader.read_entry(EntryId(9)).expect("read"), Some(set(9)));
}
