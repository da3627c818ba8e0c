//! The arithmetic of majorities: what is committed, who has won, what may be removed. Pure functions
//! with their tables; the operator uses them, too.
//!
//! | voters | majority | may fail |
//! |--------|----------|----------|
//! | 1      | 1        | 0        |
//! | 2      | 2        | 0        |
//! | 3      | 2        | 1        |
//! | 4      | 3        | 1        |
//! | 5      | 3        | 2        |
//! | 7      | 4        | 3        |

use crate::entry::EntryId;
use crate::mutant::{self, Mutant};

/// A learner may be promoted, and a voter counts as caught up, within this many entries of the commit.
pub const CAUGHT_UP_ENTRIES: u64 = 1000;

/// The smallest number of voters of which any two sets share a member.
pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// The highest id that a majority of the voters holds durably, given each voter's durable id.
/// With the ids sorted from the highest, that is the one at place `majority - 1`.
pub fn durable_on_majority(durable: &mut [EntryId]) -> EntryId {
    if durable.is_empty() {
        return EntryId::ZERO;
    }
    durable.sort_unstable_by(|a, b| b.cmp(a));
    let holders = majority(durable.len()) - usize::from(durable.len() > 1 && mutant::on(Mutant::CommitOnMinority));
    durable[holders - 1]
}

/// How an election stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tally {
    Open,
    Won,
    Lost,
}

/// `granted` and `refused` count votes of voters alone.
pub fn tally(voters: usize, granted: usize, refused: usize) -> Tally {
    if granted >= majority(voters) - usize::from(voters > 1 && mutant::on(Mutant::ElectByMinority)) {
        Tally::Won
    } else if refused > voters - majority(voters) {
        Tally::Lost
    } else {
        Tally::Open
    }
}

/// A voter may go only when those that remain still have a majority that is reachable and caught up.
pub fn safe_to_remove(remaining_voters: usize, remaining_caught_up: usize) -> bool {
    remaining_voters > 0 && (remaining_caught_up >= majority(remaining_voters) || mutant::on(Mutant::RemoveUnsafely))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(ids: &[u64]) -> u64 {
        let mut ids: Vec<_> = ids.iter().copied().map(EntryId).collect();
        durable_on_majority(&mut ids).0
    }

    #[test]
    fn the_committed_id_is_what_a_majority_holds() {
        assert_eq!(committed(&[]), 0);
        assert_eq!(committed(&[5]), 5);
        assert_eq!(committed(&[5, 3]), 3);
        assert_eq!(committed(&[5, 3, 9]), 5);
        assert_eq!(committed(&[9, 9, 1, 1]), 1);
        assert_eq!(committed(&[1, 2, 3, 4, 5]), 3);
    }

    #[test]
    fn an_election_is_won_by_a_majority_and_lost_when_none_is_left() {
        assert_eq!(tally(1, 1, 0), Tally::Won);
        assert_eq!(tally(3, 1, 1), Tally::Open);
        assert_eq!(tally(3, 2, 0), Tally::Won);
        assert_eq!(tally(3, 1, 2), Tally::Lost);
        assert_eq!(tally(4, 2, 1), Tally::Open);
        assert_eq!(tally(4, 2, 2), Tally::Lost);
    }

    #[test]
    fn the_last_voter_and_a_needed_voter_stay() {
        assert!(!safe_to_remove(0, 0));
        assert!(safe_to_remove(1, 1));
        assert!(!safe_to_remove(2, 1));
        assert!(safe_to_remove(4, 3));
    }
}
