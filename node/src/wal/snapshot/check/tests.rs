//! Good snapshots pass, and each kind of bad one is told from the others.

use kv_core::command::{Key, Precondition, Value};
use kv_core::contract::Base;
use kv_core::entry::{Epoch, LineError, seal_line};
use kv_core::group::ClusterId;

use super::super::format::{SectionMark, encode};
use super::*;
use crate::wal::Gap;

fn set(id: u64, key: &str, version: u64) -> Vec<u8> {
    let body = Body::Set {
        key: Key::new(key).expect("test key"),
        value: Value::from_json(b"1", 10).expect("test value"),
        version,
        precondition: Precondition::default(),
        request: None,
    };
    [&Entry::encode(EntryId(id), Epoch(1), None, body).line[..], b"\n"].concat()
}

fn at(id: u64) -> LogPosition {
    LogPosition { epoch: Epoch(1), id: EntryId(id) }
}

fn header(horizon: u64, position: u64) -> Vec<u8> {
    let base = Base { horizon: at(horizon), ..Base::default() };
    encode(&Header::new(ClusterId::new("c").expect("name"), at(position), base))
}

fn mark(section: Section) -> Vec<u8> {
    encode(&SectionMark { section })
}

/// Header for horizon 3, position 5, the sections given, and a fitting trailer.
fn snapshot(sections: &[(Section, Vec<Vec<u8>>)]) -> Vec<u8> {
    let mut out = header(3, 5);
    let mut end = Counts::default();
    for (section, lines) in sections {
        out.extend(mark(*section));
        out.extend(lines.concat());
        *end.of(*section) = lines.len() as u64;
    }
    let trailer = Trailer { end, bytes: out.len() as u64, checksum: crc32fast::hash(&out) };
    out.extend(encode(&trailer));
    out
}

fn good() -> Vec<u8> {
    snapshot(&[
        (Section::History, vec![set(1, "a", 1)]),
        (Section::Live, vec![set(2, "b", 1), set(3, "a", 2)]),
        (Section::Sessions, vec![]),
        (Section::Log, vec![set(4, "a", 3), set(5, "c", 1)]),
    ])
}

fn checked(bytes: &[u8], chunk_bytes: usize) -> Result<Vec<String>, SnapshotError> {
    let mut checker = Checker::default();
    let mut items = Vec::new();
    for chunk in bytes.chunks(chunk_bytes) {
        checker.feed::<SnapshotError>(chunk, &mut |item| {
            items.push(match item {
                Item::Header => "header".to_owned(),
                Item::Begins(section) => format!("{section:?}"),
                Item::Line { id, .. } => id.to_string(),
                Item::End(counts) => format!("{}/{}/{}/{}", counts.history, counts.live, counts.sessions, counts.log),
            });
            Ok(())
        })?;
    }
    checker.finish()?;
    Ok(items)
}

#[test]
fn a_good_snapshot_passes_in_chunks_of_any_size() {
    let expected = ["header", "History", "1", "Live", "2", "3", "Sessions", "Log", "4", "5", "1/2/0/2"];
    for chunk_bytes in [1, 7, 100, 1 << 20] {
        assert_eq!(checked(&good(), chunk_bytes).expect("good"), expected);
    }
}

#[test]
fn any_cut_is_found() {
    let good = good();
    for end in 0..good.len() {
        let expected =
            if end < header(3, 5).len() { SnapshotError::Foreign } else { SnapshotError::Truncated { lines: 0 } };
        let got = checked(&good[..end], 64).expect_err("cut");
        assert_eq!(std::mem::discriminant(&got), std::mem::discriminant(&expected), "cut at {end}: {got}");
    }
}

#[test]
fn any_flipped_bit_is_found() {
    let good = good();
    for index in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[index] ^= 1 << bit;
            assert!(checked(&bad, 1 << 20).is_err(), "byte {index} bit {bit}");
        }
    }
}

#[test]
fn what_is_no_snapshot_is_called_so() {
    let log = set(1, "a", 1);
    let binary: Vec<u8> = (0..=255).collect();
    for bytes in [&b""[..], b"\n", b"<html>\n", &log, &binary, &[0x1f; 100]] {
        assert_eq!(checked(bytes, 10), Err(SnapshotError::Foreign));
    }
    assert_eq!(checked(&vec![b'x'; LINE_BYTES_MAX + 1], 1 << 20), Err(SnapshotError::Foreign));
}

#[test]
fn a_newer_format_is_told_from_damage() {
    let mut newer = seal_line(br#"{"kvcluster_snapshot":2,"shape":"round""#.to_vec());
    newer.push(b'\n');
    assert_eq!(checked(&newer, 10), Err(SnapshotError::Newer { found: 2 }));
    let mut damaged = newer;
    damaged[30] ^= 1;
    assert!(matches!(checked(&damaged, 10), Err(SnapshotError::Line { number: 1, error: LineError::Crc { .. } })));
}

#[test]
fn a_line_that_never_ends_is_not_collected() {
    let mut bytes = header(3, 5);
    bytes.resize(bytes.len() + LINE_BYTES_MAX + 1, b'x');
    assert_eq!(checked(&bytes, 1 << 20), Err(SnapshotError::LineTooLong { number: 2 }));
}

#[test]
fn a_gap_passes_only_when_the_header_names_it() {
    let with = |gaps| {
        let base = Base { horizon: at(3), ..Base::default() };
        let mut header = Header::new(ClusterId::new("c").expect("name"), at(5), base);
        header.gaps = gaps;
        let sections: Vec<u8> = Section::ALL.into_iter().flat_map(mark).collect();
        let out = [encode(&header), sections, set(5, "a", 1)].concat();
        let end = Counts { log: 1, ..Counts::default() };
        let trailer = Trailer { end, bytes: out.len() as u64, checksum: crc32fast::hash(&out) };
        checked(&[out, encode(&trailer)].concat(), 100)
    };
    let gap =
        |first, last| Gap { first: EntryId(first), last: EntryId(last), known_from: EntryId(6), is_declared: true };
    assert!(with(vec![gap(2, 2), gap(4, 4)]).is_ok());
    for none in [vec![gap(2, 2)], vec![gap(2, 4)], vec![gap(4, 5)], vec![gap(4, 4), gap(5, 5)]] {
        assert!(matches!(with(none.clone()), Err(SnapshotError::Rule { rule: GAP, .. })), "{none:?}");
    }
    assert!(matches!(with(vec![gap(4, 3)]), Err(SnapshotError::Rule { number: 1, .. })));
}

#[test]
fn what_follows_the_trailer_is_refused() {
    let twice = [good(), good()].concat();
    assert_eq!(checked(&twice, 1 << 20), Err(SnapshotError::AfterTheEnd));
    assert_eq!(checked(&[good(), b"x".to_vec()].concat(), 1 << 20), Err(SnapshotError::AfterTheEnd));
}

#[test]
fn lines_that_break_a_rule_of_the_format_are_refused() {
    use Section::{History, Live, Log, Sessions};
    let log = || (Log, vec![set(4, "a", 3), set(5, "c", 1)]);
    let table = [
        (snapshot(&[(Live, vec![]), (History, vec![]), (Sessions, vec![]), log()]), "a section is out of order"),
        (snapshot(&[(History, vec![]), (Live, vec![])]), "a section is missing"),
        (snapshot(&[(History, vec![set(4, "a", 1)])]), "a line of the base is above the horizon"),
        (snapshot(&[(History, vec![set(2, "a", 1), set(2, "a", 1)])]), "ids do not rise"),
        (snapshot(&[(History, vec![]), (Live, vec![]), (Sessions, vec![]), (Log, vec![set(5, "a", 1)])]), GAP),
        (
            snapshot(&[(History, vec![]), (Live, vec![]), (Sessions, vec![]), (Log, vec![set(4, "a", 1)])]),
            "the log does not end at the header's position",
        ),
    ];
    for (bytes, expected) in table {
        let error = checked(&bytes, 1 << 20).expect_err(expected);
        assert!(matches!(error, SnapshotError::Rule { rule, .. } if rule == expected), "{error} / {expected}");
    }
    let short = [&header(3, 5)[..], &set(4, "a", 1)].concat();
    assert!(matches!(checked(&short, 1 << 20), Err(SnapshotError::Rule { number: 2, .. })));
}
