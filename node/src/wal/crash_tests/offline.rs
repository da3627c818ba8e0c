//! What may be found after a crash of a command that makes a new volume in an empty directory: no data
//! directory, or the whole one. Nothing in between is ever believed.

use kv_core::group::MemberId;

use crate::wal::memory::{MemoryStorage, Survives};
use crate::wal::new_volume::NewGroup;
use crate::wal::recovery::tests::reopen;
use crate::wal::{WalError, verify};

pub(crate) struct NewVolumeJudge {
    member_id: MemberId,
    digest: u64,
}

impl NewVolumeJudge {
    /// `digest` is that of the state that the volume must show.
    pub(crate) fn new(group: &NewGroup, digest: u64) -> Self {
        Self { member_id: group.member.member_id, digest }
    }

    pub(crate) fn check(&self, disk: &MemoryStorage, is_done: bool, what: &str) {
        let opened = match reopen(disk) {
            Err(WalError::Foreign(_)) if !is_done => return,
            opened => opened.unwrap_or_else(|e| panic!("{what}: {e}")),
        };
        let recovered = opened.recovered;
        assert!(!recovered.report.is_damaged(), "{what}: {:?}", recovered.report);
        if recovered.hard.member_id != self.member_id {
            assert!(!is_done && recovered.state.applied().0 == 0, "{what}: {}", recovered.state.applied());
            return;
        }
        assert_eq!(recovered.state.digest(), self.digest, "{what}");
        let files = verify::of_storage(disk).expect("readable");
        assert!(!files.is_damaged() && files.orphans.is_empty(), "{what}: {files}");
        let again = reopen(&disk.after_power_loss(Survives::Nothing)).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(again.recovered.state.digest(), self.digest, "{what}, again");
    }
}
