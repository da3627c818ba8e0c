//! What the keyspace promises: versions, history, pages, and reads beside a writer.

use std::sync::atomic::AtomicBool;

use super::*;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn put(keyspace: &Keyspace, id: u64, text: &str, version: u64) {
    let value = format!("\"{text}@{id}\"");
    let put = Put { key: &key(text), value: value.as_bytes().into(), version, id: EntryId(id), history_limit: 2 };
    keyspace.put(put);
    keyspace.publish_applied(EntryId(id));
}

fn names(page: &Read<Page>) -> Vec<&str> {
    page.found.keys.iter().map(Key::as_str).collect()
}

#[test]
fn superseded_versions_become_locators_up_to_the_limit() {
    let keyspace = Keyspace::new(EntryId::ZERO, 1);
    (1..=4).for_each(|n| put(&keyspace, n, "a", n));
    let versions = keyspace.versions("a").found.unwrap();
    assert_eq!(versions.current.version, 4);
    assert_eq!(&*versions.current.value, b"\"a@4\"");
    let locator = |n| Locator { version: n, id: EntryId(n) };
    assert_eq!(versions.earlier, [locator(2), locator(3)]);
}

#[test]
fn a_deleted_key_is_gone_with_all_its_versions() {
    let keyspace = Keyspace::new(EntryId::ZERO, 1);
    (1..=3).for_each(|n| put(&keyspace, n, "a", n));
    assert_eq!(keyspace.remove(&key("a"), EntryId(4)), Some(key("a")));
    assert_eq!(keyspace.get("a").found, None);
    assert_eq!(keyspace.len(), 0);
    put(&keyspace, 5, "a", 1);
    assert_eq!(keyspace.versions("a").found.unwrap().earlier, []);
}

#[test]
fn pages_follow_each_other_in_key_order() {
    for loading in [true, false] {
        let keyspace = Keyspace::new(EntryId::ZERO, 1);
        if !loading {
            keyspace.finish_loading();
        }
        for (n, text) in (1..).zip(["b/2", "a", "b/1", "c", "b/3", "b"]) {
            put(&keyspace, n, text, 1);
        }
        keyspace.remove(&key("a"), EntryId(7));
        keyspace.publish_applied(EntryId(7));
        assert_eq!(names(&keyspace.page("", None, 10)), ["b", "b/1", "b/2", "b/3", "c"]);
        let first = keyspace.page("b/", None, 2);
        assert_eq!((names(&first), first.found.more, first.at), (vec!["b/1", "b/2"], true, EntryId(7)));
        let second = keyspace.page("b/", Some("b/2"), 2);
        assert_eq!((names(&second), second.found.more), (vec!["b/3"], false));
        assert_eq!(names(&keyspace.page("b/", Some("a"), 1)), ["b/1"]);
        assert!(names(&keyspace.page("x", None, 10)).is_empty());
    }
}

#[test]
fn loading_in_batches_and_key_by_key_give_the_same_order() {
    let (loading, serving) = (Keyspace::new(EntryId::ZERO, 1), Keyspace::new(EntryId::ZERO, 2));
    serving.finish_loading();
    let mut random = 1_u64;
    for id in 1..200_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let text = format!("a common beginning, then {}", (random >> 33) % 90_000);
        for keyspace in [&loading, &serving] {
            if keyspace.remove(&key(&text), EntryId(id)).is_none() {
                put(keyspace, id, &text, 1);
            }
        }
    }
    assert_eq!(loading.page("", None, usize::MAX).found, serving.page("", None, usize::MAX).found);
    assert_eq!(loading.page("", None, usize::MAX).found.keys.len(), loading.len());
}

#[test]
fn collected_ids_are_those_of_lines_still_needed() {
    let keyspace = Keyspace::new(EntryId::ZERO, 1);
    (1..=4).for_each(|n| put(&keyspace, n, "a", n));
    put(&keyspace, 5, "b", 1);
    put(&keyspace, 6, "b", 2);
    let (mut live, mut history) = (Vec::new(), Vec::new());
    keyspace.collect_ids(EntryId(5), &mut |id| live.push(id.0), &mut |id| history.push(id.0));
    history.sort_unstable();
    assert_eq!((live, history), (vec![4], vec![2, 3, 5]));
}

/// Each id changes one key, as each entry does: every eighth creates or deletes `d`, all others write
/// `k` with their remainder, so the state at any id is known.
#[test]
#[allow(clippy::disallowed_methods, reason = "readers beside apply are what is tested")]
fn at_equal_ids_concurrent_reads_give_equal_answers() {
    const TURN: u64 = 8;
    const LAST: u64 = 400_000;
    let keyspace = Keyspace::new(EntryId::ZERO, 1);
    keyspace.finish_loading();
    let done = AtomicBool::new(false);
    let written_at = |at: u64, n: u64| Some(at.saturating_sub(n) / TURN * TURN + n).filter(|&id| id <= at);
    std::thread::scope(|scope| {
        let reader = || {
            let mut reads = 0_u64;
            while !done.load(Ordering::Relaxed) || reads < TURN {
                let n = reads % (TURN - 1) + 1;
                let read = keyspace.get(&format!("k{n}"));
                assert_eq!(read.found.map(|current| current.id.0), written_at(read.at.0, n), "k{n} at {}", read.at);
                let page = keyspace.page("d", None, 10);
                assert_eq!(page.found.keys.len() as u64, page.at.0 / TURN % 2, "page at {}", page.at);
                reads += 1;
            }
            reads
        };
        let readers = [scope.spawn(reader), scope.spawn(reader)];
        for id in (1..=LAST).map(EntryId) {
            let (turn, n) = (id.0 / TURN, id.0 % TURN);
            let put = |name: &str, version| {
                let (key, value) = (key(name), b"1"[..].into());
                keyspace.put(Put { key: &key, value, version, id, history_limit: 2 });
            };
            match n {
                0 if turn % 2 == 1 => put("d", 1),
                0 => drop(keyspace.remove(&key("d"), id)),
                n => put(&format!("k{n}"), turn + 1),
            }
            keyspace.publish_applied(id);
        }
        done.store(true, Ordering::Relaxed);
        assert!(readers.map(|reader| reader.join().unwrap()).iter().all(|&reads| reads >= TURN));
    });
}
