//! The cluster file: which nodes found a group together, and which of them is told to lead. It names
//! members and addresses; who votes is decided by the member ids that the bootstrap collects.

use std::collections::BTreeSet;
use std::path::Path;

use kv_core::contract::Failover;
use kv_core::group::{NodeName, VOTERS_MAX};
use serde::{Deserialize, Serialize};

use super::{ConfigError, parse};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFile {
    pub members: Vec<ClusterMember>,
    /// The node that founds the group and is told to lead at start.
    pub leader: NodeName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<Failover>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterMember {
    pub id: NodeName,
    pub url: String,
    pub peer_url: String,
}

impl ClusterFile {
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let refused = |reason: String| ConfigError::ClusterFile { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
        Self::parse(&text).map_err(refused)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut file: Self = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
        for member in &mut file.members {
            member.url = parse::url(&member.url).map_err(|e| format!("url of {}: {e}", member.id))?;
            member.peer_url =
                parse::peer_url(&member.peer_url).map_err(|e| format!("peer_url of {}: {e}", member.id))?;
        }
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        if self.members.is_empty() || self.members.len() > VOTERS_MAX {
            return Err(format!("it must have 1 to {VOTERS_MAX} members"));
        }
        let names: BTreeSet<_> = self.members.iter().map(|m| &m.id).collect();
        if names.len() < self.members.len() {
            return Err("two members have the same id".into());
        }
        if self.member(&self.leader).is_none() {
            return Err(format!("its leader {} is not one of its members", self.leader));
        }
        Ok(())
    }

    pub fn member(&self, name: &NodeName) -> Option<&ClusterMember> {
        self.members.iter().find(|member| member.id == *name)
    }

    /// All members but this one.
    pub fn others<'a>(&'a self, name: &'a NodeName) -> impl Iterator<Item = &'a ClusterMember> {
        self.members.iter().filter(move |member| member.id != *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
members:
  - {id: leader, url: 'http://localhost:8000/', peer_url: 'localhost:9000'}
  - {id: follower-1, url: 'http://localhost:8001', peer_url: 'http://localhost:9001'}
leader: leader
failover: automatic
";

    #[test]
    fn members_leader_and_failover_are_read() {
        let file = ClusterFile::parse(FILE).unwrap();
        assert_eq!(file.failover, Some(Failover::Automatic));
        assert_eq!(file.members[0].url, "http://localhost:8000");
        let name = NodeName::new("leader").unwrap();
        assert_eq!(file.others(&name).count(), 1);
    }

    #[test]
    fn a_file_that_contradicts_itself_is_refused_with_the_reason() {
        let cases = [
            (FILE.replace("leader: leader", "leader: nobody"), "nobody"),
            (FILE.replace("id: follower-1", "id: leader"), "same id"),
            (FILE.replace("'localhost:9000'", "'localhost'"), "peer_url of leader"),
            (FILE.replace("failover: automatic", "failover: sometimes"), "sometimes"),
            (FILE.replace("failover:", "fail_over:"), "fail_over"),
        ];
        for (text, named) in cases {
            let reason = ClusterFile::parse(&text).unwrap_err();
            assert!(reason.contains(named), "{reason}");
        }
    }
}
