//! The fuzzer's targets on stable Rust: all of their corpora, and some thousands of seeded mutations of
//! them. What the fuzzer itself finds (see `Cargo.toml` beside this) is added to the corpora.

#![cfg(test)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use kv_node::fuzz::{TARGETS, Target};
use kv_tests::random::Random;

/// Of each corpus; `KV_FUZZ_MUTATIONS` overrides it, for a longer run.
const MUTATIONS: u64 = 10_000;
/// A corpus that lost its files would pass.
const INPUTS_MIN: usize = 5;
const INPUT_BYTES_MAX: usize = 4096;

const TOKENS: [&str; 14] = [
    "\"value\":",
    "\"version\":",
    "null",
    "18446744073709551615",
    "18446744073709551616",
    "-0",
    "1e400",
    "\\ud800",
    "\\u0041",
    "\"",
    "[[[[",
    "}",
    "\n",
    ",\"crc\":0}",
];

struct Chance(Random);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0.index(n.max(1))
    }

    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        start..start + self.below((len - start).min(40) + 1)
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn mutate(input: &mut Vec<u8>, others: &[Vec<u8>], chance: &mut Chance) {
    let range = chance.range(input.len());
    match chance.below(7) {
        0 => drop(input.drain(range)),
        1 => drop(input.splice(range, TOKENS[chance.below(TOKENS.len())].bytes())),
        2 => drop(input.splice(range.start..range.start, TOKENS[chance.below(TOKENS.len())].bytes())),
        3 => {
            let other = &others[chance.below(others.len())];
            let piece = other[chance.range(other.len())].to_vec();
            drop(input.splice(range, piece));
        }
        4 => {
            let piece = input[range.clone()].to_vec();
            drop(input.splice(range.end..range.end, piece));
        }
        5 => input.extend(&others[chance.below(others.len())]),
        _ => {
            if let Some(byte) = input.get_mut(range.start) {
                *byte ^= 1 << chance.below(8);
            }
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

fn run((name, target): Target, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
        panic!("{name} breaks on {:?}", String::from_utf8_lossy(input));
    }
}

fn go_through(target: Target) {
    let inputs = corpus(target.0);
    assert!(inputs.len() >= INPUTS_MIN, "{}: {} inputs", target.0, inputs.len());
    inputs.iter().for_each(|input| run(target, input));
    let mut chance = Chance(Random::new(1));
    let mutations = std::env::var("KV_FUZZ_MUTATIONS").map_or(MUTATIONS, |n| n.parse().unwrap());
    for _ in 0..mutations {
        let mut input = inputs[chance.below(inputs.len())].clone();
        for _ in 0..=chance.below(4) {
            mutate(&mut input, &inputs, &mut chance);
        }
        run(target, &input);
    }
}

#[test]
fn no_bytes_of_others_break_what_reads_them() {
    std::thread::scope(|scope| {
        let running: Vec<_> = TARGETS.into_iter().map(|target| scope.spawn(move || go_through(target))).collect();
        running.into_iter().for_each(|target| target.join().unwrap());
    });
}
