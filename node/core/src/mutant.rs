//! Rules that tests break on purpose, to see that somebody notices: each [`Mutant`] names one, and stands
//! in the code at the place where that rule is kept. Without the feature `mutants` every [`on`] is the
//! constant `false` and leaves nothing behind. With it, one is switched on by [`with`] alone, for the calling
//! thread, and only tests call that (docs/decisions/0009-rules-are-broken-where-they-are-kept.md).

macro_rules! mutants {
    ($(#[doc = $rule:literal] $name:ident,)*) => {
        /// One rule, broken. What each says is what must hold, and does not while it is on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Mutant {
            $(#[doc = $rule] $name,)*
        }

        #[cfg(feature = "mutants")]
        impl Mutant {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// The rule that it breaks.
            pub fn rule(self) -> &'static str {
                match self { $(Self::$name => $rule,)* }.trim_start()
            }
        }
    };
}

mutants! {
    // Promises and votes.
    /// A vote goes only to a candidate whose log is not behind the voter's.
    SkipVoteRestriction,
    /// One vote an epoch.
    VoteTwice,
    /// A promise is durable before it is told.
    VoteBeforePromiseIsDurable,
    /// The own vote counts only when its fsync has returned.
    CountOwnVoteUnsynced,
    /// A vote counts only in the campaign that it was asked for.
    CountStaleVote,
    /// Only a majority's promises make a leader.
    ElectByMinority,
    /// Nothing older than the own promise is followed.
    FollowOlderLeader,
    /// An epoch is promised durably before it is claimed.
    ClaimEpochBeforePromise,
    /// Without failover of its own a member never campaigns unless it was told to.
    CampaignUntold,
    /// A campaign by time-out means nothing to a voter that hears its leader.
    VoteWhileLed,
    /// An uninitialised member never votes.
    UninitialisedVotes,

    /// A campaign by time-out leaves the one before the time that its promise needs, and more with each.
    CampaignOverCampaign,

    // Log and acknowledgements.
    /// An entry is durable before it is acknowledged.
    AckBeforeFsync,
    /// Only what was matched with this leader in this epoch is acknowledged.
    AckUnmatched,
    /// An acknowledgement counts only in the epoch that it was given in.
    CountStaleAck,
    /// Positions in heartbeats are information and never count.
    CountHeartbeatPositions,
    /// Entries are taken only behind a position that both logs hold.
    SkipLogMatching,
    /// Entries that differ from the leader's are cut before its own are taken.
    KeepConflictingTail,
    /// Only entries that differ are cut: a late append takes nothing back.
    CutMatchingTail,
    /// Entries above the commit may be committed as well: following somebody cuts none of them.
    TruncateToCommit,
    /// A leader's commit id counts here only as far as the logs are known to match.
    BelieveCommitUnmatched,
    /// A cut lowers what appends under way will have made durable.
    CutForgetsWhatIsUnderWay,

    // Commit.
    /// Only entries of the own epoch are committed by counting.
    CommitOldEpoch,
    /// Only what a majority of the voters holds is committed.
    CommitOnMinority,
    /// The leader's own entry counts only when its own fsync has returned.
    CommitOwnUnsynced,
    /// Learners count in no quorum.
    CountLearners,
    /// What a quarantined member holds counts in no quorum.
    CountUnfit,
    /// Nothing is applied that is not durable here.
    ApplyAheadOfDisk,

    // Leading.
    /// A new leader appends an entry of its own epoch, to commit what it inherited.
    NoEpochStart,
    /// A new leader's time goes on from all that it inherited, not only from what it has applied.
    TimeByApplied,
    /// On an empty log it appends none: the first write of a group has id 1.
    EpochStartOnEmptyLog,
    /// A new leader decides no write before it has applied all that it inherited.
    DecideBeforeInherited,
    /// A new leader decides no linearizable read before it has applied all that it inherited.
    ReadBeforeInherited,
    /// A deposed leader never says of a pending write that it was not proposed.
    DeposedSaysNotProposed,
    /// A deposed leader answers no default read before it has heard who leads.
    DeposedAnswersReads,
    /// Where members campaign by themselves, a leader that no majority is heard by steps down.
    LeadUnheard,
    /// The only voter sends nothing that is not on its disk.
    SendUndurableAlone,
    /// A linearizable read is confirmed by a majority.
    ReadWithoutRound,
    /// A read waits for a round that began after it arrived.
    ReadByEarlierRound,
    /// An answer to a round counts only in its epoch.
    CountStaleRound,
    /// A lease counts from the sending of the round, not from its answers.
    LeaseFromAnswer,
    /// A leader that no majority answers stops answering reads.
    LeaseNeverLapses,
    /// A refusal goes out only when all that it was decided on is committed.
    RefuseFromInFlight,
    /// A refusal goes out only when a round begun after the request has confirmed the leader.
    RefuseUnconfirmed,
    /// A request id that comes with something else is no copy of the first.
    ReuseIsCopy,
    /// Every copy of a request in flight is answered.
    CopiesUnanswered,
    /// On a full disk writes are refused before anything is written.
    WriteWhenFull,
    /// On a full disk deletes go on.
    RefuseDeletesWhenFull,
    /// Leadership is handed over only to one that is durable up to the last id.
    HandOverTooEarly,
    /// A hand-over without success is given up.
    NeverGiveUpHandOver,
    /// Entries are timed by the leader's monotonic clock, never by a wall clock.
    TimeByWallClock,

    // Membership.
    /// A member is founded once.
    FoundTwice,
    /// A member says that it is founded only when that is on its disk.
    AnswerBeforeFounded,
    /// No change of voters before an entry of the leader's own epoch is committed.
    ChangeBeforeOwnEpoch,
    /// One change of voters at a time.
    ChangeWhileChanging,
    /// A replacement removes the old voter and adds the new one by entries of their own.
    ReplaceInOneEntry,
    /// A learner is made a voter only when it has caught up.
    PromoteBeforeCaughtUp,
    /// A voter is removed only while a majority of those that remain is reachable and caught up.
    RemoveUnsafely,
    /// Whoever a change of voters rests on has answered since it was asked for.
    ChangeUnanswered,
    /// A configuration that is cut is in force no more.
    KeepCutConfiguration,
    /// A name is refused to others while its member was heard within the time-out.
    TakeNameOfTheLiving,
    /// A directive is carried out only where, and on what, it was decided.
    IgnoreTarget,
    /// A member that is being removed gets nothing from the entry on that removes it, until that is committed.
    SendRemovalToTheRemoved,

    // Recovery by hand, and live settings.
    /// Nobody is recovered by hand who leads or hears a leader.
    RecoverBesideLeader,
    /// Nor who hears, with itself, a majority that could elect.
    RecoverBesideMajority,
    /// A recovery by hand is carried out only in the epoch that it was decided on.
    RecoverAtAnyEpoch,
    /// A recovery by hand is durable before it is answered.
    AnswerRecoveryUndurable,
    /// Members of another group are told so, and nothing else.
    SpeakToOtherGroups,
    /// No configuration from before a recovery by hand is in force again.
    RecoveryKeepsConfiguration,
    /// A compaction that began before a recovery by hand brings no configuration back.
    CompactionUndoesRecovery,
    /// A heartbeat time-out is above the interval.
    TimeoutBelowInterval,
    /// A new heartbeat interval is in force at once.
    TuneLater,

    // Identity.
    /// A volume older than what was seen of its member is refused.
    AcceptRestoredVolume,
    /// A second start of one incarnation is refused.
    AcceptCopiedVolume,
    /// Nothing counts that a member says as another start than the one accepted last.
    CountRefusedStart,
    /// Who learns that another process of its member was accepted after it stays out until it is started again.
    SupersededComesBack,
    /// A member neither votes nor acknowledges before it has shown itself to a majority.
    ActUnshown,
    /// An acceptance is of one start of a member.
    CountAcceptanceOfAnotherStart,
    /// What was seen of a member is durable before it is accepted.
    AcceptBeforeSeenIsDurable,
    /// Only what is on disk is shown.
    ShowUndurable,
    /// A start takes no entries before enough voters have accepted it.
    TakeEntriesUnaccepted,
    /// A start promises no later epoch before enough voters have accepted it.
    PromiseUnaccepted,
    /// A start goes by the newest voters that it was told of.
    CountPastVoters,
    /// A member that is being refilled asks at each start up to where.
    KeepGoalOfFormerStart,
    /// A quarantined member that may not vote does not.
    QuarantinedVotes,
    /// A vote that a copied volume knows of stands when it is found out.
    ReplaceKnownVote,
    /// A quarantined member confirms no leader.
    QuarantinedConfirms,
    /// A quarantined member never campaigns.
    QuarantinedCampaigns,
    /// A quarantined member serves nothing.
    QuarantinedServes,
    /// A quarantine ends only when all that the leader had when it was asked is held.
    EndQuarantineEarly,
    /// A quarantine is remembered across restarts.
    ForgetQuarantineAtRestart,
    /// A member that left for a snapshot comes back with all that it had acknowledged.
    LeaveWithLess,
    /// A member leaves for a snapshot only while the others are a majority without it.
    LeaveTheOthersTooFew,
    /// Only the present leader says up to where a quarantined member must be refilled.
    RefillFromFollower,
    /// A leader says so only when a majority has confirmed it since it was asked.
    RefillUnconfirmed,
    /// The member that asks is not counted for that: it may leave with the answer.
    CountWhoLeaves,

    // Snapshots.
    /// A snapshot replaces the state, and is never merged with it.
    MergeSnapshot,
    /// A snapshot that appends have overtaken is not installed.
    InstallOvertakenSnapshot,
    /// A snapshot holds only what is applied.
    SnapshotPastApplied,
    /// Deduplication is part of a snapshot.
    ForgetSessionsInSnapshot,
    /// History is part of a snapshot.
    ForgetHistoryInSnapshot,
    /// A snapshot without its end is not taken.
    TakePartialSnapshot,

    // Applied state and compaction.
    /// A request has one effect.
    ForgetRequests,
    /// A write whose precondition fails when it is applied changes nothing.
    ApplyRefused,
    /// An entry that was refused supersedes nothing in a compaction.
    RefusedEntryWinsCompaction,
    /// What was refused above the horizon is refused again on replay.
    ForgetRefusedInBase,
    /// Only applied entries are compacted.
    CompactAboveApplied,
    /// Compaction does not pass a live voter's durable id.
    CompactPastVoter,
    /// Time in the log goes on after a compaction.
    CompactionForgetsTime,
    /// Compaction keeps what was current at the horizon of keys that were written since.
    CompactionForgetsWrittenKeys,
    /// A DELETE supersedes the value of its key in a compaction.
    CompactionForgetsDelete,
    /// A recovery never shows a state from before the one that the lines of a base were chosen by.
    SwapWithoutCommitted,
    /// Deduplication survives compaction.
    CompactionForgetsSessions,
    /// The configuration survives compaction.
    CompactionForgetsConfiguration,

    // Disk.
    /// Lines are synced before they are called durable.
    SkipSync,
    /// A sync is never tried again after one has failed.
    RetryFailedSync,
    /// What a process left in the page cache is not trusted: the active segment is copied at a start.
    TrustPageCache,
    /// A member of a group applies at a start only what it knows to be committed.
    ApplyPastCommittedAtRestart,
    /// A bad line at or below a known durable id is damage, never a torn tail.
    TakeDamageForTornTail,
    /// A line is believed only with its checksum.
    BelieveBadChecksum,
    /// A member that lost lines by damage is quarantined.
    DamagedWithoutQuarantine,
    /// A manifest is synced before it takes the place of the old one.
    StoreManifestUnsynced,
    /// A repaired file is in its place durably before it is called repaired.
    RepairUnsynced,
    /// Readers use a repaired file from its repair on.
    ReadersKeepDamagedFile,
    /// A cut tail is saved aside.
    CutWithoutSaving,
}

#[cfg(feature = "mutants")]
pub use switch::{Broken, on, with, without};

/// These show only where the log holds entries that apply refuses. A leader foresees what apply will decide, and orders none
/// of them; with one of these on it orders everything, which breaks nothing: apply has the last word.
pub fn orders_what_will_be_refused() -> bool {
    on(Mutant::ApplyRefused) || on(Mutant::RefusedEntryWinsCompaction) || on(Mutant::ForgetRefusedInBase)
}

/// Whether this rule is to be broken here and now.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn on(_: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
mod switch {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
        static TIMES: Cell<u64> = const { Cell::new(0) };
    }

    /// What came of running with a rule broken.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Broken<T> {
        pub result: T,
        /// How often the code came to where it broke the rule.
        pub times: u64,
    }

    struct SwitchedOn;

    impl Drop for SwitchedOn {
        fn drop(&mut self) {
            ON.set(None);
        }
    }

    /// Runs `f` with one rule broken on this thread, and no other.
    pub fn with<T>(mutant: Mutant, f: impl FnOnce() -> T) -> Broken<T> {
        assert_eq!(ON.get(), None, "one mutant at a time");
        TIMES.set(0);
        ON.set(Some(mutant));
        let _off_also_on_panic = SwitchedOn;
        Broken { result: f(), times: TIMES.get() }
    }

    /// Runs `f` with all rules kept: for who judges beside one that breaks them.
    pub fn without<T>(f: impl FnOnce() -> T) -> T {
        let broken = ON.replace(None);
        let result = f();
        ON.set(broken);
        result
    }

    /// Whether this rule is to be broken here and now.
    #[inline]
    pub fn on(mutant: Mutant) -> bool {
        let on = ON.get() == Some(mutant);
        if on {
            TIMES.set(TIMES.get() + 1);
        }
        on
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        #[allow(clippy::disallowed_methods, reason = "that another thread sees nothing needs another thread")]
        fn a_mutant_is_on_only_inside_and_only_on_its_thread() {
            let one = Mutant::VoteTwice;
            let elsewhere = move || std::thread::spawn(move || on(one)).join().ok();
            let broken = with(one, || (on(one), on(Mutant::AckBeforeFsync), elsewhere()));
            assert_eq!(broken, Broken { result: (true, false, Some(false)), times: 1 });
            assert!(!on(one));
            let panicked = std::panic::catch_unwind(|| with(one, || panic!("on purpose")));
            assert!(panicked.is_err() && !on(one));
        }
    }
}
