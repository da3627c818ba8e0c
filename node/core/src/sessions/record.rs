//! One remembered request, its line in the sessions file, and the digest that tells a retry from
//! another request under the same id. Both are formats: they may not change without a new member.
//!
//! `{"session":14,"ts":1700000000000,"operation":"SET","client_id":"c","request_id":"r","key":"key6","version":1,"digest":"00c0ffee00c0ffee","crc":1}`
//!
//! The members stand in this order, without whitespace; crc as in [`crate::entry`].

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::command::{Change, Entity, Key, OperationKind, Precondition, RequestId};
use crate::contract::Written;
use crate::entry::line::{Cursor, LineWriter};
use crate::entry::{EntryId, LineError, seal_line, verify_line};

/// The result of a request that took effect, and all that a replay needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    pub request: RequestId,
    /// SET or DELETE.
    pub operation: OperationKind,
    pub id: EntryId,
    pub ts_ms: u64,
    pub key: Key,
    /// The version made by a SET; 0 for a DELETE.
    pub version: u64,
    /// See [`request_digest`].
    pub digest: u64,
}

/// "kvcluste", "request1" as big-endian integers. Pinned: records on disk and other members compare with it.
const DIGEST_KEYS: (u64, u64) = (0x6b76_636c_7573_7465, 0x7265_7175_6573_7431);

/// Tells whether two requests under one id ask for the same. SipHash-1-3 with pinned keys over, integers
/// little-endian: length of the key (8 bytes), key; 1 and length (8) and bytes of the value for a SET, 0 for a
/// DELETE; 1 and the version (8), or 0 without; 0 to 3 for any, id, present, absent, and the id (8, or 0).
pub fn request_digest(key: &Key, change: &Change, precondition: &Precondition) -> u64 {
    let value = match change {
        Change::Set(value) => Some(value.as_bytes()),
        Change::Delete => None,
    };
    digest_write(key, value, precondition)
}

/// [`request_digest`] of a write that was taken apart; no value: a DELETE.
pub(crate) fn digest_write(key: &Key, value: Option<&[u8]>, precondition: &Precondition) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(DIGEST_KEYS.0, DIGEST_KEYS.1);
    write_bytes(&mut hasher, key.as_str().as_bytes());
    hasher.write(&[u8::from(value.is_some())]);
    if let Some(value) = value {
        write_bytes(&mut hasher, value);
    }
    let Precondition { version, entity } = precondition;
    hasher.write(&[u8::from(version.is_some())]);
    if let Some(version) = version {
        hasher.write(&version.to_le_bytes());
    }
    let (tag, id) = match entity {
        Entity::Any => (0, EntryId::ZERO),
        Entity::Is(id) => (1, *id),
        Entity::Present => (2, EntryId::ZERO),
        Entity::Absent => (3, EntryId::ZERO),
    };
    hasher.write(&[tag]);
    hasher.write(&id.0.to_le_bytes());
    hasher.finish()
}

fn write_bytes(hasher: &mut SipHasher13, bytes: &[u8]) {
    hasher.write(&(bytes.len() as u64).to_le_bytes());
    hasher.write(bytes);
}

impl SessionRecord {
    /// The result that a replay is answered with.
    pub fn written(&self) -> Written {
        Written { id: self.id, operation: self.operation, key: self.key.clone(), version: self.version }
    }

    /// The line, CRC included, without the newline.
    pub fn encode(&self) -> Vec<u8> {
        let Self { request, operation, id, ts_ms, key, version, digest } = self;
        let payload = key.as_str().len() + request.client_id.len() + request.request_id.len();
        let mut w = LineWriter::with_payload(payload);
        w.number("{\"session\":", id.0);
        w.number(",\"ts\":", *ts_ms);
        w.raw(b",\"operation\":\"");
        w.raw(operation_name(*operation).as_bytes());
        w.text("\",\"client_id\":", &request.client_id);
        w.text(",\"request_id\":", &request.request_id);
        w.text(",\"key\":", key.as_str());
        w.number(",\"version\":", *version);
        w.raw(b",\"digest\":\"");
        w.raw(format!("{digest:016x}\"").as_bytes());
        seal_line(w.out)
    }

    /// Verifies and parses a line without its newline.
    pub fn decode(line: &[u8]) -> Result<Self, LineError> {
        let mut cursor = Cursor { text: verify_line(line)?, at: 0 };
        cursor.need("{\"session\":")?;
        let id = EntryId(cursor.counter()?);
        cursor.need(",\"ts\":")?;
        let ts_ms = cursor.counter()?;
        cursor.need(",\"operation\":")?;
        let operation = operation_named(&cursor.string()?)?;
        cursor.need(",\"client_id\":")?;
        let client_id = cursor.string()?;
        cursor.need(",\"request_id\":")?;
        let request =
            RequestId::new(&client_id, &cursor.string()?).map_err(|_| LineError::Malformed("request id length"))?;
        cursor.need(",\"key\":")?;
        let key = Key::new(&cursor.string()?).map_err(|_| LineError::Malformed("key length"))?;
        cursor.need(",\"version\":")?;
        let version = cursor.counter()?;
        cursor.need(",\"digest\":")?;
        let digest = parse_digest(&cursor.string()?)?;
        cursor.end()?;
        Ok(Self { request, operation, id, ts_ms, key, version, digest })
    }
}

fn operation_name(operation: OperationKind) -> &'static str {
    match operation {
        OperationKind::Set => "SET",
        OperationKind::Delete => "DELETE",
        OperationKind::Get => unreachable!("a GET is no entry, so apply remembers none"),
    }
}

fn operation_named(name: &str) -> Result<OperationKind, LineError> {
    match name {
        "SET" => Ok(OperationKind::Set),
        "DELETE" => Ok(OperationKind::Delete),
        other => Err(LineError::UnknownOperation(other.to_owned())),
    }
}

fn parse_digest(text: &str) -> Result<u64, LineError> {
    let well_formed = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let digest = well_formed.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    digest.ok_or(LineError::Malformed("digest is not 16 hexadecimal digits"))
}
