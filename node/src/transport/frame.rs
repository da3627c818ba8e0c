//! Frames of a peer connection, as pure functions over bytes: one type byte, the CRC-32 of type and
//! header in hexadecimal, a JSON header, and for [`Append`] and `Lines` the raw lines of the log, each
//! after a newline. Lines are passed on as they are and verified when they arrive; the header's CRC
//! does for acknowledged ids what a line's does for values (TCP's checksum lets one in 65536 damaged
//! segments pass). Nothing here reads or writes a socket, and no input panics.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use kv_core::command::VALUE_BYTES_CEILING;
use kv_core::entry::{Entry, EntryId, Epoch, LineError, LogPosition};
use kv_core::message::{Append, Hello, Message, Round, Seen};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::codec::LengthDelimitedCodec;

/// All else in a frame of one line: header, key (1 KiB, escaped up to sixfold), request ids, numbers.
const FRAME_OVERHEAD_BYTES: usize = 64 << 10;
/// Longest payload of a frame, either way: one line of the largest value fits.
pub(crate) const FRAME_BYTES_MAX: usize = VALUE_BYTES_CEILING + FRAME_OVERHEAD_BYTES;
/// Lines of one frame, unless a single line is longer: the receiver can begin to sync the first lines
/// of a long append while the others are on their way.
const FRAME_LINES_BYTES: usize = 1 << 20;
/// Digits of the CRC-32 (IEEE) of the type byte and the header.
const CHECKSUM_DIGITS: usize = 8;
/// The big-endian payload length in front of each frame.
pub(crate) const LENGTH_BYTES: usize = size_of::<u32>();

/// Why bytes are not a message, or a message not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of more than {FRAME_BYTES_MAX} bytes")]
    TooLarge,
    #[error("an empty frame")]
    Empty,
    #[error("frame type {0:#04x} is not known to this release")]
    UnknownType(u8),
    #[error("the header of a frame of type {0:?} does not match its checksum")]
    Checksum(char),
    #[error("the header of a frame of type {0:?} is not what it should be")]
    Header(char),
    #[error("lines behind a frame of type {0:?}")]
    UnexpectedLines(char),
    #[error("line {index} of a frame: {error}")]
    Line { index: usize, error: LineError },
}

/// The codec that both sides read with; its limit is checked before anything is allocated.
pub(crate) fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().length_field_type::<u32>().max_frame_length(FRAME_BYTES_MAX).new_codec()
}

/// The type byte: capitals ask or tell, small letters answer. Never reuse one.
mod kind {
    pub(super) const HEARTBEAT: u8 = b'H';
    pub(super) const HEARTBEAT_ACK: u8 = b'h';
    pub(super) const APPEND: u8 = b'A';
    pub(super) const APPEND_ACK: u8 = b'a';
    pub(super) const VOTE_REQUEST: u8 = b'V';
    pub(super) const VOTE_REPLY: u8 = b'v';
    pub(super) const TRANSFER_REQUEST: u8 = b'T';
    pub(super) const TIMEOUT_NOW: u8 = b't';
    pub(super) const NOT_A_MEMBER: u8 = b'N';
    pub(super) const ACCEPTED: u8 = b'C';
    pub(super) const STALE: u8 = b'S';
    pub(super) const SHOW: u8 = b'W';
    pub(super) const REFILL_REQUEST: u8 = b'R';
    pub(super) const REFILL_ANSWER: u8 = b'r';
    pub(super) const LINES_REQUEST: u8 = b'L';
    pub(super) const LINES: u8 = b'l';
}

#[derive(Serialize, Deserialize)]
struct AppendHeader {
    epoch: Epoch,
    round: Round,
    prev: LogPosition,
    committed: EntryId,
}

#[derive(Serialize, Deserialize)]
struct HeartbeatAckHeader {
    epoch: Epoch,
    round: Round,
}

#[derive(Serialize, Deserialize)]
struct EpochHeader {
    epoch: Epoch,
}

#[derive(Serialize, Deserialize)]
struct NotAMemberHeader {
    config_id: EntryId,
}

#[derive(Serialize, Deserialize)]
struct StaleHeader {
    seen: Seen,
    reason: String,
}

#[derive(Serialize, Deserialize)]
struct ShowHeader<'a> {
    hello: Cow<'a, Hello>,
    answer: bool,
}

#[derive(Serialize, Deserialize)]
struct RefillRequestHeader {
    epoch: Epoch,
    #[serde(default)]
    number: u64,
}

#[derive(Serialize, Deserialize)]
struct RefillAnswerHeader {
    epoch: Epoch,
    #[serde(default)]
    number: u64,
    until: EntryId,
}

#[derive(Serialize, Deserialize)]
struct RangeHeader {
    first: EntryId,
    last: EntryId,
}

#[derive(Serialize, Deserialize)]
struct LinesHeader {
    first: EntryId,
    last: EntryId,
    compacted: EntryId,
}

/// Appends to `out` the frames of a message, lengths included, and returns how many: entries that do
/// not fit one frame go into several, each a message of its own. Nothing is appended on an error.
pub(crate) fn encode(message: &Message, out: &mut BytesMut) -> Result<u64, FrameError> {
    match message {
        Message::Heartbeat(heartbeat) => put(out, kind::HEARTBEAT, heartbeat),
        &Message::HeartbeatAck { epoch, round } => put(out, kind::HEARTBEAT_ACK, &HeartbeatAckHeader { epoch, round }),
        Message::Append(append) => put_append(out, append),
        Message::AppendAck(ack) => put(out, kind::APPEND_ACK, ack),
        Message::VoteRequest(request) => put(out, kind::VOTE_REQUEST, request),
        Message::VoteReply(reply) => put(out, kind::VOTE_REPLY, reply),
        &Message::TransferRequest { epoch } => put(out, kind::TRANSFER_REQUEST, &EpochHeader { epoch }),
        &Message::TimeoutNow { epoch } => put(out, kind::TIMEOUT_NOW, &EpochHeader { epoch }),
        &Message::NotAMember { config_id } => put(out, kind::NOT_A_MEMBER, &NotAMemberHeader { config_id }),
        Message::Accepted(accepted) => put(out, kind::ACCEPTED, accepted),
        Message::Stale { seen, reason } => put(out, kind::STALE, &StaleHeader { seen: *seen, reason: reason.clone() }),
        Message::Show { hello, answer } => {
            put(out, kind::SHOW, &ShowHeader { hello: Cow::Borrowed(hello), answer: *answer })
        }
        &Message::RefillRequest { epoch, number } => {
            put(out, kind::REFILL_REQUEST, &RefillRequestHeader { epoch, number })
        }
        &Message::RefillAnswer { epoch, number, until } => {
            put(out, kind::REFILL_ANSWER, &RefillAnswerHeader { epoch, number, until })
        }
        &Message::LinesRequest { first, last } => put(out, kind::LINES_REQUEST, &RangeHeader { first, last }),
        Message::Lines { first, last, compacted, entries } => {
            put_lines(out, LinesHeader { first: *first, last: *last, compacted: *compacted }, entries)
        }
    }
}

fn put(out: &mut BytesMut, kind: u8, header: &impl Serialize) -> Result<u64, FrameError> {
    put_frame(out, kind, header, &[]).map(|()| 1)
}

/// A later frame continues below the last entry of the one before, as if the leader had sent two appends.
fn put_append(out: &mut BytesMut, append: &Append) -> Result<u64, FrameError> {
    let Append { epoch, round, mut prev, committed, ref entries } = *append;
    let mut frames = Frames::new(out, entries);
    loop {
        let (now, later) = frames.next_lines();
        frames.put(kind::APPEND, &AppendHeader { epoch, round, prev, committed }, now)?;
        match (now.last(), later.first()) {
            (Some(last), Some(next)) => prev = LogPosition { epoch: last.epoch, id: next.id.prev() },
            _ => return Ok(frames.count),
        }
    }
}

/// Frames that share a range of ids divide it without a gap: an id without a line is one not held.
fn put_lines(out: &mut BytesMut, header: LinesHeader, entries: &[Entry]) -> Result<u64, FrameError> {
    let LinesHeader { mut first, last, compacted } = header;
    let mut frames = Frames::new(out, entries);
    loop {
        let (now, later) = frames.next_lines();
        let last_here = later.first().map_or(last, |next| next.id.prev());
        frames.put(kind::LINES, &LinesHeader { first, last: last_here, compacted }, now)?;
        match later.first() {
            Some(next) => first = next.id,
            None => return Ok(frames.count),
        }
    }
}

/// One message that is being cut into frames.
struct Frames<'a> {
    out: &'a mut BytesMut,
    start: usize,
    rest: &'a [Entry],
    count: u64,
}

impl<'a> Frames<'a> {
    fn new(out: &'a mut BytesMut, rest: &'a [Entry]) -> Self {
        Self { start: out.len(), out, rest, count: 0 }
    }

    /// The entries of the next frame (at least one, if any is left), and those after it.
    fn next_lines(&mut self) -> (&'a [Entry], &'a [Entry]) {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.line.len() + 1;
            bytes <= FRAME_LINES_BYTES
        };
        let count = self.rest.iter().take_while(fits).count().max(1).min(self.rest.len());
        let (now, later) = self.rest.split_at(count);
        self.rest = later;
        (now, later)
    }

    fn put(&mut self, kind: u8, header: &impl Serialize, lines: &[Entry]) -> Result<(), FrameError> {
        put_frame(self.out, kind, header, lines).inspect_err(|_| self.out.truncate(self.start))?;
        self.count += 1;
        Ok(())
    }
}

fn put_frame(out: &mut BytesMut, kind: u8, header: &impl Serialize, lines: &[Entry]) -> Result<(), FrameError> {
    let lines_bytes: usize = lines.iter().map(|entry| entry.line.len() + 1).sum();
    if lines_bytes > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge);
    }
    let start = out.len();
    out.put_bytes(0, LENGTH_BYTES);
    out.put_u8(kind);
    out.put_bytes(b'0', CHECKSUM_DIGITS);
    serde_json::to_writer((&mut *out).writer(), header).expect("headers are plain data, and a buffer takes them");
    seal_header(&mut out[start + LENGTH_BYTES..]);
    out.reserve(lines_bytes);
    for entry in lines {
        out.put_u8(b'\n');
        out.put_slice(&entry.line);
    }
    close_frame(out, start)
}

/// Fills in the checksum of a payload that ends with its header.
pub(crate) fn seal_header(payload: &mut [u8]) {
    let (front, header) = payload.split_at_mut(1 + CHECKSUM_DIGITS);
    let digits = format!("{:08x}", checksum(front[0], header));
    front[1..].copy_from_slice(digits.as_bytes());
}

fn checksum(kind: u8, header: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[kind]);
    crc.update(header);
    crc.finalize()
}

/// Fills in the length of the frame that begins at `start`, or takes the frame back.
fn close_frame(out: &mut BytesMut, start: usize) -> Result<(), FrameError> {
    let payload_bytes = out.len() - start - LENGTH_BYTES;
    match u32::try_from(payload_bytes) {
        Ok(length) if payload_bytes <= FRAME_BYTES_MAX => {
            out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
            Ok(())
        }
        _ => {
            out.truncate(start);
            Err(FrameError::TooLarge)
        }
    }
}

/// The message in a frame's payload (without the length); lines are slices of it, each verified.
pub(crate) fn decode(payload: Bytes) -> Result<Message, FrameError> {
    if payload.len() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge);
    }
    let frame = Frame::split(payload)?;
    match frame.kind {
        kind::HEARTBEAT => frame.only().map(Message::Heartbeat),
        kind::HEARTBEAT_ACK => {
            frame.only().map(|HeartbeatAckHeader { epoch, round }| Message::HeartbeatAck { epoch, round })
        }
        kind::APPEND => frame.append(),
        kind::APPEND_ACK => frame.only().map(Message::AppendAck),
        kind::VOTE_REQUEST => frame.only().map(Message::VoteRequest),
        kind::VOTE_REPLY => frame.only().map(Message::VoteReply),
        kind::TRANSFER_REQUEST => frame.only().map(|EpochHeader { epoch }| Message::TransferRequest { epoch }),
        kind::TIMEOUT_NOW => frame.only().map(|EpochHeader { epoch }| Message::TimeoutNow { epoch }),
        kind::NOT_A_MEMBER => frame.only().map(|NotAMemberHeader { config_id }| Message::NotAMember { config_id }),
        kind::ACCEPTED => frame.only().map(Message::Accepted),
        kind::STALE => frame.only().map(|StaleHeader { seen, reason }| Message::Stale { seen, reason }),
        kind::SHOW => frame
            .only()
            .map(|ShowHeader { hello, answer }| Message::Show { hello: Box::new(hello.into_owned()), answer }),
        kind::REFILL_REQUEST => {
            frame.only().map(|RefillRequestHeader { epoch, number }| Message::RefillRequest { epoch, number })
        }
        kind::REFILL_ANSWER => {
            let message = |RefillAnswerHeader { epoch, number, until }| Message::RefillAnswer { epoch, number, until };
            frame.only().map(message)
        }
        kind::LINES_REQUEST => frame.only().map(|RangeHeader { first, last }| Message::LinesRequest { first, last }),
        kind::LINES => frame.lines(),
        unknown => Err(FrameError::UnknownType(unknown)),
    }
}

/// A payload taken apart: compact JSON has no newline, so the first one ends the header.
struct Frame {
    kind: u8,
    /// Checksum and JSON.
    header: Bytes,
    /// What stands behind the header's newline; None: there was none.
    body: Option<Bytes>,
}

impl Frame {
    fn split(payload: Bytes) -> Result<Self, FrameError> {
        let kind = *payload.first().ok_or(FrameError::Empty)?;
        Ok(match memchr::memchr(b'\n', &payload) {
            Some(0) => return Err(FrameError::UnknownType(kind)),
            Some(end) => Self { kind, header: payload.slice(1..end), body: Some(payload.slice(end + 1..)) },
            None => Self { kind, header: payload.slice(1..), body: None },
        })
    }

    fn header<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        let kind = char::from(self.kind);
        let (digits, header) = self.header.split_at_checked(CHECKSUM_DIGITS).ok_or(FrameError::Checksum(kind))?;
        if digits != format!("{:08x}", checksum(self.kind, header)).as_bytes() {
            return Err(FrameError::Checksum(kind));
        }
        serde_json::from_slice(header).map_err(|_| FrameError::Header(kind))
    }

    /// The header of a frame that has no lines.
    fn only<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        match self.body {
            None => self.header(),
            Some(_) => Err(FrameError::UnexpectedLines(char::from(self.kind))),
        }
    }

    fn append(&self) -> Result<Message, FrameError> {
        let AppendHeader { epoch, round, prev, committed } = self.header()?;
        Ok(Message::Append(Append { epoch, round, prev, committed, entries: self.entries()? }))
    }

    fn lines(&self) -> Result<Message, FrameError> {
        let LinesHeader { first, last, compacted } = self.header()?;
        Ok(Message::Lines { first, last, compacted, entries: self.entries()? })
    }

    fn entries(&self) -> Result<Vec<Entry>, FrameError> {
        let Some(body) = &self.body else { return Ok(Vec::new()) };
        body.split(|&byte| byte == b'\n')
            .enumerate()
            .map(|(index, line)| Entry::decode(body.slice_ref(line)).map_err(|error| FrameError::Line { index, error }))
            .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests;
