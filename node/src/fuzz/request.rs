//! The query of a URL and the headers that make a request conditional.

use axum::http::header::{IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use kv_core::command::Entity;
use kv_core::entry::EntryId;

use crate::http::entity_tag::{WriteCondition, is_known_to_client, tag, write_condition};
use crate::http::query::Query;
use crate::http::reads::Freshness;

const KNOWN: [&str; 6] = ["client_id", "consistency", "force", "min_id", "request_id", "version"];

/// The first line is a query, each further one a header: `If-Match` when it begins with `=`, else `If-None-Match`.
pub(super) fn request(data: &[u8]) {
    let mut lines = data.split(|&byte| byte == b'\n');
    if let Ok(text) = std::str::from_utf8(lines.next().unwrap_or_default()) {
        query(text);
    }
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = match line.strip_prefix(b"=") {
            Some(value) => (IF_MATCH, value),
            None => (IF_NONE_MATCH, line),
        };
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
    conditions(&headers);
}

/// Each parameter is what stands in the query, or the whole is refused.
fn query(text: &str) {
    let expected = expected(text);
    let query = Query::parse(Some(text), &KNOWN);
    assert_eq!(query.is_ok(), expected.is_some(), "{text:?}");
    let (Ok(query), Some(expected)) = (query, expected) else { return };
    for name in KNOWN {
        let value = expected.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str());
        assert_eq!(query.text(name), value, "{text:?}");
        if let Ok(number) = query.number(name) {
            let digits = value.map(|value| value.trim_start_matches('0'));
            let written = number.map(|number| if number == 0 { String::new() } else { number.to_string() });
            assert_eq!(written.as_deref(), digits, "{text:?}");
        }
    }
    let (min_id, request_id) = (query.number("min_id").ok().flatten(), query.request_id().ok().flatten());
    if let Ok(freshness) = Freshness::of(&query) {
        assert_eq!(freshness.min_id, min_id.map(EntryId));
    }
    if let Some(id) = request_id {
        assert_eq!(query.text("client_id"), Some(&*id.client_id));
        assert_eq!(query.text("request_id"), Some(&*id.request_id));
    }
}

/// None: refused.
fn expected(text: &str) -> Option<Vec<(String, String)>> {
    let mut given: Vec<(String, String)> = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decoded(name)?, decoded(value)?);
        if !KNOWN.contains(&name.as_str()) || given.iter().any(|(other, _)| *other == name) {
            return None;
        }
        given.push((name, value));
    }
    Some(given)
}

/// Byte by byte: what is no escape stays as it is.
fn decoded(text: &str) -> Option<String> {
    let hex = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let (bytes, mut at, mut out) = (text.as_bytes(), 0, Vec::new());
    while let Some(&byte) = bytes.get(at) {
        let escape = hex(bytes.get(at + 1)).zip(hex(bytes.get(at + 2))).filter(|_| byte == b'%');
        match escape {
            Some((high, low)) => out.push(u8::try_from(high * 16 + low).expect("two digits")),
            None => out.push(if byte == b'+' { b' ' } else { byte }),
        }
        at += if escape.is_some() { 3 } else { 1 };
    }
    String::from_utf8(out).ok()
}

/// A write is conditional on an entry only by that entry's own tag, alone; a read that names it, is.
fn conditions(headers: &HeaderMap) {
    let condition = write_condition(headers).ok();
    let one = |name: HeaderName| headers.get(&name).filter(|_| headers.get_all(&name).iter().count() == 1);
    let condition_of = |id: EntryId| condition == Some(WriteCondition::Holds(Entity::Is(id)));
    if let Some(WriteCondition::Holds(Entity::Is(id))) = condition {
        let given = one(IF_MATCH).and_then(|value| value.to_str().ok());
        assert_eq!(given.map(str::trim), tag(id).to_str().ok(), "{headers:?}");
        assert!(!headers.contains_key(IF_NONE_MATCH), "{headers:?}");
    }
    for id in ids(headers) {
        if one(IF_MATCH).is_some_and(|value| *value == tag(id)) && !headers.contains_key(IF_NONE_MATCH) {
            assert!(condition_of(id), "{headers:?}");
        }
        if headers.get_all(IF_NONE_MATCH).iter().any(|value| *value == tag(id)) {
            assert!(is_known_to_client(headers, id), "{headers:?}");
        }
    }
    assert!(headers.contains_key(IF_NONE_MATCH) || !is_known_to_client(headers, EntryId(1)), "{headers:?}");
}

/// All numbers in the headers.
fn ids(headers: &HeaderMap) -> Vec<EntryId> {
    let texts = headers.values().flat_map(|value| value.as_bytes().split(|byte| !byte.is_ascii_digit()));
    let numbers = texts.filter_map(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    numbers.map(EntryId).collect()
}
