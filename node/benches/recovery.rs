//! How fast a log is recovered from a warm cache: bytes with 1 KiB values, lines with 16-byte ones.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kv_core::command::{Key, Precondition, Value};
use kv_core::contract::{Base, HardState};
use kv_core::entry::{Body, Entry, EntryId, Epoch};
use kv_core::group::{ClusterId, Configuration, ConfigurationAt, MemberId, MemberInfo, NodeName, Settings};
use kv_node::wal::{FileStorage, NewVolume, Opened, Options, open};

const KEYS: u64 = 200_000;
const BATCH_ENTRIES: u64 = 5000;

fn entry(id: u64, value_bytes: usize) -> Entry {
    let value = format!("\"{}\"", "v".repeat(value_bytes - 2));
    let body = Body::Set {
        key: Key::new(&format!("key-{:010}", id % KEYS)).expect("a key"),
        value: Value::from_json(value.as_bytes(), 1 << 20).expect("a value"),
        version: id.div_ceil(KEYS).max(1),
        precondition: Precondition::default(),
        request: None,
    };
    Entry::encode(EntryId(id), Epoch(1), None, body)
}

fn new_volume() -> NewVolume {
    let name = NodeName::new("bench").expect("a name");
    NewVolume { name, member_id: MemberId(1), settings: Settings::default() }
}

fn fill(storage: FileStorage, entries: u64, value_bytes: usize) -> u64 {
    let opened = open(Arc::new(storage), &Options::default(), &new_volume()).expect("a new volume");
    let Opened { mut wal, reader, recovered } = opened;
    let me = MemberInfo { name: new_volume().name, member_id: MemberId(1), peer_url: "localhost:1".to_owned() };
    let configuration = ConfigurationAt { id: EntryId::ZERO, configuration: Configuration::new(vec![me]) };
    let hard = HardState { cluster_id: ClusterId::new("bench").ok(), ..recovered.hard };
    wal.found(hard, Base { configuration, ..recovered.base }).expect("founded");
    for first in (1..=entries).step_by(BATCH_ENTRIES as usize) {
        let batch: Vec<_> = (first..=entries.min(first + BATCH_ENTRIES - 1)).map(|id| entry(id, value_bytes)).collect();
        wal.append(&batch, EntryId(entries)).expect("appended");
    }
    reader.disk_bytes()
}

fn recover(c: &mut Criterion) {
    let mut group = c.benchmark_group("recovery");
    group.sample_size(10);
    for (entries, value_bytes) in [(200_000, 1024), (1_000_000, 16)] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory on the disk");
        let bytes = fill(FileStorage::open(dir.path()).expect("a directory"), entries, value_bytes);
        for (per, throughput) in [("bytes", Throughput::Bytes(bytes)), ("lines", Throughput::Elements(entries))] {
            group.throughput(throughput);
            for threads in [1, 2] {
                let options = Options { recovery_threads: threads, ..Options::default() };
                let name = format!("{per} of {value_bytes}-byte values, {threads} threads");
                group.bench_function(name, |b| {
                    b.iter(|| {
                        let storage = Arc::new(FileStorage::open(dir.path()).expect("a directory"));
                        black_box(open(storage, &options, &new_volume()).expect("recovered"))
                    });
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, recover);
criterion_main!(benches);
