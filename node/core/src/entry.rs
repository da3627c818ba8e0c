//! The one encoding of an entry: a line of JSON with its CRC last, shared by the log, the wire and
//! the simulation. Encoding computes the CRC; decoding verifies it and never repairs it. A line is
//! encoded once, by the leader that ordered it; everyone else passes the same bytes on.
//!
//! `{"id":14,"epoch":1,"operation":"SET","key":"key6","value":"myvalue","version":1,"crc":4229889148}`
//!
//! The members stand in this order, without whitespace; those in brackets are absent when unset:
//! id, epoch, operation, key, value, [version], [if_version], [if_id | if_present | if_absent],
//! [client_id, request_id], [ts], crc. The CRC-32 (IEEE) is over the line with `,"crc":N` cut out.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::command::{Entity, Key, OperationKind, Precondition, RequestId, Value, string_end};
use crate::group::{Configuration, FeatureLevel, MemberId, Settings};

/// The position of an entry in the log, and the `id` of the HTTP API. 0: before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntryId(pub u64);

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
pub struct Epoch(pub u64);

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

/// Why a line is not an entry. `is_damage` tells a damaged line from one of a newer release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    #[error("crc is {stored}, the line's bytes give {computed}")]
    Crc { stored: u32, computed: u32 },
    #[error("not a line of the log: {0}")]
    Malformed(&'static str),
    #[error("operation {0:?} is not known to this release")]
    UnknownOperation(String),
    #[error("member {0:?} is not known to this release")]
    UnknownMember(String),
}

impl LineError {
    /// False: the line is intact, but this release does not understand it; it must never be skipped.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Crc { .. } | Self::Malformed(_))
    }
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

/// Writes a line member by member; the caller keeps the order of the format.
struct LineWriter {
    out: Vec<u8>,
    digits: itoa::Buffer,
}

impl LineWriter {
    fn raw(&mut self, text: &[u8]) {
        self.out.extend_from_slice(text);
    }

    fn number(&mut self, prefix: &str, n: u64) {
        self.raw(prefix.as_bytes());
        let digits = self.digits.format(n);
        self.out.extend_from_slice(digits.as_bytes());
    }

    fn text(&mut self, prefix: &str, text: &str) {
        self.raw(prefix.as_bytes());
        serde_json::to_writer(&mut self.out, text).expect("a string is JSON and a Vec takes it");
    }

    fn json<T: Serialize>(&mut self, value: &T) {
        serde_json::to_writer(&mut self.out, value).expect("control payloads are plain structs");
    }

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

/// Room for the fixed parts of a line: names, numbers and punctuation.
const LINE_OVERHEAD_BYTES: usize = 160;

fn encode_line(id: EntryId, epoch: Epoch, ts_ms: Option<u64>, body: &Body) -> Bytes {
    let payload = match body {
        Body::Set { key, value, .. } => key.as_str().len() + value.as_bytes().len(),
        Body::Delete { key, .. } => key.as_str().len(),
        Body::Control(_) => 0,
    };
    let mut w = LineWriter { out: Vec::with_capacity(payload + LINE_OVERHEAD_BYTES), digits: itoa::Buffer::new() };
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

/// Appends the CRC member and the closing brace to a line that still lacks both.
pub fn seal_line(mut open_line: Vec<u8>) -> Vec<u8> {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&open_line);
    crc.update(b"}");
    open_line.extend_from_slice(b",\"crc\":");
    open_line.extend_from_slice(itoa::Buffer::new().format(crc.finalize()).as_bytes());
    open_line.push(b'}');
    open_line
}

/// Verifies the CRC at the end of any line made by [`seal_line`] and returns the bytes before it.
pub fn verify_line(line: &[u8]) -> Result<&[u8], LineError> {
    let inner = line.strip_suffix(b"}").ok_or(LineError::Malformed("no closing brace"))?;
    let digits = inner.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let (rest, digits) = inner.split_at(inner.len() - digits);
    let open_line = rest.strip_suffix(b",\"crc\":").ok_or(LineError::Malformed("no crc at the end"))?;
    let stored = parse_u64(digits)
        .and_then(|n| u32::try_from(n).ok())
        .ok_or(LineError::Malformed("crc is not a 32-bit number"))?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(open_line);
    crc.update(b"}");
    let computed = crc.finalize();
    if stored == computed { Ok(open_line) } else { Err(LineError::Crc { stored, computed }) }
}

/// Canonical decimal: no sign, no leading zero, fits.
fn parse_u64(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 || (digits.len() > 1 && digits[0] == b'0') {
        return None;
    }
    digits.iter().try_fold(0_u64, |n, &b| n.checked_mul(10)?.checked_add(u64::from(b.checked_sub(b'0')?)))
}

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
    pub request: Option<(Cow<'a, str>, Cow<'a, str>)>,
    pub ts_ms: Option<u64>,
}

/// Reads the members of a line in their fixed order.
struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn eat(&mut self, prefix: &str) -> bool {
        let found = self.text[self.at..].starts_with(prefix.as_bytes());
        if found {
            self.at += prefix.len();
        }
        found
    }

    fn need(&mut self, prefix: &'static str) -> Result<(), LineError> {
        if self.eat(prefix) { Ok(()) } else { Err(LineError::Malformed(prefix)) }
    }

    fn number(&mut self) -> Result<u64, LineError> {
        let rest = &self.text[self.at..];
        let len = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        self.at += len;
        parse_u64(&rest[..len]).ok_or(LineError::Malformed("a number is not canonical"))
    }

    fn optional_number(&mut self, prefix: &str) -> Result<Option<u64>, LineError> {
        if self.eat(prefix) { self.number().map(Some) } else { Ok(None) }
    }

    fn span(&mut self, end: Option<usize>) -> Result<&'a [u8], LineError> {
        let end = end.filter(|&end| end <= self.text.len()).ok_or(LineError::Malformed("a member does not end"))?;
        let span = &self.text[self.at..end];
        self.at = end;
        Ok(span)
    }

    fn string(&mut self) -> Result<Cow<'a, str>, LineError> {
        if self.text.get(self.at) != Some(&b'"') {
            return Err(LineError::Malformed("a member is not a string"));
        }
        let quoted = self.span(string_end(self.text, self.at))?;
        if memchr::memchr(b'\\', quoted).is_some() {
            let text = serde_json::from_slice(quoted).map_err(|_| LineError::Malformed("bad escape in a string"))?;
            return Ok(Cow::Owned(text));
        }
        let inner = &quoted[1..quoted.len() - 1];
        std::str::from_utf8(inner).map(Cow::Borrowed).map_err(|_| LineError::Malformed("a string is not UTF-8"))
    }

    fn value(&mut self) -> Result<&'a [u8], LineError> {
        let span = self.span(value_end(self.text, self.at))?;
        if span.is_empty() { Err(LineError::Malformed("value is empty")) } else { Ok(span) }
    }

    fn entity(&mut self) -> Result<Entity, LineError> {
        if let Some(id) = self.optional_number(",\"if_id\":")? {
            return Ok(Entity::Is(EntryId(id)));
        }
        if self.eat(",\"if_present\":true") {
            return Ok(Entity::Present);
        }
        Ok(if self.eat(",\"if_absent\":true") { Entity::Absent } else { Entity::Any })
    }

    fn request(&mut self) -> Result<Option<(Cow<'a, str>, Cow<'a, str>)>, LineError> {
        if !self.eat(",\"client_id\":") {
            return Ok(None);
        }
        let client_id = self.string()?;
        self.need(",\"request_id\":")?;
        Ok(Some((client_id, self.string()?)))
    }

    /// Nothing may be left; a member that is left over was written by a newer release.
    fn end(&self) -> Result<(), LineError> {
        if self.at == self.text.len() {
            return Ok(());
        }
        let rest = String::from_utf8_lossy(&self.text[self.at..]);
        match rest.strip_prefix(",\"").and_then(|r| r.split_once('"')) {
            Some((member, _)) => Err(LineError::UnknownMember(member.to_owned())),
            None => Err(LineError::Malformed("text after the last member")),
        }
    }
}

/// The position after the JSON value that begins at `start`: strings are skipped, brackets counted.
/// The grammar inside was checked when the value entered; here only its end is sought.
fn value_end(text: &[u8], start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = start;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => {
                at = string_end(text, at)?;
                if depth == 0 {
                    return Some(at);
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return Some(at),
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            b',' if depth == 0 => return Some(at),
            _ => {}
        }
        at += 1;
    }
    (depth == 0).then_some(at)
}

impl<'a> LineView<'a> {
    /// Verifies the CRC and takes the line apart. `line` has no newline.
    pub fn parse(line: &'a [u8]) -> Result<Self, LineError> {
        let mut cursor = Cursor { text: verify_line(line)?, at: 0 };
        cursor.need("{\"id\":")?;
        let id = EntryId(cursor.number()?);
        cursor.need(",\"epoch\":")?;
        let epoch = Epoch(cursor.number()?);
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
            version: cursor.optional_number(",\"version\":")?,
            precondition: Precondition {
                version: cursor.optional_number(",\"if_version\":")?,
                entity: cursor.entity()?,
            },
            request: cursor.request()?,
            ts_ms: cursor.optional_number(",\"ts\":")?,
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
            "DELETE" => Ok(Body::Delete { request: self.request_id()?, key: self.valid_key()?, precondition }),
            _ => self.control().map(Body::Control),
        }
    }

    fn control(&self) -> Result<Control, LineError> {
        fn payload<'v, T: Deserialize<'v>>(value: &'v [u8]) -> Result<T, LineError> {
            serde_json::from_slice(value).map_err(|_| LineError::Malformed("payload of a control line"))
        }
        match self.operation {
            "EPOCH" => payload(self.value).map(|EpochPayload { leader }| Control::Epoch { leader }),
            "CONFIG" => payload(self.value).map(Control::Config),
            "SETTINGS" => payload(self.value).map(Control::Settings),
            "FEATURE" => payload(self.value).map(|FeaturePayload { feature_level }| Control::Feature(feature_level)),
            "LOST" => payload(self.value).map(|LostPayload { first, last }| Control::Lost { first, last }),
            other => Err(LineError::UnknownOperation(other.to_owned())),
        }
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
    }
}
