//! Sends a signal to the processes of one pod, from a pod of the same user that sees the host's processes:
//! inside its own namespace the first process of a container cannot be killed or stopped.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// The signals that the suite sends.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Sent {
    Kill,
    Stop,
    Cont,
}

impl Sent {
    fn number(self) -> Signal {
        match self {
            Self::Kill => Signal::KILL,
            Self::Stop => Signal::STOP,
            Self::Cont => Signal::CONT,
        }
    }
}

pub(crate) fn send(signal: Sent, pod_uid: &str, program: &str, after: Duration) -> ExitCode {
    // Who is to be signalled must be there at the start: a mistake is told at once.
    if processes(pod_uid, program).is_empty() {
        println!("no process of pod {pod_uid} runs {program}");
        return ExitCode::FAILURE;
    }
    std::thread::park_timeout(after);
    let found = processes(pod_uid, program);
    for pid in &found {
        match kill_process(*pid, signal.number()) {
            Ok(()) => println!("{signal:?} sent to {pid:?}"),
            Err(error) => {
                println!("{signal:?} could not be sent to {pid:?}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    if found.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn processes(pod_uid: &str, program: &str) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").expect("a pod has /proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_of(*pid, pod_uid, program)).filter_map(Pid::from_raw).collect()
}

/// A process that ended meanwhile is nobody's.
fn is_of(pid: i32, pod_uid: &str, program: &str) -> bool {
    let read = |what: &str| std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join(what));
    let (Ok(groups), Ok(name)) = (read("cgroup"), read("comm")) else { return false };
    // With the systemd driver, a uid is spelt with underscores.
    name.trim() == program && (groups.contains(pod_uid) || groups.contains(&pod_uid.replace('-', "_")))
}
