//! `ETag`, `If-Match` and `If-None-Match`: an entity tag is the id of the entry that wrote the value,
//! in quotes, so that no delete and re-create can fool a precondition.

use axum::http::header::{IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use kv_core::command::Entity;
use kv_core::entry::EntryId;

use super::error::Failure;

/// The quotes and the digits of the largest id.
const TAG_BYTES_MAX: usize = 22;

/// The value of `ETag` for an entry.
pub(crate) fn tag(id: EntryId) -> HeaderValue {
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(id.0).as_bytes();
    let mut text = [b'"'; TAG_BYTES_MAX];
    text[1..=digits.len()].copy_from_slice(digits);
    HeaderValue::from_bytes(&text[..digits.len() + 2]).expect("digits and quotes are legal")
}

/// What one tag of a list stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    Star,
    Strong(EntryId),
    Weak(EntryId),
    /// A tag that we never gave.
    Foreign,
}

/// A precondition of a write as its headers state it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteCondition {
    Holds(Entity),
    /// It names a tag that no entry has, or a weak one: it never matches.
    Never,
}

/// `If-Match: "<id>"`, `If-Match: *`, `If-None-Match: *`; at most one of them.
pub(crate) fn write_condition(headers: &HeaderMap) -> Result<WriteCondition, Failure> {
    let matching = single(headers, &IF_MATCH)?;
    let none_matching = single(headers, &IF_NONE_MATCH)?;
    match (matching, none_matching) {
        (None, None) => Ok(WriteCondition::Holds(Entity::Any)),
        (Some(Tag::Star), None) => Ok(WriteCondition::Holds(Entity::Present)),
        (Some(Tag::Strong(id)), None) => Ok(WriteCondition::Holds(Entity::Is(id))),
        (Some(Tag::Weak(_) | Tag::Foreign), None) => Ok(WriteCondition::Never),
        (None, Some(Tag::Star)) => Ok(WriteCondition::Holds(Entity::Absent)),
        (None, Some(_)) => Err(Failure::invalid("header", "If-None-Match", "Only * is supported with a write")),
        (Some(_), Some(_)) => Err(Failure::invalid("header", "If-None-Match", "Not together with If-Match")),
    }
}

/// Whether `If-None-Match` of a read names this entry (weak comparison). What is not a list of tags
/// matches nothing: the client then gets the value.
pub(crate) fn is_known_to_client(headers: &HeaderMap, id: EntryId) -> bool {
    let names_it = |tag: Option<Tag>| match tag {
        Some(Tag::Star) => true,
        Some(Tag::Strong(known) | Tag::Weak(known)) => known == id,
        Some(Tag::Foreign) | None => false,
    };
    let values = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|text| names_it(parse(text)))
}

fn single(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tag>, Failure> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let tag = value.to_str().ok().and_then(parse).filter(|_| values.next().is_none());
    tag.map(Some).ok_or_else(|| Failure::invalid("header", header_text(name), "Must be * or one entity tag in quotes"))
}

/// The spelling that people know.
fn header_text(name: &HeaderName) -> &'static str {
    if *name == IF_MATCH { "If-Match" } else { "If-None-Match" }
}

/// None: not an entity tag.
fn parse(text: &str) -> Option<Tag> {
    let text = text.trim();
    if text == "*" {
        return Some(Tag::Star);
    }
    let (of_id, quoted): (fn(EntryId) -> Tag, &str) = match text.strip_prefix("W/") {
        Some(rest) => (Tag::Weak, rest),
        None => (Tag::Strong, text),
    };
    let opaque = quoted.strip_prefix('"')?.strip_suffix('"')?;
    if opaque.contains('"') {
        return None;
    }
    let canonical = |id: &u64| itoa::Buffer::new().format(*id) == opaque;
    let id = opaque.parse::<u64>().ok().filter(canonical).map(EntryId);
    Some(id.map_or(Tag::Foreign, of_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(given: &[(HeaderName, &str)]) -> HeaderMap {
        given.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn a_tag_is_the_id_in_quotes() {
        assert_eq!(tag(EntryId(15)), "\"15\"");
        assert_eq!(tag(EntryId(u64::MAX)), "\"18446744073709551615\"");
    }

    #[test]
    fn a_write_is_conditional_on_one_strong_tag_or_a_star() {
        let condition = |value: &str| write_condition(&headers(&[(IF_MATCH, value)]));
        assert_eq!(write_condition(&HeaderMap::new()).unwrap(), WriteCondition::Holds(Entity::Any));
        assert_eq!(condition("\"15\"").unwrap(), WriteCondition::Holds(Entity::Is(EntryId(15))));
        assert_eq!(condition("*").unwrap(), WriteCondition::Holds(Entity::Present));
        for never in ["W/\"15\"", "\"015\"", "\"+15\"", "\"abc\"", "\"\"", "\"18446744073709551616\""] {
            assert_eq!(condition(never).unwrap(), WriteCondition::Never, "{never}");
        }
        for malformed in ["15", "\"15", "", "w/\"15\"", "\"1\", \"2\""] {
            assert!(condition(malformed).is_err(), "{malformed}");
        }
        let absent = write_condition(&headers(&[(IF_NONE_MATCH, "*")]));
        assert_eq!(absent.unwrap(), WriteCondition::Holds(Entity::Absent));
        assert!(write_condition(&headers(&[(IF_NONE_MATCH, "\"1\"")])).is_err());
        assert!(write_condition(&headers(&[(IF_NONE_MATCH, "*"), (IF_MATCH, "*")])).is_err());
    }

    #[test]
    fn a_read_is_not_modified_when_any_tag_of_the_list_is_the_current_one() {
        let known = |value: &str| is_known_to_client(&headers(&[(IF_NONE_MATCH, value)]), EntryId(15));
        assert!(known("\"15\""));
        assert!(known("\"1\", W/\"15\""));
        assert!(known("*"));
        assert!(!known("\"16\""));
        assert!(!known("15"));
        assert!(!is_known_to_client(&HeaderMap::new(), EntryId(15)));
    }
}
