//! Reads request bodies, bounded in size and time, and takes them apart. Of a PUT only the spans of
//! `value` and `version` are cut out; the value is never parsed into a tree and built again.

use std::fmt;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::EXPECT;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use kv_core::command::Value;
use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::error::{Code, Failure};

/// Room around a value in the body of a PUT: the braces, `version`, whitespace.
pub(crate) const PUT_OVERHEAD_BYTES: usize = 64 * 1024;
/// Longest body of an administrator's call.
pub(crate) const CALL_BYTES_MAX: usize = 256 * 1024;
/// How much more than its limit of a body is read and dropped, so that the client comes to read the 413.
const DRAINED_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How much of a body is read, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) bytes_max: usize,
    pub(crate) timeout: Duration,
}

/// Reads a whole body. May be cancelled.
pub(crate) async fn read(headers: &HeaderMap, body: Body, limits: Limits) -> Result<Bytes, Failure> {
    let bytes_max = limits.bytes_max as u64;
    let declared = body.size_hint().lower();
    let waits_for_go_ahead = headers.contains_key(EXPECT);
    if declared > bytes_max + DRAINED_BYTES_MAX || (declared > bytes_max && waits_for_go_ahead) {
        return Err(too_large(limits.bytes_max));
    }
    match tokio::time::timeout(limits.timeout, collect(body, limits.bytes_max)).await {
        Ok(read) => read,
        Err(_) => Err(Failure::new(Code::SlowClient, "The body did not arrive in time")),
    }
}

async fn collect(mut body: Body, bytes_max: usize) -> Result<Bytes, Failure> {
    let mut first = Bytes::new();
    let mut all = Vec::new();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Err(Failure::invalid("body", "", "The body ends early")) };
        let Ok(data) = frame.into_data() else { continue };
        size += data.len();
        if size > bytes_max {
            if size as u64 > bytes_max as u64 + DRAINED_BYTES_MAX {
                break;
            }
        } else if size == data.len() {
            first = data; // most bodies are one frame: no copy
        } else {
            if all.is_empty() {
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&data);
        }
    }
    match size {
        size if size > bytes_max => Err(too_large(bytes_max)),
        _ if all.is_empty() => Ok(first),
        _ => Ok(all.into()),
    }
}

fn too_large(bytes_max: usize) -> Failure {
    Failure::new(Code::TooLarge, format!("The body is larger than {bytes_max} bytes"))
}

/// The members of a PUT that count; others are ignored, as the original does.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Put {
    pub(crate) value: Value,
    pub(crate) version: Option<u64>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Member {
    Value,
    Version,
    #[serde(other)]
    Other,
}

#[derive(Default)]
struct Spans<'a> {
    value: Option<&'a RawValue>,
    version: Option<&'a RawValue>,
    repeated: Option<&'static str>,
    /// The member whose value is being read: the one to name when that is not JSON.
    reading: &'static str,
}

/// Cuts the spans out of an object.
struct Cut<'s, 'de>(&'s mut Spans<'de>);

impl<'de> DeserializeSeed<'de> for Cut<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Cut<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the member \"value\"")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let spans = self.0;
        while let Some(member) = map.next_key()? {
            let (span, name) = match member {
                Member::Value => (&mut spans.value, "value"),
                Member::Version => (&mut spans.version, "version"),
                Member::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            spans.reading = name;
            if span.replace(map.next_value()?).is_some() {
                spans.repeated = Some(name);
            }
            spans.reading = "";
        }
        Ok(())
    }
}

/// Takes the body of a PUT apart.
pub(crate) fn put(body: &[u8], value_bytes_max: usize) -> Result<Put, Failure> {
    let mut spans = Spans::default();
    let mut json = serde_json::Deserializer::from_str(text(body)?);
    let cut = Cut(&mut spans).deserialize(&mut json).and_then(|()| json.end());
    cut.map_err(|e| Failure::invalid("body", spans.reading, e.to_string()))?;
    if let Some(name) = spans.repeated {
        return Err(Failure::invalid("body", name, "The member is given twice"));
    }
    let value = spans.value.ok_or_else(|| Failure::missing("body", "value"))?;
    let version = spans.version.map_or(Ok(None), version)?;
    Ok(Put { value: Value::from_json(value.get().as_bytes(), value_bytes_max)?, version })
}

fn version(span: &RawValue) -> Result<Option<u64>, Failure> {
    let not_a_version = || Failure::invalid("body", "version", "Must be an integer of 0 or more, of at most 64 bits");
    serde_json::from_str(span.get()).map_err(|_| not_a_version())
}

fn text(body: &[u8]) -> Result<&str, Failure> {
    std::str::from_utf8(body).map_err(|_| Failure::invalid("body", "", "The body is not UTF-8"))
}

/// Reads the body of an administrator's call; an empty one stands for `{}`.
pub(crate) fn call<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    let json = if body.trim_ascii().is_empty() { "{}" } else { text(body)? };
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let call = serde_path_to_error::deserialize(&mut deserializer).map_err(|e| {
        let member = e.path().to_string();
        Failure::invalid("body", if member == "." { "" } else { &member }, e.inner().to_string())
    })?;
    deserializer.end().map_err(|e| Failure::invalid("body", "", e.to_string()))?;
    Ok(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(body: &str) -> Result<String, String> {
        let put = put(body.as_bytes(), 1000).map_err(|failure| format!("{failure:?}"))?;
        Ok(String::from_utf8(put.value.as_bytes().to_vec()).unwrap())
    }

    #[test]
    fn a_value_is_kept_as_it_was_sent() {
        let kept = r#"{"b":1,"a":[123456789012345678901234567890,1e400,-0.0,null],"b":"\ud800 \/"}"#;
        assert_eq!(value(&format!(r#" {{ "value" : {kept} , "version" : 3 }} "#)), Ok(kept.to_owned()));
        assert_eq!(value(r#"{"value":null}"#), Ok("null".to_owned()));
        assert_eq!(value(r#"{"other":{"value":2},"value":1,"more":[]}"#), Ok("1".to_owned()));
        assert_eq!(value(r#"{"val\u0075e":1}"#), Ok("1".to_owned()));
    }

    #[test]
    fn the_version_is_an_integer_of_64_bits_or_absent() {
        let version =
            |text: &str| put(format!(r#"{{"value":1,"version":{text}}}"#).as_bytes(), 9).map(|put| put.version);
        assert_eq!(version("0").unwrap(), Some(0));
        assert_eq!(version("18446744073709551615").unwrap(), Some(u64::MAX));
        assert_eq!(version("null").unwrap(), None);
        for wrong in ["-1", "1.0", "1e3", "18446744073709551616", "\"1\"", "true", "[1]", "{}"] {
            let failure = format!("{:?}", version(wrong).expect_err(wrong));
            assert!(failure.contains("\"body\", \"version\""), "{failure}");
        }
    }

    #[test]
    fn what_is_not_such_a_body_is_refused_and_named() {
        for (body, named) in [
            ("{}", "\"value\""),
            (r#"{"version":1}"#, "\"value\""),
            (r#"{"value":1,"value":2}"#, "\"value\""),
            (r#"{"value":1,"version":2,"version":2}"#, "\"version\""),
            (r#"{"value":NaN}"#, "[\"body\", \"value\"]"),
            (r#"{"value":-Infinity}"#, "[\"body\", \"value\"]"),
            (r#"{"value":1,"version":nan}"#, "[\"body\", \"version\"]"),
            (r#"{"value":01}"#, "invalid number"),
            (r#"{"value":1"#, "EOF"),
            (r#"{"value":1} x"#, "trailing"),
            ("[1]", "an object"),
            ("\"text\"", "an object"),
            ("", "EOF"),
        ] {
            let failure = value(body).expect_err(body);
            assert!(failure.contains("InvalidRequest") && failure.contains(named), "{body}: {failure}");
        }
        assert!(put(b"{\"value\":\"\xff\"}", 9).is_err());
        assert!(put(b"{\"other\":\"\xff\",\"value\":1}", 9).is_err());
    }

    #[test]
    fn a_value_that_is_nested_too_deep_or_too_large_is_refused_without_recursion() {
        let deep = format!(r#"{{"value":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(value(&deep).unwrap_err().contains("128 levels"));
        let large = format!(r#"{{"value":"{}"}}"#, "x".repeat(1000));
        assert!(value(&large).unwrap_err().contains("TooLarge"));
    }

    #[test]
    fn a_call_names_the_member_that_is_wrong() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Example {
            #[expect(dead_code, reason = "only parsed")]
            list: Option<Vec<u64>>,
        }
        assert!(call::<Example>(b" ").is_ok());
        let wrong = |body: &[u8]| format!("{:?}", call::<Example>(body).expect_err("wrong"));
        assert!(wrong(br#"{"list":[1,"x"]}"#).contains("list[1]"));
        assert!(wrong(br#"{"lost":1}"#).contains("lost"));
        assert!(wrong(b"{} {}").contains("trailing"));
        assert!(wrong(b"\xff").contains("UTF-8"));
    }

    #[tokio::test]
    async fn a_body_over_its_limit_is_too_large_and_one_that_stalls_is_cut_off() {
        let limits = Limits { bytes_max: 4, timeout: Duration::from_millis(20) };
        let headers = HeaderMap::new();
        assert_eq!(read(&headers, Body::from("four"), limits).await.unwrap(), "four");
        let chunks = |texts: [&'static str; 2]| {
            let chunks = texts.map(|text| Ok::<_, std::io::Error>(Bytes::from(text)));
            Body::from_stream(futures::stream::iter(chunks))
        };
        assert_eq!(read(&headers, chunks(["fo", "ur"]), limits).await.unwrap(), "four");
        let failure = read(&headers, chunks(["four", "5"]), limits).await.unwrap_err();
        assert!(format!("{failure:?}").contains("TooLarge"));
        let stalled = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let failure = read(&headers, stalled, limits).await.unwrap_err();
        assert!(format!("{failure:?}").contains("SlowClient"));
    }
}
