//! Query parameters, strictly: an unknown name, a name given twice and a value that is not of its
//! form are each 422 that names the parameter.

use std::borrow::Cow;

use kv_core::command::RequestId;
use percent_encoding::percent_decode;

use super::error::Failure;

/// The parameters of one request, each of a known name.
#[derive(Debug, Default)]
pub(crate) struct Query<'a> {
    given: Vec<(&'static str, Cow<'a, str>)>,
}

impl<'a> Query<'a> {
    /// Takes the query of a URL apart; `known` are the names that the route has.
    pub(crate) fn parse(query: Option<&'a str>, known: &[&'static str]) -> Result<Self, Failure> {
        let mut given = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).ok_or_else(|| Failure::invalid("query", "", "A parameter's name is not UTF-8"))?;
            let Some(&known_name) = known.iter().find(|known| **known == name) else {
                return Err(Failure::invalid("query", &name, "The parameter is not known here"));
            };
            if given.iter().any(|(other, _)| *other == known_name) {
                return Err(Failure::invalid("query", known_name, "The parameter is given twice"));
            }
            let value = decode(value).ok_or_else(|| Failure::invalid("query", known_name, "The value is not UTF-8"))?;
            given.push((known_name, value));
        }
        Ok(Self { given })
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.given.iter().find(|(given, _)| *given == name).map(|(_, value)| &**value)
    }

    /// An integer of 0 or more in plain decimal.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let digits_only = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = digits_only.then(|| text.parse().ok()).flatten();
        let message = "Must be an integer of 0 or more, of at most 64 bits";
        number.map(Some).ok_or_else(|| Failure::invalid("query", name, message))
    }

    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, Failure> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let is_one_of = |words: [&str; 2]| words.iter().any(|word| text.eq_ignore_ascii_case(word)); // Python says True
        if is_one_of(["true", "1"]) {
            return Ok(Some(true));
        }
        if is_one_of(["false", "0"]) {
            return Ok(Some(false));
        }
        Err(Failure::invalid("query", name, "Must be true or false"))
    }

    /// `client_id` and `request_id`: both or none.
    pub(crate) fn request_id(&self) -> Result<Option<RequestId>, Failure> {
        match (self.text("client_id"), self.text("request_id")) {
            (None, None) => Ok(None),
            (Some(client_id), Some(request_id)) => Ok(Some(RequestId::new(client_id, request_id)?)),
            (None, Some(_)) => Err(Failure::missing("query", "client_id")),
            (Some(_), None) => Err(Failure::missing("query", "request_id")),
        }
    }
}

/// Percent-decoding with `+` for a space, as forms have it.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    if memchr::memchr2(b'%', b'+', text.as_bytes()).is_none() {
        return Some(Cow::Borrowed(text));
    }
    let spaced = text.replace('+', " ");
    let decoded = percent_decode(spaced.as_bytes()).decode_utf8().ok()?;
    Some(Cow::Owned(decoded.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 4] = ["client_id", "request_id", "n", "force"];

    fn failure(query: &str, read: impl Fn(&Query<'_>) -> Option<Failure>) -> String {
        let failure = match Query::parse(Some(query), &KNOWN) {
            Ok(query) => read(&query).expect("a failure"),
            Err(failure) => failure,
        };
        format!("{failure:?}")
    }

    #[test]
    fn what_is_not_known_or_given_twice_or_not_utf8_is_refused_by_name() {
        assert!(failure("x=1", |_| None).contains("\"query\", \"x\""));
        assert!(failure("n=1&n=1", |_| None).contains("\"n\""));
        assert!(failure("n=%ff", |_| None).contains("\"n\""));
        assert!(failure("%ff=1", |_| None).contains("UTF-8"));
    }

    #[test]
    fn numbers_and_flags_have_one_form() {
        let query = Query::parse(Some("n=007&force=True&"), &KNOWN).unwrap();
        assert_eq!(query.number("n").unwrap(), Some(7));
        assert_eq!(query.flag("force").unwrap(), Some(true));
        for wrong in ["n=", "n=-1", "n=%2B1", "n=1.0", "n=18446744073709551616"] {
            assert!(failure(wrong, |query| query.number("n").err()).contains("\"n\""), "{wrong}");
        }
        assert!(failure("force=maybe", |query| query.flag("force").err()).contains("\"force\""));
    }

    #[test]
    fn request_ids_come_in_pairs() {
        let query = Query::parse(Some("client_id=a+b&request_id=%2F"), &KNOWN).unwrap();
        assert_eq!(query.request_id().unwrap(), Some(RequestId::new("a b", "/").unwrap()));
        assert_eq!(Query::parse(None, &KNOWN).unwrap().request_id().unwrap(), None);
        assert!(failure("client_id=a", |query| query.request_id().err()).contains("request_id"));
        assert!(failure("request_id=a", |query| query.request_id().err()).contains("client_id"));
        assert!(failure("client_id=&request_id=a", |query| query.request_id().err()).contains("client_id"));
    }
}
