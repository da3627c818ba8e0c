//! The parts of a write and a read that belong to the core: encode, decode, apply, get.
//! `cargo bench -p kv-core`; and how much a million keys take: `cargo bench -p kv-core -- --memory`.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use kv_core::command::{Key, Precondition, RequestId, Value};
use kv_core::contract::Base;
use kv_core::entry::{Body, Entry, EntryId, Epoch};
use kv_core::state_machine::StateMachine;

const KEYS: u64 = 100_000;

fn key(n: u64) -> Key {
    Key::new(&format!("key-{n:012}")).expect("16 bytes")
}

fn value(bytes: usize) -> Value {
    let json = format!("\"{}\"", "v".repeat(bytes - 2));
    Value::from_json(json.as_bytes(), 1 << 20).expect("a JSON string")
}

/// Spreads over the keys in an order that no cache foresees.
fn scattered(n: u64, keys: u64) -> u64 {
    n.wrapping_mul(6_364_136_223_846_793_005).rotate_left(29) % keys
}

fn set(id: u64, n: u64, version: u64, value_bytes: usize, request: Option<RequestId>) -> Entry {
    let precondition = Precondition::default();
    let ts_ms = request.is_some().then_some(1_700_000_000_000 + id);
    let body = Body::Set { key: key(n), value: value(value_bytes), version, precondition, request };
    Entry::encode(EntryId(id), Epoch(1), ts_ms, body)
}

fn request(n: u64) -> Option<RequestId> {
    RequestId::new("client-1", &format!("6f1c2b1e-0000-4000-8000-{n:012}")).ok()
}

fn lines(c: &mut Criterion) {
    for bytes in [16, 1024] {
        let entry = set(123_456, 7, 1, bytes, None);
        let mut group = c.benchmark_group(format!("line/{bytes}"));
        group.throughput(Throughput::Bytes(entry.line.len() as u64));
        group.bench_function("encode", |b| {
            b.iter_batched(
                || entry.body.clone(),
                |body| Entry::encode(EntryId(123_456), Epoch(1), None, body),
                BatchSize::SmallInput,
            );
        });
        group.bench_function("decode", |b| b.iter(|| Entry::decode(black_box(entry.line.clone()))));
    }
    let entry = set(123_456, 7, 1, 16, request(1));
    c.bench_function("line/16/decode with a request", |b| b.iter(|| Entry::decode(black_box(entry.line.clone()))));
}

/// One SET of each key.
fn loaded(keys: u64, requests: impl Fn(u64) -> Option<RequestId>) -> StateMachine {
    let mut state = StateMachine::new(&Base::default(), 1);
    for n in 0..keys {
        state.apply(&set(n + 1, n, 1, 16, requests(n)));
    }
    state.start_counting();
    state
}

fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply/16");
    group.throughput(Throughput::Elements(KEYS));
    group.sample_size(20);
    let created: Vec<_> = (0..KEYS).map(|n| set(n + 1, n, 1, 16, None)).collect();
    let fresh = || StateMachine::new(&Base::default(), 1);
    let run = |mut state: StateMachine, log: &[Entry]| {
        log.iter().for_each(|entry| drop(state.apply(entry)));
        state
    };
    group.bench_function("create", |b| b.iter_batched(fresh, |state| run(state, &created), BatchSize::PerIteration));
    let updated: Vec<_> = updates(|_| None);
    let full = || loaded(KEYS, |_| None);
    group.bench_function("update", |b| b.iter_batched(full, |state| run(state, &updated), BatchSize::PerIteration));
    let requested: Vec<_> = updates(request);
    group.bench_function("update with a request", |b| {
        b.iter_batched(full, |state| run(state, &requested), BatchSize::PerIteration);
    });
    group.finish();
}

fn updates(requests: impl Fn(u64) -> Option<RequestId>) -> Vec<Entry> {
    let mut versions = vec![1; KEYS as usize];
    (0..KEYS)
        .map(|n| {
            let key = scattered(n, KEYS);
            versions[key as usize] += 1;
            set(KEYS + n + 1, key, versions[key as usize], 16, requests(n))
        })
        .collect()
}

fn get(c: &mut Criterion) {
    let state = loaded(KEYS, |_| None);
    let names: Vec<_> = (0..KEYS).map(|n| key(scattered(n, KEYS))).collect();
    let mut names = names.iter().cycle();
    c.bench_function("get/16", |b| {
        b.iter(|| state.keyspace().get(names.next().expect("a cycle has no end").as_str()));
    });
    c.bench_function("page of 100", |b| {
        b.iter(|| state.keyspace().page("key-", Some(names.next().expect("a cycle has no end").as_str()), 100));
    });
}

criterion_group!(benches, lines, apply, get);

/// Resident bytes of this process.
#[cfg(target_os = "linux")]
fn resident_bytes() -> u64 {
    #[allow(clippy::disallowed_methods, reason = "the measurement is outside the core")]
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("the second number") * 4096
}

#[cfg(target_os = "linux")]
fn memory() {
    const MILLION: u64 = 1_000_000;
    let before = resident_bytes();
    let plain = loaded(MILLION, |_| None);
    let with_keys = resident_bytes();
    println!("{MILLION} keys and values of 16 bytes: {} MB", (with_keys - before) / MILLION);
    let requested = loaded(MILLION, request);
    println!("the same with {MILLION} requests of one client: {} MB", (resident_bytes() - with_keys) / MILLION);
    black_box((plain, requested));
}

fn main() {
    #[cfg(target_os = "linux")]
    if std::env::args().any(|argument| argument == "--memory") {
        return memory();
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
