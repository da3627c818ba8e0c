//! A group of one whose log was damaged while it was stopped.

use kv_core::entry::{Body, Control, Entry};

use super::*;

const WRITES: u64 = 60;

async fn founded_at(dir: &Path) -> (Handle, String) {
    let node = start_node(dir, "a").await;
    found(&[&node]).await;
    let address = info(&node).await.peer_url;
    (node, address)
}

async fn write_all(node: &Handle) {
    for i in 1..=WRITES {
        assert_eq!(write(node, &format!("k{i}"), &i.to_string()).await, EntryId(i));
    }
}

async fn follow(leader: &Handle, learner: &Handle) {
    leader.wait_view(soon(), |view| view.role == Role::Leader && view.caught_up).await.expect("leads");
    let member = info(learner).await;
    let reply = ask(leader, Request::AddMember { target: None, member, voter: false }).await;
    assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
    assert!(learner.wait_applied(leader.applied(), soon()).await, "follows");
}

/// A group of one in the first directory, its peer address, and a learner in the second; both hold all writes.
async fn written_with_a_learner(dirs: &[tempfile::TempDir]) -> (Handle, String, Handle) {
    let (leader, address) = founded_at(dirs[0].path()).await;
    let learner = start_node(dirs[1].path(), "b").await;
    follow(&leader, &learner).await;
    write_all(&leader).await;
    assert!(learner.wait_applied(EntryId(WRITES), soon()).await);
    (leader, address, learner)
}

/// The id of the line that is damaged.
fn flip_a_byte(dir: &Path) -> EntryId {
    let segment = dir.join("wal.log.segment.2");
    let mut contents = std::fs::read(&segment).expect("a sealed segment");
    let second = contents.iter().position(|byte| *byte == b'\n').expect("lines") + 1;
    let len = contents[second..].iter().position(|byte| *byte == b'\n').expect("two lines");
    let line = bytes::Bytes::copy_from_slice(&contents[second..second + len]);
    contents[second + 20] ^= 1;
    std::fs::write(&segment, contents).expect("writable");
    Entry::decode(line).expect("it was good").id
}

fn entries(node: &Handle) -> Vec<Entry> {
    node.reader().read_held(EntryId(1), EntryId(u64::MAX), usize::MAX).expect("a good log")
}

fn lost(node: &Handle) -> Vec<(EntryId, EntryId)> {
    let lost = |entry: &Entry| match entry.body {
        Body::Control(Control::Lost { first, last }) => Some((first, last)),
        _ => None,
    };
    entries(node).iter().filter_map(lost).collect()
}

fn shown(node: &Handle) -> Vec<Option<String>> {
    (1..=WRITES).map(|i| value(node, &format!("k{i}"))).collect()
}

#[tokio::test]
async fn what_a_learner_holds_comes_back() {
    let dirs = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
    let (leader, address, learner) = written_with_a_learner(&dirs).await;
    let before = entries(&leader);
    stop(leader).await;
    flip_a_byte(dirs[0].path());

    let leader = start_node_at(dirs[0].path(), "a", &address).await;
    let recovery = leader.status_extra().recovery;
    assert_eq!((recovery.damage_total, recovery.missing.len()), (1, 0), "{recovery:?}");
    follow(&leader, &learner).await;
    assert_eq!(entries(&leader)[..before.len()], before);
    assert_eq!(lost(&leader), []);
    let all: Vec<_> = (1..=WRITES).map(|i| Some(i.to_string())).collect();
    assert_eq!((shown(&leader), shown(&learner)), (all.clone(), all));
    let id = write(&leader, "k", "1").await;
    assert!(learner.wait_applied(id, soon()).await);
    stop(leader).await;
    stop(learner).await;
}

#[tokio::test]
async fn what_nobody_holds_is_declared_and_learners_are_made_equal() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().expect("a directory")).collect();
    let (leader, address, old) = written_with_a_learner(&dirs).await;
    stop(old).await;
    stop(leader).await;
    let damaged = flip_a_byte(dirs[0].path());

    let leader = start_node_at(dirs[0].path(), "a", &address).await;
    let missing: Vec<_> = leader.status_extra().recovery.missing.iter().map(|ids| (ids.first, ids.last)).collect();
    assert_eq!(missing, [(damaged, damaged)]);
    leader.wait_view(soon(), |view| view.role == Role::Leader && view.caught_up).await.expect("leads");
    assert_eq!(lost(&leader), missing);
    let all = (1..=WRITES).map(|i| Some(i.to_string()).filter(|_| EntryId(i) != damaged));
    assert_eq!(shown(&leader), all.collect::<Vec<_>>());

    // One that has what is lost, and a fresh one.
    let old = start_node(dirs[1].path(), "b").await;
    let fresh = start_node(dirs[2].path(), "c").await;
    for learner in [&old, &fresh] {
        follow(&leader, learner).await;
        assert_eq!(shown(learner), shown(&leader));
    }
    let id = write(&leader, "k", "1").await;
    assert!(old.wait_applied(id, soon()).await && fresh.wait_applied(id, soon()).await);
    stop(leader).await;
    stop(fresh).await;

    let leader = start_node_at(dirs[0].path(), "a", &address).await;
    let recovery = leader.status_extra().recovery;
    assert_eq!((recovery.damage_total, recovery.missing.len()), (0, 0), "declared");
    let fresh = start_node(dirs[2].path(), "c").await;
    for learner in [&old, &fresh] {
        follow(&leader, learner).await;
        assert_eq!(shown(learner), shown(&leader));
        assert_eq!(lost(learner), missing);
    }
    assert_eq!(lost(&leader).len(), 1);
    for node in [leader, old, fresh] {
        stop(node).await;
    }
}

/// Compacts what is sealed, and damages a line of what that has made; the horizon.
async fn damage_the_base(leader: Handle, dir: &Path) -> EntryId {
    let job = leader.compaction_job();
    let compacted = tokio::task::spawn_blocking(move || job.run()).await.expect("no panic").expect("compacted");
    assert!(compacted.segments_compacted > 0);
    let (horizon, live) = (leader.reader().horizon(), leader.reader().segments()[0].path.clone());
    stop(leader).await;
    let mut contents = std::fs::read(&live).expect("a compacted segment");
    contents[20] ^= 1;
    std::fs::write(dir.join(live), contents).expect("writable");
    horizon
}

#[tokio::test]
async fn a_damaged_base_that_nobody_else_holds_is_declared_lost() {
    let dirs = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
    let (leader, address) = founded_at(dirs[0].path()).await;
    write_all(&leader).await;
    let horizon = damage_the_base(leader, dirs[0].path()).await;

    let leader = start_node_at(dirs[0].path(), "a", &address).await;
    let missing: Vec<_> = leader.status_extra().recovery.missing.iter().map(|ids| (ids.first, ids.last)).collect();
    assert_eq!(missing, [(EntryId(1), horizon)]);
    leader.wait_view(soon(), |view| view.role == Role::Leader && view.caught_up).await.expect("leads");
    assert_eq!(lost(&leader), missing);
    assert_eq!(shown(&leader).iter().filter(|value| value.is_none()).count(), 1, "the rest is served");
    let learner = start_node(dirs[1].path(), "b").await;
    follow(&leader, &learner).await;
    assert_eq!(shown(&learner), shown(&leader));
    stop(leader).await;

    let leader = start_node_at(dirs[0].path(), "a", &address).await;
    let recovery = leader.status_extra().recovery;
    assert_eq!((recovery.damage_total, recovery.missing.len()), (0, 0), "declared");
    follow(&leader, &learner).await;
    assert_eq!(shown(&learner), shown(&leader));
    stop(leader).await;
    stop(learner).await;
}

#[tokio::test]
async fn a_damaged_base_is_not_declared_lost_while_a_learner_holds_what_it_made() {
    let dirs = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
    let (leader, address, learner) = written_with_a_learner(&dirs).await;
    damage_the_base(leader, dirs[0].path()).await;

    let leader = start_node_at(dirs[0].path(), "a", &address).await;
    leader.wait_view(soon(), |view| view.role == Role::Leader && view.caught_up).await.expect("leads");
    assert_eq!((lost(&leader).len(), leader.status_extra().recovery.missing.len()), (0, 1), "said, not declared");
    assert_eq!(shown(&leader).iter().filter(|value| value.is_none()).count(), 1, "the rest is served");
    follow(&leader, &learner).await;
    assert!(shown(&learner).iter().all(Option::is_some), "the learner keeps what it has");
    let id = write(&leader, "k", "1").await;
    assert!(learner.wait_applied(id, soon()).await);
    stop(leader).await;
    stop(learner).await;
}
