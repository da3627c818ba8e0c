//! Snapshots, from a peer or a file.

use std::sync::Arc;

use kv_core::entry::{Body, Control, Entry, EntryId};
use kv_core::group::{MemberId, NodeName, Settings};

use super::sealed;
use crate::wal::memory::MemoryStorage;
use crate::wal::new_volume::{NewGroup, NewMember};
use crate::wal::restore::found_of_snapshot;
use crate::wal::snapshot::{Checker, ReceiveError, Received, SnapshotError, SnapshotReceiver};
use crate::wal::{NewVolume, Options, open};

const SEGMENT_BYTES: u64 = 300;
/// The highest id that a line may have.
const NUMBER_MAX: u64 = u64::MAX / 2;

pub(super) fn snapshot(data: &[u8]) {
    stream(data);
    stream(&repaired(data));
}

/// However it is cut into chunks, it is accepted or not; what is accepted becomes a volume that opens
/// undamaged, and of anything else no file is left.
fn stream(bytes: &[u8]) {
    let storage = Arc::new(MemoryStorage::default());
    let chunk_bytes = 1 + bytes.len() % 100;
    match received(&storage, bytes, chunk_bytes) {
        Err(error) => {
            assert!(!is_whole(bytes), "{error}, but only in chunks of {chunk_bytes} bytes");
            assert_eq!(storage.names(), [""; 0], "{error}");
        }
        Ok(received) => {
            assert!(is_whole(bytes), "only in chunks of {chunk_bytes} bytes");
            opens(storage, received);
        }
    }
}

fn received(storage: &Arc<MemoryStorage>, bytes: &[u8], chunk_bytes: usize) -> Result<Received, ReceiveError> {
    let mut receiver = SnapshotReceiver::new(Arc::clone(storage), 1, SEGMENT_BYTES);
    bytes.chunks(chunk_bytes).try_for_each(|chunk| receiver.feed(chunk))?;
    receiver.finish()
}

fn is_whole(bytes: &[u8]) -> bool {
    let mut checker = Checker::default();
    let fed = checker.feed(bytes, &mut |_| Ok::<(), SnapshotError>(()));
    fed.is_ok() && checker.finish().is_ok()
}

fn opens(storage: Arc<MemoryStorage>, received: Received) {
    let position = received.staged.position;
    let name = NodeName::new("a").expect("a letter is a name");
    let member = NewMember { name: name.clone(), peer_url: "http://127.0.0.1:9000".to_owned() };
    let group = NewGroup::mint(&member).expect("random numbers");
    found_of_snapshot(&*storage, &group, received.staged).expect("memory takes all");
    let new_volume = NewVolume { name, member_id: MemberId(1), settings: Settings::default() };
    let open = || open(Arc::clone(&storage), &Options::default(), &new_volume).expect("what was restored opens");
    let mut opened = open();
    assert!(!opened.recovered.report.is_damaged(), "{:?}", opened.recovered.report);
    assert_eq!(opened.recovered.state.applied(), position.id);
    if position.id.0 >= NUMBER_MAX {
        return;
    }
    let leader = Body::Control(Control::Epoch { leader: MemberId(1) });
    let next = Entry::encode(position.id.next(), position.epoch, Some(1), leader);
    opened.wal.append(&[next], EntryId::ZERO).expect("it goes on");
    drop(opened);
    let report = open().recovered.report;
    assert!(!report.is_damaged() && report.torn_tail.is_none(), "{report:?}");
}

/// The stream with CRCs that hold, and with the trailer that belongs to it.
fn repaired(data: &[u8]) -> Vec<u8> {
    const SECTIONS: [&str; 4] = ["history", "live", "sessions", "log"];
    let (mut out, mut counts, mut section) = (Vec::new(), [0_u64; SECTIONS.len()], None);
    for line in data.strip_suffix(b"\n").unwrap_or(data).split(|&byte| byte == b'\n') {
        let begins = |name: &&str| line.starts_with(format!("{{\"section\":\"{name}\"").as_bytes());
        if line.starts_with(b"{\"end\":") {
            let counts: Vec<String> = SECTIONS.iter().zip(counts).map(|(name, n)| format!("\"{name}\":{n}")).collect();
            let (bytes, checksum) = (out.len(), crc32fast::hash(&out));
            let trailer = format!("{{\"end\":{{{}}},\"bytes\":{bytes},\"checksum\":{checksum}}}", counts.join(","));
            out.extend(sealed(trailer.as_bytes()));
        } else {
            if let Some(begun) = SECTIONS.iter().position(begins) {
                section = Some(begun);
            } else if let Some(section) = section {
                counts[section] += 1;
            }
            out.extend(sealed(line));
        }
        out.push(b'\n');
    }
    out
}
