//! What clients may ask of the store. The constructors are the validation: a `Key`, a `Value` or a
//! `RequestId` that exists is within its limits, so nothing behind the HTTP layer checks again.
//! Never does I/O and never knows about replication. Called by http, entry and the state machine.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::entry::EntryId;

/// Longest key, in bytes of UTF-8.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest value that can be configured, in bytes of minified JSON.
pub const VALUE_BYTES_CEILING: usize = 8 * 1024 * 1024;
/// Deepest nesting of arrays and objects in a value; the limit of `serde_json` itself.
pub const VALUE_DEPTH_MAX: usize = 128;
/// Longest `client_id` or `request_id`, in bytes of UTF-8.
pub const REQUEST_PART_BYTES_MAX: usize = 256;

/// Why a part of a command was refused. The text names the limit and is fit for a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("key is empty")]
    KeyEmpty,
    #[error("key has {0} bytes, the limit is {KEY_BYTES_MAX}")]
    KeyTooLong(usize),
    #[error("value has {got} bytes, the limit is {limit}")]
    ValueTooLarge { got: usize, limit: usize },
    #[error("value is nested deeper than {VALUE_DEPTH_MAX} levels")]
    ValueTooDeep,
    #[error("value is not valid JSON")]
    ValueMalformed,
    #[error("{part} has {got} bytes, it must have 1 to {REQUEST_PART_BYTES_MAX}")]
    RequestPart { part: &'static str, got: usize },
}

/// A key: 1 to [`KEY_BYTES_MAX`] bytes of UTF-8, any characters.
///
/// Its pointer has no weak count, as many short keys are held in memory and shared.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(triomphe::Arc<str>);

impl Key {
    pub fn new(text: &str) -> Result<Self, Invalid> {
        match text.len() {
            0 => Err(Invalid::KeyEmpty),
            n if n > KEY_BYTES_MAX => Err(Invalid::KeyTooLong(n)),
            _ => Ok(Self(text.into())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A value: JSON as the client sent it, without insignificant whitespace.
#[derive(Clone, PartialEq, Eq)]
pub struct Value(Bytes);

impl Value {
    /// `raw` must already be one well-formed JSON text (the HTTP layer's parser has seen to it);
    /// this minifies it and checks size and depth.
    pub fn from_json(raw: &[u8], bytes_max: usize) -> Result<Self, Invalid> {
        let minified = minify(raw)?;
        if minified.len() > bytes_max {
            return Err(Invalid::ValueTooLarge { got: minified.len(), limit: bytes_max });
        }
        Ok(Self(minified))
    }

    /// A value cut from a line that was verified by its CRC.
    pub(crate) fn from_line(bytes: Bytes) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// Copies `raw` without the whitespace between tokens. Strings are copied whole.
fn minify(raw: &[u8]) -> Result<Bytes, Invalid> {
    let mut out = Vec::with_capacity(raw.len());
    let mut depth = 0_usize;
    let mut at = 0;
    while at < raw.len() {
        match raw[at] {
            b' ' | b'\t' | b'\n' | b'\r' => at += 1,
            b'"' => {
                let end = string_end(raw, at).ok_or(Invalid::ValueMalformed)?;
                out.extend_from_slice(&raw[at..end]);
                at = end;
            }
            byte => {
                match byte {
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth = depth.checked_sub(1).ok_or(Invalid::ValueMalformed)?,
                    _ => {}
                }
                if depth > VALUE_DEPTH_MAX {
                    return Err(Invalid::ValueTooDeep);
                }
                out.push(byte);
                at += 1;
            }
        }
    }
    if out.is_empty() || depth != 0 {
        return Err(Invalid::ValueMalformed);
    }
    Ok(out.into())
}

/// The position after the closing quote of the JSON string that opens at `start`.
pub(crate) fn string_end(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        at += 2; // the backslash and what it escapes; the digits of \u need no care
    }
}

/// Names one request of one client, so that a retry is known as such.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    pub client_id: Arc<str>,
    pub request_id: Arc<str>,
}

impl RequestId {
    pub fn new(client_id: &str, request_id: &str) -> Result<Self, Invalid> {
        for (part, text) in [("client_id", client_id), ("request_id", request_id)] {
            if text.is_empty() || text.len() > REQUEST_PART_BYTES_MAX {
                return Err(Invalid::RequestPart { part, got: text.len() });
            }
        }
        Ok(Self { client_id: client_id.into(), request_id: request_id.into() })
    }
}

/// What must hold for a write to take effect. All members that are set must hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Precondition {
    /// The current version of the key; 0: the key must not exist.
    pub version: Option<u64>,
    /// `If-Match` and `If-None-Match: *`.
    pub entity: Entity,
}

/// A precondition on the entry that wrote the current value, as HTTP states it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Entity {
    #[default]
    Any,
    /// `If-Match: "<id>"`
    Is(EntryId),
    /// `If-Match: *`
    Present,
    /// `If-None-Match: *`
    Absent,
}

/// A write as a client asked for it, before it is ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub key: Key,
    pub change: Change,
    pub precondition: Precondition,
    pub request: Option<RequestId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Set(Value),
    Delete,
}

/// The three operations that deduplication tells apart; the original's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum OperationKind {
    #[serde(rename = "SET")]
    Set,
    #[serde(rename = "DELETE")]
    Delete,
    #[serde(rename = "GET")]
    Get,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minified(raw: &str) -> Result<String, Invalid> {
        Value::from_json(raw.as_bytes(), 100).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
    }

    #[test]
    fn whitespace_between_tokens_goes_and_inside_strings_stays() {
        let raw = " { \"a b\" : [ 1 , 12345678901234567890123 , null ] ,\n\t\"q\\\" \" : \" x \" } ";
        assert_eq!(minified(raw).as_deref(), Ok("{\"a b\":[1,12345678901234567890123,null],\"q\\\" \":\" x \"}"));
    }

    #[test]
    fn a_value_over_a_limit_is_named_with_the_limit() {
        let deep = "[".repeat(129) + &"]".repeat(129);
        assert_eq!(Value::from_json(deep.as_bytes(), 1000), Err(Invalid::ValueTooDeep));
        let long = format!("\"{}\"", "x".repeat(99));
        assert_eq!(minified(&long), Err(Invalid::ValueTooLarge { got: 101, limit: 100 }));
    }

    #[test]
    fn keys_and_request_parts_have_limits() {
        assert_eq!(Key::new(""), Err(Invalid::KeyEmpty));
        assert_eq!(Key::new(&"k".repeat(1025)), Err(Invalid::KeyTooLong(1025)));
        assert!(Key::new(&"k".repeat(1024)).is_ok());
        assert!(RequestId::new("", "r").is_err());
        assert!(RequestId::new("c", &"r".repeat(257)).is_err());
    }
}
