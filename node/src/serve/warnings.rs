//! What a person should read in the log about this start, once each: that it waits for a leader, and
//! settings that the group does not follow.

use std::time::Duration;

use kv_core::contract::{Failover, Reply, Request, SettingsChange};
use kv_core::group::Settings;
use tokio::time::Instant;

use crate::config::{ServeConfig, StartRole};
use crate::driver::Handle;
use crate::wal::Recovered;

/// How long one look for the group's settings waits; then it begins again.
const LOOK: Duration = Duration::from_secs(600);

/// A voter of several does not lead because it was started alone; nothing else would say so.
pub(super) fn tell_voters(config: &ServeConfig, recovered: &Recovered) {
    let newest = recovered.configurations.last().unwrap_or(&recovered.base.configuration);
    let voters: Vec<&str> = newest.configuration.voters.iter().map(|voter| voter.name.as_str()).collect();
    let is_waiting = voters.len() > 1 && !config.lead_at_start && config.tuning.failover == Failover::Manual;
    if is_waiting && config.role == StartRole::Alone {
        let voters = voters.join(", ");
        tracing::info!(voters, "one of several voters: --leader, or POST /cluster/lead, tells one of them to lead");
    }
}

/// The group's settings are its state: flags that ask for others have no effect, and that is said once.
pub(super) fn watch_settings(handle: Handle, asked: SettingsChange) {
    if asked == SettingsChange::default() {
        return;
    }
    tokio::spawn(async move {
        tokio::select! {
            () = compare_settings(&handle, asked) => {}
            _ = handle.stopped() => {}
        }
    });
}

async fn compare_settings(handle: &Handle, asked: SettingsChange) {
    while handle.wait_view(Instant::now() + LOOK, |view| view.caught_up).await.is_none() {}
    let Ok(Reply::Status(status)) = handle.request(Request::Status, Instant::now() + LOOK).await else { return };
    let differing = differing(&asked, &status.settings);
    if !differing.is_empty() {
        let flags = differing.join(", ");
        tracing::warn!(flags, "the group's settings differ and stay as they are; POST /cluster/settings changes them");
    }
}

/// The flags that ask for something else than what is in force.
fn differing(asked: &SettingsChange, in_force: &Settings) -> Vec<String> {
    let SettingsChange { history_limit, dedup_expiry_seconds, dedup_limit } = *asked;
    let flags = [
        ("--history-limit", history_limit.map(u64::from), u64::from(in_force.history_limit)),
        ("--dedup-expiry", dedup_expiry_seconds, in_force.dedup_expiry_seconds),
        ("--dedup-limit", dedup_limit, in_force.dedup_limit),
    ];
    let differing = flags.into_iter().filter_map(|(flag, asked, in_force)| {
        let asked = asked.filter(|asked| *asked != in_force)?;
        Some(format!("{flag} {asked} (in force: {in_force})"))
    });
    differing.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_and_differs_is_named() {
        let in_force = Settings { history_limit: 5, dedup_expiry_seconds: 60, dedup_limit: 10 };
        let asked = SettingsChange { history_limit: Some(7), dedup_expiry_seconds: Some(60), dedup_limit: None };
        assert_eq!(differing(&asked, &in_force), ["--history-limit 7 (in force: 5)"]);
    }
}
