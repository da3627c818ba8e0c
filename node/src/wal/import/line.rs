//! One line of the original's log: its members, checked against its CRC. v1.0 wrote no `crc`,
//! releases before v1.5 no `version`; both are absent (or null) then. Called by the import.

use kv_core::command::{Invalid, Key, VALUE_BYTES_CEILING, Value};
use kv_core::entry::{COUNTER_MAX, EntryId};

use super::python::{Malformed, Member, Members, PythonText, dump_without, parse_object};

/// A line of the original that was verified as far as it can be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PythonLine {
    pub(super) id: EntryId,
    pub(super) key: Key,
    pub(super) change: PythonChange,
    pub(super) checked: Checked,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum PythonChange {
    /// The version as written; None: before v1.5, to be counted.
    Set {
        value: Value,
        version: Option<u64>,
    },
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checked {
    ByCrc,
    /// The line has no checksum.
    NotAtAll,
}

/// Why a line cannot be imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    #[error("not JSON: {0}")]
    NotJson(String),
    #[error("crc is {stored}, the line's content gives {computed}")]
    Crc { stored: u32, computed: u32 },
    #[error("member {0:?} is missing or of the wrong type")]
    Member(&'static str),
    #[error("operation {0} is not one of the original's")]
    Operation(String),
    #[error("id {0} was already used by a line that says something else")]
    Repeated(EntryId),
    #[error(transparent)]
    Limit(#[from] Invalid),
}

impl From<Malformed> for BadLine {
    fn from(malformed: Malformed) -> Self {
        Self::NotJson(malformed.to_string())
    }
}

/// `line` without its newline.
pub(super) fn parse(line: &[u8]) -> Result<PythonLine, BadLine> {
    let members = parse_object(line)?;
    let checked = check_crc(&members)?;
    let id = counter(&members, "id")?.filter(|&id| id > 0).ok_or(BadLine::Member("id"))?;
    let operation = required(&members, "operation")?;
    let change = match operation.canonical.as_slice() {
        b"\"SET\"" => PythonChange::Set {
            value: value(&members, line)?,
            version: counter(&members, "version")?.filter(|&v| v > 0),
        },
        b"\"DELETE\"" => PythonChange::Delete,
        other => return Err(BadLine::Operation(String::from_utf8_lossy(other).into_owned())),
    };
    Ok(PythonLine { id: EntryId(id), key: key(&members)?, change, checked })
}

fn find<'m>(members: &'m Members, name: &'static str) -> Option<&'m Member> {
    let name: PythonText = name.chars().map(u32::from).collect();
    members.get(&name)
}

fn required<'m>(members: &'m Members, name: &'static str) -> Result<&'m Member, BadLine> {
    find(members, name).ok_or(BadLine::Member(name))
}

/// None: absent or null.
fn number(members: &Members, name: &'static str) -> Result<Option<u64>, BadLine> {
    match find(members, name).map(|m| m.canonical.as_slice()) {
        None | Some(b"null") => Ok(None),
        Some(digits) => {
            let text = std::str::from_utf8(digits).map_err(|_| BadLine::Member(name))?;
            text.parse().map(Some).map_err(|_| BadLine::Member(name))
        }
    }
}

/// A number that this store goes on counting from.
fn counter(members: &Members, name: &'static str) -> Result<Option<u64>, BadLine> {
    match number(members, name)? {
        Some(n) if n > COUNTER_MAX => Err(BadLine::Member(name)),
        n => Ok(n),
    }
}

fn check_crc(members: &Members) -> Result<Checked, BadLine> {
    let Some(stored) = number(members, "crc")? else { return Ok(Checked::NotAtAll) };
    let stored = u32::try_from(stored).map_err(|_| BadLine::Member("crc"))?;
    let computed = crc32fast::hash(&dump_without(members, "crc"));
    if stored == computed { Ok(Checked::ByCrc) } else { Err(BadLine::Crc { stored, computed }) }
}

fn key(members: &Members) -> Result<Key, BadLine> {
    let canonical = &required(members, "key")?.canonical;
    // A lone surrogate is no text to anyone but Python.
    let text: String = serde_json::from_slice(canonical).map_err(|_| BadLine::Member("key"))?;
    Ok(Key::new(&text)?)
}

/// The value as the source has it, so that escapes and numbers of any size stay what they are.
fn value(members: &Members, line: &[u8]) -> Result<Value, BadLine> {
    let source = &line[required(members, "value")?.source.clone()];
    // Python also reads NaN and Infinity, which are not JSON.
    serde_json::from_slice::<&serde_json::value::RawValue>(source).map_err(|_| BadLine::Member("value"))?;
    Ok(Value::from_json(source, VALUE_BYTES_CEILING)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_its_crc_is_verified() {
        let text = r#"{"id": 1, "operation": "SET", "key": "\u043a\u043b\u044e\u04479", "value": "v75954", "crc": 3230020655, "version": 1}"#;
        let line = parse(text.as_bytes()).expect("valid");
        assert_eq!(line.checked, Checked::ByCrc);
        assert_eq!(line.key.as_str(), "ключ9");
        let damaged = text.replace("v75954", "v75955");
        assert!(matches!(parse(damaged.as_bytes()), Err(BadLine::Crc { stored: 3_230_020_655, .. })));
    }

    #[test]
    fn the_lines_of_the_readme_are_read() {
        let v1_0 = parse(br#"{"id": 14, "operation": "SET", "key": "key6", "value": "myvalue"}"#).expect("v1.0");
        assert_eq!(v1_0.checked, Checked::NotAtAll);
        assert!(matches!(v1_0.change, PythonChange::Set { version: None, .. }));
        let v1_1 = br#"{"id": 14, "operation": "SET", "key": "key6", "value": "myvalue", "crc": 1508983172}"#;
        assert_eq!(parse(v1_1).expect("v1.1").checked, Checked::ByCrc);
    }

    #[test]
    fn what_is_not_the_originals_is_named() {
        let table: &[(&str, BadLine)] = &[
            (r#"{"operation":"SET","key":"a","value":1}"#, BadLine::Member("id")),
            (r#"{"id":18446744073709551615,"operation":"SET","key":"a","value":1}"#, BadLine::Member("id")),
            (r#"{"id":1.5,"operation":"SET","key":"a","value":1}"#, BadLine::Member("id")),
            (r#"{"id":1,"operation":"SET","value":1}"#, BadLine::Member("key")),
            (r#"{"id":1,"operation":"SET","key":"\ud800","value":1}"#, BadLine::Member("key")),
            (r#"{"id":1,"operation":"SET","key":"","value":1}"#, BadLine::Limit(Invalid::KeyEmpty)),
            (r#"{"id":1,"operation":"SET","key":"a"}"#, BadLine::Member("value")),
            (r#"{"id":1,"operation":"SET","key":"a","value":[NaN]}"#, BadLine::Member("value")),
            (r#"{"id":1,"operation":"PUT","key":"a","value":1}"#, BadLine::Operation("\"PUT\"".into())),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text.as_bytes()).as_ref(), Err(expected), "{text}");
        }
        assert!(matches!(parse(b"{\"id\":1,"), Err(BadLine::NotJson(_))));
    }
}
