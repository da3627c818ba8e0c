//! One node's process: started in a process group of its own, so that Ctrl-C reaches it only as the
//! one SIGTERM that its parent sends; its log streamed with its name in front.

use std::fmt;
use std::process::{ExitStatus, Stdio};

use kv_core::group::NodeName;
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;

use super::DevError;
use super::plan::{NodePlan, Plan};
use crate::config::NODE_VARIABLES;

/// Names in front of log lines are padded to this: `follower-1`.
const NAME_WIDTH: usize = 10;

pub(super) struct Child {
    pub(super) name: NodeName,
    pub(super) pid: u32,
    process: tokio::process::Child,
}

/// How a process has ended.
pub(super) struct Ended {
    pub(super) name: NodeName,
    pid: u32,
    status: std::io::Result<ExitStatus>,
}

impl Child {
    /// The settings in the environment are passed on; what would make all nodes the same one is not.
    pub(super) fn spawn(plan: &Plan, node: &NodePlan) -> Result<Self, DevError> {
        let failed = |error| DevError::Spawn { node: node.name.to_string(), error };
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(plan.arguments(node)).arg("--parent-pid").arg(std::process::id().to_string());
        NODE_VARIABLES.iter().for_each(|variable| {
            command.env_remove(variable);
        });
        command.env("LOG_FORMAT", "text").process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().map_err(failed)?;
        stream(&node.name, process.stdout.take());
        stream(&node.name, process.stderr.take());
        let pid = process.id().expect("a process that was not waited for has an id");
        Ok(Self { name: node.name.clone(), pid, process })
    }

    /// Completes when the process has ended. May be cancelled.
    pub(super) async fn ended(&mut self) -> Ended {
        let status = self.process.wait().await;
        Ended { name: self.name.clone(), pid: self.pid, status }
    }

    pub(super) fn terminate(&self) {
        // Nothing to do when it is gone already: whoever waits for it learns that.
        if self.process.id().is_some() {
            kill_process(pid_of(self.pid), Signal::TERM).ok();
        }
    }

    pub(super) async fn kill(&mut self) {
        if let Err(error) = self.process.kill().await {
            tracing::warn!(node = %self.name, %error, "cannot be killed");
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, pid, status } = self;
        match status {
            Ok(status) => write!(f, "{name} (pid {pid}, {status})"),
            Err(error) => write!(f, "{name} (pid {pid}, {error})"),
        }
    }
}

fn pid_of(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("the system's process ids are positive")
}

/// Copies lines until the other end is closed.
fn stream(name: &NodeName, source: Option<impl AsyncRead + Send + Unpin + 'static>) {
    let source = source.expect("the stream is piped and not taken yet");
    let name = name.clone();
    tokio::spawn(async move {
        let mut lines = BufReader::new(source).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            eprintln!("{:<NAME_WIDTH$} | {line}", name.as_str());
        }
    });
}

/// Called by a child of `kv-node dev`: it is told to end when its parent dies, however that happens.
/// False: the parent is gone already.
pub fn tie_to_parent(parent_pid: u32) -> bool {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        tracing::warn!(%error, "this node will not notice the end of kv-node dev");
    }
    getppid() == Some(pid_of(parent_pid))
}
