//! The one encoding of an entry: a line of JSON with its CRC last, shared by the log, the wire and
//! the simulation. Encoding computes the CRC; decoding verifies it and never repairs it. A line is
//! encoded once, by the leader that ordered it; everyone else passes the same bytes on.
//!
//! `{"id":14,"epoch":1,"operation":"SET","key":"key6","value":"myvalue","version":1,"crc":4229889148}`
//!
//! The members stand in this order, without whitespace; those in brackets are absent when unset:
//! id, epoch, operation, key, value, [version], [if_version], [if_id | if_present | if_absent],
//! [client_id, request_id], [ts], crc. The CRC-32 (IEEE) is over the line with `,"crc":N` cut out.

pub(crate) mod line;

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::command::{Entity, Key, OperationKind, Precondition, RequestId, Value};
use crate::group::{Configuration, FeatureLevel, MemberId, Settings};
pub use line::{COUNTER_MAX, LineError, seal_line, verify_line};
use line::{Cursor, LineWriter};

/// The position of an entry in the log, and the `id` of the HTTP API. 0: before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntryId(#[serde(deserialize_with = "line::counter")] pub u64);

impl EntryId {
    pub const ZERO: Self = Self(0);

    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    #[must_use]
    pub fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Raft's term. 0: before the first leader.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(#[serde(deserialize_with = "line::counter")] pub u64);

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// An id and the epoch of the entry there: what log matching compares. Ordered as Raft compares
/// logs: by epoch, then by id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogPosition {
    pub epoch: Epoch,
    pub id: EntryId,
}

/// An ordered entry with the line that carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub id: EntryId,
    pub epoch: Epoch,
    /// Unix milliseconds; set where time decides something (requests with ids, control entries).
    pub ts_ms: Option<u64>,
    pub body: Body,
    /// The whole line, CRC included, without the newline.
    pub line: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Set { key: Key, value: Value, version: u64, precondition: Precondition, request: Option<RequestId> },
    Delete { key: Key, precondition: Precondition, request: Option<RequestId> },
    Control(Control),
}

/// Entries about the group itself: key null, the payload is the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// The first entry of a leader's epoch.
    Epoch {
        leader: MemberId,
    },
    Config(Configuration),
    Settings(Settings),
    Feature(FeatureLevel),
    /// A record that these earlier ids are held by nobody any more; an ordinary entry at the end of the log.
    Lost {
        first: EntryId,
        last: EntryId,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EpochPayload {
    leader: MemberId,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FeaturePayload {
    feature_level: FeatureLevel,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LostPayload {
    first: EntryId,
    last: EntryId,
}

impl Entry {
    /// Orders `body` at `id` and encodes it; the CRC is always computed here, whatever came before.
    pub fn encode(id: EntryId, epoch: Epoch, ts_ms: Option<u64>, body: Body) -> Self {
        let line = encode_line(id, epoch, ts_ms, &body);
        Self { id, epoch, ts_ms, body, line }
    }

    /// Verifies and parses a line without its newline.
    pub fn decode(line: Bytes) -> Result<Self, LineError> {
        let view = LineView::parse(&line)?;
        let (id, epoch, ts_ms) = (view.id, view.epoch, view.ts_ms);
        let body = view.body(&line)?;
        Ok(Self { id, epoch, ts_ms, body, line })
    }

    pub fn position(&self) -> LogPosition {
        LogPosition { epoch: self.epoch, id: self.id }
    }

    pub fn key(&self) -> Option<&Key> {
        match &self.body {
            Body::Set { key, .. } | Body::Delete { key, .. } => Some(key),
            Body::Control(_) => None,
        }
    }

    pub fn request(&self) -> Option<(&RequestId, OperationKind)> {
        match &self.body {
            Body::Set { request, .. } => request.as_ref().map(|r| (r, OperationKind::Set)),
            Body::Delete { request, .. } => request.as_ref().map(|r| (r, OperationKind::Delete)),
            Body::Control(_) => None,
        }
    }
}

/// The members of an entry that are more than a number or a text.
impl LineWriter {
    fn key_value(&mut self, key: &Key, value: &[u8]) {
        self.text(",\"key\":", key.as_str());
        self.raw(b",\"value\":");
        self.raw(value);
    }

    fn precondition(&mut self, precondition: &Precondition) {
        if let Some(version) = precondition.version {
            self.number(",\"if_version\":", version);
        }
        match precondition.entity {
            Entity::Any => {}
            Entity::Is(id) => self.number(",\"if_id\":", id.0),
            Entity::Present => self.raw(b",\"if_present\":true"),
            Entity::Absent => self.raw(b",\"if_absent\":true"),
        }
    }

    fn request(&mut self, request: Option<&RequestId>) {
        if let Some(request) = request {
            self.text(",\"client_id\":", &request.client_id);
            self.text(",\"request_id\":", &request.request_id);
        }
    }

    fn control(&mut self, control: &Control) {
        self.raw(b",\"key\":null,\"value\":");
        match control {
            Control::Epoch { leader } => self.json(&EpochPayload { leader: *leader }),
            Control::Config(configuration) => self.json(configuration),
            Control::Settings(settings) => self.json(settings),
            Control::Feature(level) => self.json(&FeaturePayload { feature_level: *level }),
            Control::Lost { first, last } => self.json(&LostPayload { first: *first, last: *last }),
        }
    }
}

fn operation_name(body: &Body) -> &'static str {
    match body {
        Body::Set { .. } => "SET",
        Body::Delete { .. } => "DELETE",
        Body::Control(Control::Epoch { .. }) => "EPOCH",
        Body::Control(Control::Config(_)) => "CONFIG",
        Body::Control(Control::Settings(_)) => "SETTINGS",
        Body::Control(Control::Feature(_)) => "FEATURE",
        Body::Control(Control::Lost { .. }) => "LOST",
    }
}

fn encode_line(id: EntryId, epoch: Epoch, ts_ms: Option<u64>, body: &Body) -> Bytes {
    let payload = match body {
        Body::Set { key, value, .. } => key.as_str().len() + value.as_bytes().len(),
        Body::Delete { key, .. } => key.as_str().len(),
        Body::Control(_) => 0,
    };
    let mut w = LineWriter::with_payload(payload);
    w.number("{\"id\":", id.0);
    w.number(",\"epoch\":", epoch.0);
    w.raw(b",\"operation\":\"");
    w.raw(operation_name(body).as_bytes());
    w.raw(b"\"");
    match body {
        Body::Set { key, value, version, precondition, request } => {
            w.key_value(key, value.as_bytes());
            w.number(",\"version\":", *version);
            w.precondition(precondition);
            w.request(request.as_ref());
        }
        Body::Delete { key, precondition, request } => {
            w.key_value(key, b"null");
            w.precondition(precondition);
            w.request(request.as_ref());
        }
        Body::Control(control) => w.control(control),
    }
    if let Some(ts) = ts_ms {
        w.number(",\"ts\":", ts);
    }
    seal_line(w.out).into()
}

/// client_id and request_id of a line.
pub type RequestView<'a> = (Cow<'a, str>, Cow<'a, str>);

/// A verified line taken apart without copying: what recovery and compaction look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineView<'a> {
    pub id: EntryId,
    pub epoch: Epoch,
    pub operation: &'a str,
    /// None: null, a control line.
    pub key: Option<Cow<'a, str>>,
    pub value: &'a [u8],
    pub version: Option<u64>,
    pub precondition: Precondition,
    pub request: Option<RequestView<'a>>,
    pub ts_ms: Option<u64>,
}

/// The members of an entry that are more than a number or a text.
impl<'a> Cursor<'a> {
    fn entity(&mut self) -> Result<Entity, LineError> {
        if let Some(id) = self.optional_number(",\"if_id\":")? {
            return Ok(Entity::Is(EntryId(id)));
        }
        if self.eat(",\"if_present\":true") {
            return Ok(Entity::Present);
        }
        Ok(if self.eat(",\"if_absent\":true") { Entity::Absent } else { Entity::Any })
    }

    fn request(&mut self) -> Result<Option<RequestView<'a>>, LineError> {
        if !self.eat(",\"client_id\":") {
            return Ok(None);
        }
        let client_id = self.string()?;
        self.need(",\"request_id\":")?;
        Ok(Some((client_id, self.string()?)))
    }
}

impl<'a> LineView<'a> {
    /// Verifies the CRC and takes the line apart. `line` has no newline.
    pub fn parse(line: &'a [u8]) -> Result<Self, LineError> {
        let mut cursor = Cursor { text: verify_line(line)?, at: 0 };
        cursor.need("{\"id\":")?;
        let id = EntryId(cursor.counter()?);
        cursor.need(",\"epoch\":")?;
        let epoch = Epoch(cursor.counter()?);
        cursor.need(",\"operation\":\"")?;
        let rest = &cursor.text[cursor.at..];
        let len = memchr::memchr(b'"', rest).ok_or(LineError::Malformed("operation does not end"))?;
        let operation =
            std::str::from_utf8(&rest[..len]).map_err(|_| LineError::Malformed("operation is not UTF-8"))?;
        cursor.at += len;
        cursor.need("\",\"key\":")?;
        let key = if cursor.eat("null") { None } else { Some(cursor.string()?) };
        cursor.need(",\"value\":")?;
        let view = Self {
            id,
            epoch,
            operation,
            key,
            value: cursor.value()?,
            version: cursor.optional_counter(",\"version\":")?,
            precondition: Precondition {
                version: cursor.optional_number(",\"if_version\":")?,
                entity: cursor.entity()?,
            },
            request: cursor.request()?,
            ts_ms: cursor.optional_counter(",\"ts\":")?,
        };
        cursor.end()?;
        Ok(view)
    }

    fn body(self, line: &Bytes) -> Result<Body, LineError> {
        let precondition = self.precondition;
        match self.operation {
            "SET" => Ok(Body::Set {
                value: Value::from_line(line.slice_ref(self.value)),
                version: self.version.ok_or(LineError::Malformed("SET without version"))?,
                request: self.request_id()?,
                key: self.valid_key()?,
                precondition,
            }),
            "DELETE" if self.version.is_some() || self.value != b"null" => {
                Err(LineError::Malformed("DELETE with a value or a version"))
            }
            "DELETE" => Ok(Body::Delete { request: self.request_id()?, key: self.valid_key()?, precondition }),
            _ => self.control(line).map(Body::Control),
        }
    }

    /// Whatever is not written again just as it is, a newer release may have written.
    fn control(&self, line: &Bytes) -> Result<Control, LineError> {
        fn payload<'v, T: Deserialize<'v>>(value: &'v [u8]) -> Option<T> {
            serde_json::from_slice(value).ok()
        }
        let control = match self.operation {
            "EPOCH" => payload(self.value).map(|EpochPayload { leader }| Control::Epoch { leader }),
            "CONFIG" => payload(self.value).map(Control::Config),
            "SETTINGS" => payload(self.value).map(Control::Settings),
            "FEATURE" => payload(self.value).map(|FeaturePayload { feature_level }| Control::Feature(feature_level)),
            "LOST" => payload(self.value).map(|LostPayload { first, last }| Control::Lost { first, last }),
            other => return Err(LineError::UnknownOperation(other.to_owned())),
        };
        let is_understood =
            |c: &Control| encode_line(self.id, self.epoch, self.ts_ms, &Body::Control(c.clone())) == *line;
        control.filter(is_understood).ok_or_else(|| LineError::UnknownPayload(self.operation.to_owned()))
    }

    fn valid_key(&self) -> Result<Key, LineError> {
        let key = self.key.as_deref().ok_or(LineError::Malformed("a write without a key"))?;
        Key::new(key).map_err(|_| LineError::Malformed("key length"))
    }

    fn request_id(&self) -> Result<Option<RequestId>, LineError> {
        let Some((client_id, request_id)) = &self.request else { return Ok(None) };
        RequestId::new(client_id, request_id).map(Some).map_err(|_| LineError::Malformed("request id length"))
    }
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

    fn set(id: u64, key: &str, value: &str, request: Option<RequestId>) -> Entry {
        let body = Body::Set {
            key: Key::new(key).expect("test key"),
            value: Value::from_json(value.as_bytes(), 1 << 20).expect("test value"),
            version: 1,
            precondition: Precondition::default(),
            request,
        };
        Entry::encode(EntryId(id), Epoch(1), None, body)
    }

    #[test]
    fn a_plain_set_has_the_documented_line() {
        let entry = set(14, "key6", "\"myvalue\"", None);
        let expected =
            r#"{"id":14,"epoch":1,"operation":"SET","key":"key6","value":"myvalue","version":1,"crc":4229889148}"#;
        assert_eq!(entry.line, expected.as_bytes());
        assert_eq!(Entry::decode(entry.line.clone()), Ok(entry));
    }

    #[test]
    fn a_plain_delete_has_the_documented_line() {
        let key = Key::new("key6").expect("test key");
        let body = Body::Delete { key, precondition: Precondition::default(), request: None };
        let entry = Entry::encode(EntryId(15), Epoch(1), None, body);
        let expected = r#"{"id":15,"epoch":1,"operation":"DELETE","key":"key6","value":null,"crc":1999244314}"#;
        assert_eq!(entry.line, expected.as_bytes());
        assert_eq!(Entry::decode(entry.line.clone()), Ok(entry));
    }

    #[test]
    fn awkward_keys_values_and_requests_come_back_as_they_went() {
        let request = RequestId::new("c\"\\", "r\u{1F600}\n").ok();
        for value in ["null", "\"},\\\"crc\\\":1}\"", "[[],{\"a\":[\"]\"]}]", "-0.0", "12345678901234567890123"] {
            let entry = set(1, "a/\"b\u{0}\\ü", value, request.clone());
            assert_eq!(Entry::decode(entry.line.clone()), Ok(entry));
        }
    }

    #[test]
    fn every_control_entry_comes_back_as_it_went() {
        let controls = [
            Control::Epoch { leader: MemberId(7) },
            Control::Config(Configuration::default()),
            Control::Settings(Settings::default()),
            Control::Feature(FeatureLevel(2)),
            Control::Lost { first: EntryId(3), last: EntryId(9) },
        ];
        for control in controls {
            let entry = Entry::encode(EntryId(3), Epoch(2), Some(1_700_000_000_000), Body::Control(control));
            assert_eq!(Entry::decode(entry.line.clone()), Ok(entry));
        }
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let line = set(14, "key6", "{\"a\":[1,2]}", RequestId::new("c", "r").ok()).line;
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut damaged = line.to_vec();
                damaged[at] ^= 1 << bit;
                assert!(Entry::decode(damaged.into()).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn any_truncation_is_refused() {
        let line = set(14, "key6", "\"myvalue\"", None).line;
        for end in 0..line.len() {
            assert!(Entry::decode(line.slice(..end)).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn what_a_newer_release_wrote_is_no_damage() {
        let newer = seal_line(br#"{"id":1,"epoch":1,"operation":"MERGE","key":null,"value":{}"#.to_vec());
        let error = Entry::decode(newer.into()).expect_err("unknown operation");
        assert_eq!(error, LineError::UnknownOperation("MERGE".into()));
        assert!(!error.is_damage());
        let newer = seal_line(br#"{"id":1,"epoch":1,"operation":"DELETE","key":"a","value":null,"ttl":5"#.to_vec());
        assert_eq!(Entry::decode(newer.into()), Err(LineError::UnknownMember("ttl".into())));
        let newer =
            br#"{"id":1,"epoch":1,"operation":"FEATURE","key":null,"value":{"feature_level":2,"until":3},"ts":1"#;
        let error = Entry::decode(seal_line(newer.to_vec()).into()).expect_err("unknown member");
        assert_eq!(error, LineError::UnknownPayload("FEATURE".into()));
        assert!(!error.is_damage());
    }

    #[test]
    fn a_line_that_this_encoding_would_not_write_is_refused() {
        for open_line in [
            r#"{"id":1,"epoch":1,"operation":"SET","key":"\u0061","value":1,"version":1"#,
            "{\"id\":1,\"epoch\":1,\"operation\":\"SET\",\"key\":\"a\tb\",\"value\":1,\"version\":1",
            r#"{"id":1,"epoch":1,"operation":"DELETE","key":"a","value":1"#,
            r#"{"id":1,"epoch":1,"operation":"DELETE","key":"a","value":null,"version":1"#,
            r#"{"id":18446744073709551615,"epoch":1,"operation":"DELETE","key":"a","value":null"#,
            r#"{"id":1,"epoch":18446744073709551615,"operation":"DELETE","key":"a","value":null"#,
        ] {
            let error = Entry::decode(seal_line(open_line.as_bytes().to_vec()).into()).expect_err(open_line);
            assert!(error.is_damage(), "{open_line}: {error}");
        }
    }
}
