//! What a run has really reached: a counter for each fault and each rare path. A simulator that does not
//! count proves less than it seems to. The normal test run fails when one of these was never reached.

use std::fmt;
use std::ops::AddAssign;

use super::Profile;

macro_rules! reached {
    ($($name:ident => $words:literal,)*) => {
        /// One fault or rare path.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Reached { $($name,)* }

        const WORDS: &[&str] = &[$($words,)*];
        const ALL: &[Reached] = &[$(Reached::$name,)*];
    };
}

reached! {
    CrashOfProcess => "a process crashed",
    CrashWithPower => "a machine lost its power",
    CrashInCall => "a machine stopped within a call to its disk",
    KilledInCall => "a process was killed within a call to its disk",
    KilledInRecovery => "a process was killed within its recovery",
    CrashInRecovery => "a machine stopped within its recovery",
    CrashInInstall => "a machine or a process stopped while it installed a snapshot",
    CrashInReceiving => "a machine or a process stopped while it received a snapshot",
    CrashInCompaction => "a machine or a process stopped while it compacted",
    WriteFailed => "a write failed",
    SyncFailed => "an fsync failed",
    ReadFailed => "a read failed",
    ReadFailedInRecovery => "a read failed in a recovery",
    ChangeFailed => "a file could not be made, renamed, removed or cut",
    StartAfterFailedSync => "a process started on pages that a failed fsync gave up",
    TornTail => "a torn tail was cut",
    DiskFull => "a write found no room",
    WriteRefusedFull => "a client was told that storage is full",
    RoomAgain => "a full disk had room again",
    BitFlipped => "a bit flipped at rest",
    ActiveDamaged => "a bit flipped in the active segment",
    BaseDamaged => "a file of earlier versions or of request ids was damaged at rest",
    TwoDamaged => "two sealed files of a volume were damaged at once",
    HintFlipped => "a bit flipped in the hint of what is durable",
    ManifestRefused => "a volume with a damaged manifest was not opened, and emptied",
    SegmentVanished => "a sealed file vanished",
    Rotted => "a bit flipped under a process that ran",
    BaseRotted => "a bit flipped in a file of earlier versions or of request ids under a process that ran",
    RotFound => "a running process found damage at rest",
    RotHandedOver => "a leader with damage at rest handed over",
    RotMended => "a damaged file was made again, byte for byte",
    DamageFound => "recovery found damage",
    Quarantined => "a member started in quarantine",
    Refilled => "a member was refilled and trusted again",
    VolumeLost => "a volume was lost",
    VolumeLostWhileBehind => "a voter's volume was lost while another voter was behind",
    RefilledByLines => "a member was refilled by lines alone",
    RefilledBySnapshot => "a member was refilled by a snapshot",
    StartedTwice => "one incarnation of a volume was started twice",
    VolumeRestored => "an older copy of a volume was put back",
    LeftForSnapshot => "a running member with damage left for a snapshot",
    StaleVolumeRefused => "an older volume was known and refused",
    CopyStarted => "a copy of a volume was started beside its original",
    CopyRefusedBeside => "a copy was refused beside its original",
    CopyRefilled => "a copy was refilled beside its original, and stopped",
    OriginalSuperseded => "an original learned that a copy of it runs, and stayed out",
    CopySuperseded => "a copy learned that its original runs, and stayed out",
    OriginalStartedAgain => "an original was started again when its copy was gone",
    Paused => "a node was paused",
    WallClockJumped => "a wall clock jumped",
    CutOneWay => "a link was cut one way",
    CutOff => "a node was cut off",
    ConnectionBroken => "a connection broke",
    DialRefused => "a dial was refused after a connection",
    MessageLost => "a message was lost",
    MessageTwice => "a message came twice",
    MessageOvertook => "a message overtook another",
    Elected => "a leader was elected",
    Deposed => "a leader was deposed",
    TailCut => "a divergent tail was cut",
    EpochChanged => "a follower followed a new leader",
    SnapshotSent => "a snapshot was sent",
    SnapshotInterrupted => "a snapshot was broken off on its way",
    SnapshotInstalled => "a snapshot was installed",
    Compacted => "a log was compacted",
    CompactionRefused => "a compaction was refused since the log had changed",
    FetchedFromDisk => "a follower got entries from the leader's disk",
    LearnerAdded => "a learner was added",
    VoterAdded => "a learner became a voter",
    VoterRemoved => "a voter was removed",
    ReplacementBegun => "the removal of a lost voter was committed, with who comes in its place",
    ReplacementEnded => "who came in the place of a lost voter was made a voter",
    ReplacementTakenOver => "a later leader ended a replacement that was half done",
    MemberReplaced => "a lost member was replaced",
    ReplacementByOperator => "a replacement was asked for under the old name",
    TransferSucceeded => "leadership was handed over to a node that was told to lead",
    HandedOver => "a leader that was about to end handed over",
    TransferTimedOut => "a hand-over was given up",
    BehindRefused => "a node told to lead was named behind",
    DirectiveRefused => "a directive to lead with other identities was refused",
    MembershipMismatched => "a change of members with other identities was refused",
    SettingsMismatched => "a change of settings with other identities was refused",
    BootstrapMismatched => "a bootstrap with other identities was refused",
    DirectiveLate => "an order that was decided on an earlier configuration was refused",
    BootstrapRepeated => "a bootstrap was repeated",
    SettingsChanged => "settings of the group were changed",
    Tuned => "a node's heartbeats were changed while it ran",
    TuningRefused => "a heartbeat time-out below the interval was refused",
    FailoverSwitched => "a node's failover was switched while it ran",
    MajorityLost => "a majority was lost for good",
    RecoveredByHand => "a survivor was recovered by hand",
    RecoveryRefused => "a recovery by hand was refused beside a leader",
    RecoveryBesideMajority => "a recovery by hand was asked for beside a majority without a leader",
    RecoveryMismatched => "a recovery by hand with other identities was refused",
    RecoveredGrew => "a recovered group had as many voters again",
    StrangerSpoke => "a member of a former group spoke to one of its successor",
    FormerVolumeReturned => "a volume of a former group was put back",
    FormerMemberEmptied => "a member of a former group was emptied",
    Forwarded => "a request was forwarded to the leader",
    ForwardedAgain => "a forward was sent again after a new epoch",
    RequestRetried => "a client asked again with its request id",
    WriteCameLate => "a write arrived after its client had given that attempt up",
    Replayed => "a repeated request was answered from the table",
    RequestReused => "a request id that was used for something else was refused",
    ReplayedAfterFailover => "a repeated request was answered by a later leader",
    OutcomeUnknown => "a client was told that the outcome is unknown",
    NoAnswer => "a client got no answer in time",
    ConflictRefused => "a precondition did not hold",
    ReadLocal => "a local read was answered",
    ReadLinearizable => "a linearizable read was answered",
    ReadFromId => "a read that asked for an id waited until it was applied",
    ReadStaleRefused => "a read was refused for want of a confirmed leader",
    HistoryRead => "earlier versions were read from the log",
    HistoryAsked => "a client read earlier versions of a key",
    EntityRefused => "a precondition on the entity did not hold",
    HistoryJudged => "a history of clients was judged as a whole",
    HistoryUndecided => "the search for an order of a history of clients was given up",
    RequestForgotten => "a request id took effect again after it was forgotten",
    BackupChecked => "a backup was replayed and compared",
    AuditedDisk => "a disk was recovered as after a power loss, and compared",
}

/// Of the tight world alone.
const TIGHT_ONLY: &[Reached] = &[Reached::ActiveDamaged, Reached::StartedTwice];

/// That is no aim.
const NO_AIM: &[Reached] = &[Reached::HistoryUndecided];

/// Of a hundred histories of clients.
const UNDECIDED_PERCENT_MAX: u64 = 2;

/// How often each was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage(Vec<u64>);

impl Default for Coverage {
    fn default() -> Self {
        Self(vec![0; ALL.len()])
    }
}

impl Coverage {
    pub(crate) fn count(&mut self, reached: Reached) {
        self.0[reached as usize] += 1;
    }

    pub fn of(&self, reached: Reached) -> u64 {
        self.0[reached as usize]
    }

    /// What was never reached in a world in which it can be.
    pub fn never_in(&self, profile: Profile) -> Vec<Reached> {
        let can_be = |reached: &Reached| profile == Profile::Tight || !TIGHT_ONLY.contains(reached);
        self.never().into_iter().filter(can_be).collect()
    }

    /// What was never reached.
    pub fn never(&self) -> Vec<Reached> {
        let is_aim = |reached: &Reached| !NO_AIM.contains(reached);
        ALL.iter().copied().filter(|reached| self.of(*reached) == 0 && is_aim(reached)).collect()
    }

    /// What the judge of the histories was too slow for, when that is more than it may leave to the other checks.
    pub fn too_many_undecided(&self) -> Option<String> {
        let undecided = self.of(Reached::HistoryUndecided);
        let all = self.of(Reached::HistoryJudged) + undecided;
        let is_too_much = undecided * 100 > all * UNDECIDED_PERCENT_MAX;
        is_too_much.then(|| format!("{undecided} of {all} histories of clients were not decided"))
    }
}

impl AddAssign<&Coverage> for Coverage {
    fn add_assign(&mut self, other: &Coverage) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine += theirs);
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ALL.iter().try_for_each(|reached| writeln!(f, "{:>10}  {}", self.of(*reached), WORDS[*reached as usize]))
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(WORDS[*self as usize])
    }
}
