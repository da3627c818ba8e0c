//! Values of settings: from text to a type, within bounds. A value out of bounds is refused with a
//! message that names the flag and its environment variable.

use std::ffi::OsStr;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use kv_core::group::{NodeName, check_peer_url};

/// Reads one value; the error says what it must be.
type Read<T> = fn(&str) -> Result<T, String>;

/// A reader that clap calls.
#[derive(Clone)]
pub(super) struct Checked<T>(Read<T>);

pub(super) fn checked<T>(read: Read<T>) -> Checked<T> {
    Checked(read)
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Checked<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Self::Value, clap::Error> {
        let read = value.to_str().ok_or_else(|| "must be UTF-8".to_owned()).and_then(self.0);
        read.map_err(|reason| {
            let message = format!("{} is {value:?}: {reason}\n", arg.map(setting_name).unwrap_or_default());
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}

/// `--drain-delay (environment: DRAIN_DELAY)`.
fn setting_name(arg: &clap::Arg) -> String {
    let flag = arg.get_long().map_or_else(|| format!("<{}>", arg.get_id()), |long| format!("--{long}"));
    match arg.get_env().and_then(OsStr::to_str) {
        Some("NODE_ID") => format!("{flag} (environment: NODE_ID or FOLLOWER_ID)"),
        Some("NODE_URL") => format!("{flag} (environment: NODE_URL or FOLLOWER_URL)"),
        Some(variable) => format!("{flag} (environment: {variable})"),
        None => flag,
    }
}

/// A whole number within bounds.
pub(super) fn whole(text: &str, bounds: RangeInclusive<u64>, unit: &str) -> Result<u64, String> {
    let number: Option<u64> = text.parse().ok();
    number.filter(|n| bounds.contains(n)).ok_or_else(|| {
        let (least, most) = (bounds.start(), bounds.end());
        format!("must be a whole number of {unit} from {least} to {most}")
    })
}

/// Seconds, fractions allowed, within bounds.
pub(super) fn seconds(text: &str, bounds: RangeInclusive<f64>) -> Result<Duration, String> {
    let number: Option<f64> = text.parse().ok();
    let number = number.filter(|n| bounds.contains(n)).ok_or_else(|| {
        let (least, most) = (bounds.start(), bounds.end());
        format!("must be a number of seconds from {least} to {most}")
    })?;
    Ok(Duration::from_secs_f64(number))
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}

pub(super) fn node_name(text: &str) -> Result<NodeName, String> {
    NodeName::new(text).map_err(|error| error.to_string())
}

/// `host:port`; port 0 takes a free one.
pub(super) fn listen_address(text: &str) -> Result<String, String> {
    let parts = text.rsplit_once(':');
    let is_address = parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if is_address { Ok(text.to_owned()) } else { Err("must be host:port, such as 0.0.0.0:8000".into()) }
}

/// A client URL, without the slash at its end.
pub(super) fn url(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    match reqwest::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(text.to_owned()),
        _ => Err("must be a URL such as http://localhost:8000".into()),
    }
}

/// `host:port` or `http://host:port` of a peer port.
pub(super) fn peer_url(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    check_peer_url(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_may_be_fractions_and_must_be_within_their_bounds() {
        assert_eq!(seconds("0.25", 0.01..=10.0), Ok(Duration::from_millis(250)));
        for bad in ["0", "11", "-1", "NaN", "inf", "ten", ""] {
            assert!(seconds(bad, 0.01..=10.0).is_err(), "{bad}");
        }
    }

    #[test]
    fn whole_numbers_have_no_sign_and_no_fraction() {
        assert_eq!(whole("7", 1..=9, "bytes"), Ok(7));
        for bad in ["0", "10", "-1", "1.5", "99999999999999999999", ""] {
            assert!(whole(bad, 1..=9, "bytes").is_err(), "{bad}");
        }
    }

    #[test]
    fn urls_lose_their_last_slash() {
        assert_eq!(url("http://localhost:8000/"), Ok("http://localhost:8000".into()));
        assert!(url("localhost:8000").is_err());
        assert!(url("ftp://localhost").is_err());
    }

    #[test]
    fn a_peer_url_names_a_port_and_loses_its_last_slash() {
        assert_eq!(peer_url("http://node-1.nodes:9000/"), Ok("http://node-1.nodes:9000".into()));
        assert!(peer_url("10.0.0.1").is_err());
    }
}
