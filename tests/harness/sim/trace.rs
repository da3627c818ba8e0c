//! What happened, as one number and, when asked for, as text. The number takes in every event with its
//! time: two runs with the same one went the same way.

use std::fmt::Arguments;

/// FNV-1a's parameters for 64 bits.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    tells: bool,
}

impl Trace {
    pub(crate) fn new(tells: bool) -> Self {
        Self { hash: OFFSET, tells }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn number(&mut self, n: u64) {
        self.hash = (self.hash ^ n).wrapping_mul(PRIME);
    }

    /// A line for people; costs nothing when nobody reads.
    pub(crate) fn tell(&self, now_us: u64, who: &str, what: Arguments<'_>) {
        if self.tells {
            println!("{:>10}.{:03} {who:<6} {what}", now_us / 1000, now_us % 1000);
        }
    }
}
