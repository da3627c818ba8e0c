//! What `kv-node dev` prints for a person: the table of nodes, lines to try, and how to start a node
//! again.

use std::ffi::OsStr;
use std::fmt::Write;

use kv_core::status::Role;

use super::child::{Child, Ended};
use super::plan::{NodePlan, Plan};
use crate::config::SETTING_VARIABLES;

/// Once, when all nodes are ready.
pub(super) fn welcome(plan: &Plan, children: &[Child], roles: &[Role]) -> String {
    let mut text = String::from("\nThe cluster is ready.\n\n");
    table(&mut text, plan, children, roles);
    text.push_str("\nTry:\n");
    for line in lines_to_try(plan) {
        line_to(&mut text, &format!("  {line}"));
    }
    text.push_str("\nKill any of these processes: the others carry on. Start it again with:\n");
    for node in &plan.nodes {
        line_to(&mut text, &format!("  {}", command(plan, node)));
    }
    text.push_str("\nCtrl-C stops all nodes. The same command continues with the same data.");
    text
}

/// When a node has ended by itself or by someone's hand.
pub(super) fn farewell(plan: &Plan, ended: &Ended) -> String {
    let node = plan.nodes.iter().find(|node| node.name == ended.name).expect("children are made from the plan");
    format!("\n{ended} has ended. Start it again with:\n  {}\n", command(plan, node))
}

fn line_to(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("a string takes all that is written");
}

fn table(text: &mut String, plan: &Plan, children: &[Child], roles: &[Role]) {
    line_to(text, &format!("{:<11} {:<9} {:<22} {:<8} data dir", "id", "role", "url", "pid"));
    for ((node, child), role) in plan.nodes.iter().zip(children).zip(roles) {
        let (name, role, url, dir) = (node.name.as_str(), word(*role), node.url(), node.data_dir.display());
        line_to(text, &format!("{name:<11} {role:<9} {url:<22} {:<8} {dir}", child.pid));
    }
}

fn word(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Learner => "learner",
        Role::Candidate => "candidate",
        Role::Uninitialised => "empty",
    }
}

fn lines_to_try(plan: &Plan) -> Vec<String> {
    let (first, last) = (plan.nodes[0].url(), plan.nodes[plan.nodes.len() - 1].url());
    vec![
        format!("curl -X PUT {first}/key/config -H 'Content-Type: application/json' -d '{{\"value\": \"blue\"}}'"),
        format!("curl {last}/key/config"),
        format!("curl {last}/key/config/history"),
        format!("curl -X DELETE {last}/key/config"),
        format!("curl {first}/cluster_status"),
        format!("open {first}/docs"),
    ]
}

/// Complete: from any shell in the same directory it starts the same node.
fn command(plan: &Plan, node: &NodePlan) -> String {
    let set = SETTING_VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let settings = set.map(|(name, value)| format!("{name}={}", quoted(&value)));
    let program = std::env::current_exe().map_or_else(|_| "kv-node".into(), |path| quoted(path.as_os_str()));
    let arguments = plan.arguments(node).into_iter().map(|argument| quoted(&argument));
    settings.chain([program]).chain(arguments).collect::<Vec<_>>().join(" ")
}

/// As a shell reads it back.
fn quoted(text: &OsStr) -> String {
    let text = text.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_read_otherwise_is_quoted() {
        assert_eq!(quoted(OsStr::new("data/leader")), "data/leader");
        assert_eq!(quoted(OsStr::new("my data")), "'my data'");
        assert_eq!(quoted(OsStr::new("it's")), r"'it'\''s'");
        assert_eq!(quoted(OsStr::new("")), "''");
    }
}
