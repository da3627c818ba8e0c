//! What happened, as one number and, when asked for, as text. The number takes in every event with its time, what is
//! sent, each line that a log is given, and the state at the end: two runs with the same one went the same way.

use std::fmt::Arguments;

use kv_core::message::{Accepted, AppendResult, Message};

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

    /// By its CRC, with which it ends.
    pub(crate) fn line(&mut self, line: &[u8]) {
        let end = line.last_chunk::<8>().expect("a line has a CRC");
        self.number(u64::from_le_bytes(*end));
    }

    /// What it says, but for entries: those are lines of its sender's log.
    pub(crate) fn message(&mut self, message: &Message) {
        let numbers = match message {
            Message::Heartbeat(heartbeat) => [1, heartbeat.epoch.0, heartbeat.durable.0, heartbeat.applied.0],
            Message::HeartbeatAck { epoch, round } => [2, epoch.0, round.0, 0],
            Message::Append(append) => [3, append.round.0, append.prev.id.0, append.entries.len() as u64],
            Message::AppendAck(ack) => match ack.result {
                AppendResult::Durable(id) => [4, ack.epoch.0, ack.round.0, id.0],
                AppendResult::Mismatch { rejected, hint } => [5, ack.epoch.0, rejected.0, hint.id.0],
                AppendResult::NeedSnapshot => [6, ack.epoch.0, ack.round.0, 0],
            },
            Message::VoteRequest(request) => [7, request.epoch.0, request.last.id.0, request.start_id],
            Message::VoteReply(reply) => [8, reply.epoch.0, u64::from(reply.granted), reply.start_id],
            Message::TransferRequest { epoch } => [9, epoch.0, 0, 0],
            Message::TimeoutNow { epoch } => [10, epoch.0, 0, 0],
            Message::NotAMember { config_id } => [11, config_id.0, 0, 0],
            Message::Accepted(Accepted { incarnation, start_id, voters }) => {
                [12, *incarnation, *start_id, voters.as_ref().map_or(0, |voters| voters.config_id.0)]
            }
            Message::Stale { seen, .. } => [13, seen.incarnation, seen.promise.0, seen.durable.id.0],
            Message::Show { hello, .. } => [14, hello.incarnation, hello.promise.epoch.0, hello.durable.id.0],
            Message::RefillRequest { epoch, number } => [15, epoch.0, *number, 0],
            Message::RefillAnswer { epoch, number, until } => [16, epoch.0, *number, until.0],
            Message::LinesRequest { first, last } => [17, first.0, last.0, 0],
            Message::Lines { first, last, compacted, .. } => [18, first.0, last.0, compacted.0],
        };
        numbers.into_iter().for_each(|n| self.number(n));
    }

    /// A line for people; costs nothing when nobody reads.
    pub(crate) fn tell(&self, now_us: u64, who: &str, what: Arguments<'_>) {
        if self.tells {
            println!("{:>10}.{:03} {who:<6} {what}", now_us / 1000, now_us % 1000);
        }
    }
}
