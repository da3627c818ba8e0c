//! Why a pod does not run, as Kubernetes says it. What the scheduler holds against the hosts is read here and
//! nowhere else. Pure; `observe` makes it, `plan` and `report` read it.

use std::fmt;

use k8s_openapi::api::core::v1::Pod;

/// Why a pod does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// No host takes it; the scheduler's words.
    Unscheduled { message: String },
    /// Its container waits for more than its start.
    Waiting { reason: String, message: Option<String> },
}

/// States of a container that has not failed but only begun.
const STARTING: [&str; 2] = ["ContainerCreating", "PodInitializing"];
/// The scheduler's words for a host that a volume cannot be reached from, in older and newer versions.
const ELSEWHERE: [&str; 2] = ["volume node affinity conflict", "didn't match persistentvolume's node affinity"];
/// Its words for what has to do with volumes.
const ABOUT_VOLUMES: [&str; 2] = ["volume", "pvc"];
/// Its word for hosts that keep pods away: those that do not answer are among them.
const TAINT: &str = "taint";

impl Trouble {
    /// Why a pod does not run: not scheduled, or a container that waits for more than its start.
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let status = pod.status.as_ref()?;
        let containers = status.container_statuses.iter().flatten();
        let waiting = containers.filter_map(|container| container.state.as_ref()?.waiting.as_ref());
        let mut failed = waiting.filter_map(|waiting| {
            let reason = waiting.reason.clone().filter(|reason| !STARTING.contains(&reason.as_str()))?;
            Some(Self::Waiting { reason, message: waiting.message.clone() })
        });
        let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
        let unscheduled = unscheduled.and_then(|condition| condition.message.clone().or(condition.reason.clone()));
        failed.next().or(unscheduled.map(|message| Self::Unscheduled { message }))
    }

    /// The pod cannot run for want of its volume, or not where that is.
    pub(crate) fn is_about_its_volume(&self) -> bool {
        self.reasons().iter().any(|reason| ABOUT_VOLUMES.iter().any(|word| reason.contains(word)))
    }

    /// All hosts are out of reach of its volume: none would take the pod if only there were room.
    pub(crate) fn has_its_volume_nowhere(&self) -> bool {
        let reasons = self.reasons();
        !reasons.is_empty() && reasons.iter().all(|reason| is_elsewhere(reason))
    }

    /// The same, but for hosts that keep pods away.
    pub(crate) fn has_its_volume_on_no_host_that_takes_pods(&self) -> bool {
        let reasons = self.reasons();
        reasons.iter().any(|reason| is_elsewhere(reason))
            && reasons.iter().all(|reason| is_elsewhere(reason) || reason.contains(TAINT))
    }

    /// What the scheduler holds against the hosts: `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had ... .`
    fn reasons(&self) -> Vec<String> {
        let Self::Unscheduled { message } = self else { return Vec::new() };
        let listed = message.split_once("available: ").map_or(message.as_str(), |(_, listed)| listed);
        let listed = listed.split(". ").next().unwrap_or_default().trim_end_matches('.');
        listed.split(", ").map(str::to_lowercase).collect()
    }
}

fn is_elsewhere(reason: &str) -> bool {
    ELSEWHERE.iter().any(|words| reason.contains(words))
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unscheduled { message } => formatter.write_str(message),
            Self::Waiting { reason, message: Some(message) } => write!(formatter, "{reason}: {message}"),
            Self::Waiting { reason, message: None } => formatter.write_str(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unscheduled(message: &str) -> Trouble {
        Trouble::Unscheduled { message: message.to_owned() }
    }

    #[test]
    fn a_volume_is_nowhere_when_every_host_is_out_of_its_reach() {
        for (message, nowhere, on_no_host_that_takes_pods) in [
            ("0/3 nodes are available: 3 node(s) had volume node affinity conflict.", true, true),
            (
                "0/3 nodes are available: 3 node(s) didn't match PersistentVolume's node affinity. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.",
                true,
                true,
            ),
            (
                "0/4 nodes are available: 1 Insufficient cpu, 3 node(s) had volume node affinity conflict. preemption: 0/4 nodes are available: 4 No preemption victims found.",
                false,
                false,
            ),
            (
                "0/4 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }, 3 node(s) had volume node affinity conflict.",
                false,
                true,
            ),
            (
                "0/4 nodes are available: 1 node(s) were unschedulable, 3 node(s) had volume node affinity conflict.",
                false,
                false,
            ),
            ("0/3 nodes are available: 3 node(s) had untolerated taint {dedicated: x}.", false, false),
            ("0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims.", false, false),
        ] {
            let trouble = unscheduled(message);
            let found = (trouble.has_its_volume_nowhere(), trouble.has_its_volume_on_no_host_that_takes_pods());
            assert_eq!(found, (nowhere, on_no_host_that_takes_pods), "{message}");
        }
    }

    #[test]
    fn trouble_is_about_a_volume_when_the_scheduler_says_so() {
        assert!(unscheduled("pod has unbound immediate PersistentVolumeClaims").is_about_its_volume());
        assert!(
            unscheduled("0/1 nodes are available: 1 node(s) had volume node affinity conflict.").is_about_its_volume()
        );
        assert!(!unscheduled("0/3 nodes are available: 3 Insufficient cpu.").is_about_its_volume());
        let crash = Trouble::Waiting { reason: "CrashLoopBackOff".to_owned(), message: Some("volume full".to_owned()) };
        assert!(!crash.is_about_its_volume(), "a container's words are no scheduler's");
    }

    #[test]
    fn a_container_that_starts_is_no_trouble_and_one_that_crashes_is() {
        let pod = |reason: &str| {
            let text = format!(
                "{{status: {{containerStatuses: [{{name: a, image: a, imageID: a, ready: false, restartCount: 0, state: {{waiting: {{reason: {reason}}}}}}}]}}}}"
            );
            serde_yaml::from_str::<Pod>(&text).unwrap()
        };
        assert_eq!(Trouble::of(&pod("ContainerCreating")), None);
        let crash = Trouble::Waiting { reason: "CrashLoopBackOff".to_owned(), message: None };
        assert_eq!(Trouble::of(&pod("CrashLoopBackOff")), Some(crash));
    }
}
