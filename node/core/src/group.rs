//! Who a node is and whom it replicates with: names, member ids, cluster ids, the configuration and
//! the group's settings. Plain data that travels in lines, frames, manifests and status documents;
//! decides nothing. Used by everyone.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::entry::EntryId;

/// Most earlier versions of a key that can be asked for.
pub const HISTORY_LIMIT_MAX: u32 = 100_000;
/// Longest time for which a request can be remembered, in seconds: a year.
pub const DEDUP_EXPIRY_SECONDS_MAX: u64 = 31_536_000;
/// Most requests that can be remembered.
pub const DEDUP_LIMIT_MAX: u64 = 10_000_000;
/// Longest name of a node or of a cluster, in bytes.
pub const NAME_BYTES_MAX: usize = 253;
/// Longest URL of a peer port, in bytes: a host's name, its scheme and its port fit.
pub const PEER_URL_BYTES_MAX: usize = 300;
/// Most voters in a group.
pub const VOTERS_MAX: usize = 7;

/// A name, id or URL that is not of its form; the text is fit for a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadName(pub String);

/// The identity that a volume gets when it is first used, and keeps. 16 hexadecimal digits in text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemberId(pub u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MemberId {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let well_formed = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let id = well_formed.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        id.map(Self).ok_or_else(|| BadName(format!("member id {text:?} is not 16 hexadecimal digits")))
    }
}

impl TryFrom<String> for MemberId {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<MemberId> for String {
    fn from(id: MemberId) -> Self {
        id.to_string()
    }
}

/// Declares a bounded, printable identifier: letters, digits, `-`, `_`, `.`.
macro_rules! name_type {
    ($name:ident, $what:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            pub fn new(text: &str) -> Result<Self, BadName> {
                let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
                if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(legal) {
                    return Err(BadName(format!(
                        concat!($what, " {:?} must have 1 to {} letters, digits, '-', '_' or '.'"),
                        text, NAME_BYTES_MAX
                    )));
                }
                Ok(Self(text.into()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(text: String) -> Result<Self, BadName> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }
    };
}

name_type!(ClusterId, "cluster id", "The identity of a group, chosen once at bootstrap; a recovery chooses a new one.");
name_type!(NodeName, "node id", "What people call a node: `--id`, the `id` in the HTTP API, a pod's name.");

/// `host:port` or `http://host:port`: of such form is the peer URL of every member that a group takes in. Not a type
/// of its own, since what a log already holds must stay readable.
pub fn check_peer_url(text: &str) -> Result<(), BadName> {
    let address = text.strip_prefix("http://").unwrap_or(text);
    let (host, port) = address.rsplit_once(':').unwrap_or_default();
    let is_bare = !address.bytes().any(|b| b == b'/' || b.is_ascii_whitespace() || b.is_ascii_control());
    let is_address = !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0);
    if text.len() <= PEER_URL_BYTES_MAX && is_bare && is_address {
        return Ok(());
    }
    Err(BadName(format!("must be host:port or http://host:port, at most {PEER_URL_BYTES_MAX} bytes")))
}

/// A member as the configuration and directives name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberInfo {
    pub name: NodeName,
    pub member_id: MemberId,
    /// `host:port` or `http://host:port` of its peer port.
    pub peer_url: String,
}

/// A member that lost its volume, and the one that comes in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replacement {
    pub old: MemberId,
    pub new: MemberInfo,
}

/// The voters of a group, in order of their names. Learners are not in it, except those awaited.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    pub voters: Vec<MemberInfo>,
    /// Replacements half done: the old member was removed, the new one does not vote yet. In the log, so that
    /// whoever leads next finishes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replacing: Vec<Replacement>,
}

impl Configuration {
    pub fn new(mut voters: Vec<MemberInfo>) -> Self {
        voters.sort_by(|a, b| a.name.cmp(&b.name));
        Self { voters, replacing: Vec::new() }
    }

    /// With `member` as a voter, whomever it replaces.
    pub fn with(&self, member: MemberInfo) -> Self {
        let mut replacing = self.replacing.clone();
        replacing.retain(|replacement| replacement.new.name != member.name);
        let mut voters = self.voters.clone();
        voters.push(member);
        Self { replacing, ..Self::new(voters) }
    }

    /// Without `member`, voter or awaited; `successor` is awaited in its place.
    pub fn without(&self, member: MemberId, successor: Option<MemberInfo>) -> Self {
        let mut next = self.clone();
        next.voters.retain(|voter| voter.member_id != member);
        next.replacing.retain(|replacement| replacement.new.member_id != member);
        let successor = successor.filter(|_| next.replacing.len() < VOTERS_MAX);
        next.replacing.extend(successor.map(|new| Replacement { old: member, new }));
        next
    }

    pub fn awaits(&self, member: MemberId) -> bool {
        self.replacing.iter().any(|replacement| replacement.new.member_id == member)
    }

    pub fn contains(&self, member: MemberId) -> bool {
        self.voters.iter().any(|v| v.member_id == member)
    }

    pub fn ids(&self) -> impl Iterator<Item = MemberId> + '_ {
        self.voters.iter().map(|v| v.member_id)
    }
}

impl fmt::Debug for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Configuration");
        shown.field("voters", &self.voters);
        if !self.replacing.is_empty() {
            shown.field("replacing", &self.replacing);
        }
        shown.finish()
    }
}

/// A configuration and the entry that set it; id 0: bootstrap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigurationAt {
    pub id: EntryId,
    pub configuration: Configuration,
}

/// The settings that decide what apply does. They are state of the group: an entry changes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Earlier versions kept for each key.
    pub history_limit: u32,
    /// How long a request is remembered, in seconds of entry time.
    pub dedup_expiry_seconds: u64,
    /// Most requests remembered.
    pub dedup_limit: u64,
}

impl Settings {
    /// The ranges of the group's settings; requests, flags and files are held to the same. The text
    /// names the setting.
    pub fn check(&self) -> Result<(), String> {
        if self.history_limit > HISTORY_LIMIT_MAX {
            return Err(format!("history_limit must be at most {HISTORY_LIMIT_MAX}"));
        }
        if self.dedup_expiry_seconds == 0 || self.dedup_expiry_seconds > DEDUP_EXPIRY_SECONDS_MAX {
            return Err(format!("dedup_expiry_seconds must be 1 to {DEDUP_EXPIRY_SECONDS_MAX}"));
        }
        if self.dedup_limit == 0 || self.dedup_limit > DEDUP_LIMIT_MAX {
            return Err(format!("dedup_limit must be 1 to {DEDUP_LIMIT_MAX}"));
        }
        Ok(())
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self { history_limit: 100, dedup_expiry_seconds: 3600, dedup_limit: 1_000_000 }
    }
}

/// What all voters of a group are known to understand; what changes apply needs a raise first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FeatureLevel(pub u32);

/// From this level on the base of a log says how far the time in it has come.
pub const TIME_IN_BASE: FeatureLevel = FeatureLevel(2);

/// The feature level of this build.
pub const FEATURE_LEVEL: FeatureLevel = TIME_IN_BASE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_id_is_sixteen_digits_in_text_and_back() {
        let id = MemberId(0xab);
        assert_eq!(id.to_string(), "00000000000000ab");
        assert_eq!("00000000000000ab".parse(), Ok(id));
        assert!("ab".parse::<MemberId>().is_err());
        assert!("+0000000000000ab".parse::<MemberId>().is_err());
    }

    #[test]
    fn a_configuration_awaits_whoever_replaces_a_removed_voter_until_that_one_votes() {
        let member = |name, id| MemberInfo {
            name: NodeName::new(name).unwrap(),
            member_id: MemberId(id),
            peer_url: String::new(),
        };
        let before = Configuration::new(vec![member("a", 1), member("b", 2)]);
        let between = before.without(MemberId(2), Some(member("b", 3)));
        assert!(between.awaits(MemberId(3)) && !between.contains(MemberId(3)));
        assert_eq!(between.without(MemberId(3), None), Configuration::new(vec![member("a", 1)]));
        assert_eq!(between.with(member("b", 3)), Configuration::new(vec![member("a", 1), member("b", 3)]));
        let json = serde_json::to_string(&between).unwrap();
        assert_eq!(serde_json::from_str::<Configuration>(&json).unwrap(), between);
        assert!(!serde_json::to_string(&before).unwrap().contains("replacing"));
    }

    #[test]
    fn a_peer_url_is_short_and_names_a_host_and_a_port() {
        let longest = format!("http://{}:9000", "h".repeat(PEER_URL_BYTES_MAX - 12));
        for good in ["10.0.0.1:9000", "http://node-1.nodes:9000", "http://[::1]:9000", &longest] {
            assert_eq!(check_peer_url(good), Ok(()), "{good}");
        }
        let too_long = format!("http://{}:9000", "h".repeat(PEER_URL_BYTES_MAX - 11));
        let bad = ["", "10.0.0.1", "http://a:0", "https://a:9000", "http://a:9000/path", ":9000", "not a url", "a b:1"];
        for bad in bad.into_iter().chain([too_long.as_str(), "a\u{a0}b:1x", "a\nb:1"]) {
            assert!(check_peer_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_are_held_to_their_ranges() {
        let usual = Settings::default();
        let expiry = |seconds| Settings { dedup_expiry_seconds: seconds, ..usual }.check().is_ok();
        assert!(expiry(1) && expiry(DEDUP_EXPIRY_SECONDS_MAX) && !expiry(0) && !expiry(DEDUP_EXPIRY_SECONDS_MAX + 1));
        let requests = |limit| Settings { dedup_limit: limit, ..usual }.check().is_ok();
        assert!(requests(1) && requests(DEDUP_LIMIT_MAX) && !requests(0) && !requests(DEDUP_LIMIT_MAX + 1));
        let versions = |limit| Settings { history_limit: limit, ..usual }.check().is_ok();
        assert!(versions(0) && versions(HISTORY_LIMIT_MAX) && !versions(HISTORY_LIMIT_MAX + 1));
    }

    #[test]
    fn a_name_with_a_slash_is_refused() {
        assert!(NodeName::new("a/b").is_err());
        assert!(ClusterId::new("").is_err());
        assert!(NodeName::new("follower-1").is_ok());
    }
}
