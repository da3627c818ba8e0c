//! The body of a PUT, against what `serde_json` makes of the same bytes.
//!
//! Where the rules differ from those of `serde_json::Value`, they do so knowingly: numbers are kept as
//! they are written, however large; a value may be nested 128 deep, counted from itself, and members
//! that are not read as deep as they like; of `value` and `version` a second one is refused; a lone
//! surrogate in a value is kept as it is escaped.

use std::collections::BTreeMap;
use std::fmt;

use kv_core::command::VALUE_DEPTH_MAX;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::http::body::put;

/// Small, so that bodies above it are tried.
const VALUE_BYTES_MAX: usize = 1000;

pub(super) fn body(data: &[u8]) {
    let got = put(data, VALUE_BYTES_MAX).ok().map(|put| (put.value.as_bytes().to_vec(), put.version));
    assert_eq!(got, expected(data), "{}", String::from_utf8_lossy(data));
    let Some((value, _)) = got else { return };
    let again = serde_json::from_slice::<&RawValue>(&value).expect("an accepted value is JSON");
    assert_eq!(again.get().as_bytes(), value);
}

fn expected(data: &[u8]) -> Option<(Vec<u8>, Option<u64>)> {
    let text = std::str::from_utf8(data).ok()?;
    let Members(members) = serde_json::from_str(text).ok()?;
    let only = |name: &str| members.get(name).map(|values| (values.len() == 1).then(|| values[0].get()));
    let value = minified(only("value")??);
    let version = match only("version") {
        None => None,
        Some(text) => serde_json::from_str(text?).ok()?,
    };
    (depth(&value) <= VALUE_DEPTH_MAX && value.len() <= VALUE_BYTES_MAX).then(|| (value.into_bytes(), version))
}

/// Every member of an object, the repeated ones, too.
struct Members(BTreeMap<String, Vec<Box<RawValue>>>);

impl<'de> serde::Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members: BTreeMap<String, Vec<Box<RawValue>>> = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
            members.entry(name).or_default().push(value);
        }
        Ok(Members(members))
    }
}

/// Goes by characters and quotes, as a person would.
fn minified(raw: &str) -> String {
    let (mut is_inside, mut is_escaped) = (false, false);
    let keeps = |c: &char| {
        if is_inside {
            is_inside = is_escaped || *c != '"';
            is_escaped = !is_escaped && *c == '\\';
            return true;
        }
        is_inside = *c == '"';
        !matches!(c, ' ' | '\t' | '\n' | '\r')
    };
    raw.chars().filter(keeps).collect()
}

fn depth(minified: &str) -> usize {
    let (mut is_inside, mut is_escaped, mut depth, mut deepest) = (false, false, 0_usize, 0);
    for c in minified.chars() {
        if is_inside {
            is_inside = is_escaped || c != '"';
            is_escaped = !is_escaped && c == '\\';
            continue;
        }
        match c {
            '"' => is_inside = true,
            '[' | '{' => depth += 1,
            ']' | '}' => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}
