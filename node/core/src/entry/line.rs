//! What all lines share: members in a fixed order, without whitespace, and the CRC last. Writes them,
//! seals them, verifies them and takes them apart without copying. Knows no operation. Used by
//! [`crate::entry`] and by session records.

use std::borrow::Cow;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};

use crate::command::string_end;
use crate::mutant::{self, Mutant};

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
    #[error("what this {0} line says is not known to this release")]
    UnknownPayload(String),
}

impl LineError {
    /// False: the line is intact, but this release does not understand it; it must never be skipped.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Crc { .. } | Self::Malformed(_))
    }
}

/// Ids, epochs and versions are at most this, so that one more can always be counted.
pub const COUNTER_MAX: u64 = u64::MAX >> 1;

/// For [`serde`]: a number that is counted on from.
pub(crate) fn counter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let n = u64::deserialize(deserializer)?;
    if n <= COUNTER_MAX { Ok(n) } else { Err(D::Error::custom(TOO_HIGH)) }
}

const TOO_HIGH: &str = "a number is too high to count on from";

/// Room for the fixed parts of a line: names, numbers and punctuation.
const LINE_OVERHEAD_BYTES: usize = 160;

/// Writes a line member by member; the caller keeps the order of the format.
pub(crate) struct LineWriter {
    pub(crate) out: Vec<u8>,
    digits: itoa::Buffer,
}

impl LineWriter {
    pub(crate) fn with_payload(payload_bytes: usize) -> Self {
        Self { out: Vec::with_capacity(payload_bytes + LINE_OVERHEAD_BYTES), digits: itoa::Buffer::new() }
    }

    pub(crate) fn raw(&mut self, text: &[u8]) {
        self.out.extend_from_slice(text);
    }

    pub(crate) fn number(&mut self, prefix: &str, n: u64) {
        self.raw(prefix.as_bytes());
        let digits = self.digits.format(n);
        self.out.extend_from_slice(digits.as_bytes());
    }

    pub(crate) fn text(&mut self, prefix: &str, text: &str) {
        self.raw(prefix.as_bytes());
        serde_json::to_writer(&mut self.out, text).expect("a string is JSON and a Vec takes it");
    }

    pub(crate) fn json<T: Serialize>(&mut self, value: &T) {
        serde_json::to_writer(&mut self.out, value).expect("control payloads are plain structs");
    }
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
    if stored == computed || mutant::on(Mutant::BelieveBadChecksum) {
        Ok(open_line)
    } else {
        Err(LineError::Crc { stored, computed })
    }
}

/// Canonical decimal: no sign, no leading zero, fits.
fn parse_u64(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 || (digits.len() > 1 && digits[0] == b'0') {
        return None;
    }
    digits.iter().try_fold(0_u64, |n, &b| n.checked_mul(10)?.checked_add(u64::from(b.checked_sub(b'0')?)))
}

const NOT_CANONICAL: &str = "a string is not written as this encoding does";

/// Reads the members of a line in their fixed order.
pub(crate) struct Cursor<'a> {
    pub(crate) text: &'a [u8],
    pub(crate) at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn eat(&mut self, prefix: &str) -> bool {
        let found = self.text[self.at..].starts_with(prefix.as_bytes());
        if found {
            self.at += prefix.len();
        }
        found
    }

    pub(crate) fn need(&mut self, prefix: &'static str) -> Result<(), LineError> {
        if self.eat(prefix) { Ok(()) } else { Err(LineError::Malformed(prefix)) }
    }

    pub(crate) fn number(&mut self) -> Result<u64, LineError> {
        let rest = &self.text[self.at..];
        let len = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        self.at += len;
        parse_u64(&rest[..len]).ok_or(LineError::Malformed("a number is not canonical"))
    }

    /// A number that is counted on from.
    pub(crate) fn counter(&mut self) -> Result<u64, LineError> {
        let n = self.number()?;
        if n <= COUNTER_MAX { Ok(n) } else { Err(LineError::Malformed(TOO_HIGH)) }
    }

    pub(crate) fn optional_counter(&mut self, prefix: &str) -> Result<Option<u64>, LineError> {
        if self.eat(prefix) { self.counter().map(Some) } else { Ok(None) }
    }

    pub(crate) fn optional_number(&mut self, prefix: &str) -> Result<Option<u64>, LineError> {
        if self.eat(prefix) { self.number().map(Some) } else { Ok(None) }
    }

    pub(crate) fn span(&mut self, end: Option<usize>) -> Result<&'a [u8], LineError> {
        let end = end.filter(|&end| end <= self.text.len()).ok_or(LineError::Malformed("a member does not end"))?;
        let span = &self.text[self.at..end];
        self.at = end;
        Ok(span)
    }

    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, LineError> {
        if self.text.get(self.at) != Some(&b'"') {
            return Err(LineError::Malformed("a member is not a string"));
        }
        let quoted = self.span(string_end(self.text, self.at))?;
        if memchr::memchr(b'\\', quoted).is_some() {
            let text: String =
                serde_json::from_slice(quoted).map_err(|_| LineError::Malformed("bad escape in a string"))?;
            let is_canonical = serde_json::to_vec(&text).is_ok_and(|written| written == quoted);
            return if is_canonical { Ok(Cow::Owned(text)) } else { Err(LineError::Malformed(NOT_CANONICAL)) };
        }
        let inner = &quoted[1..quoted.len() - 1];
        if inner.iter().any(|&byte| byte < b' ') {
            return Err(LineError::Malformed(NOT_CANONICAL));
        }
        std::str::from_utf8(inner).map(Cow::Borrowed).map_err(|_| LineError::Malformed("a string is not UTF-8"))
    }

    pub(crate) fn value(&mut self) -> Result<&'a [u8], LineError> {
        let span = self.span(value_end(self.text, self.at))?;
        if span.is_empty() { Err(LineError::Malformed("value is empty")) } else { Ok(span) }
    }

    /// Nothing may be left; a member that is left over was written by a newer release.
    pub(crate) fn end(&self) -> Result<(), LineError> {
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
