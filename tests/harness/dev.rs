//! A `kv-node dev` process with the nodes it starts.

use std::fs::File;
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::binary::node_binary;
use crate::site::Site;
use crate::wait::{START_SECONDS, wait_for};

/// Peers are this much above the clients' ports.
const PEER_PORT_OFFSET: u16 = 1000;

/// A local cluster of three, running or stopped.
pub struct Dev {
    site: Site,
    pub base_port: u16,
    child: Option<Child>,
}

impl Dev {
    /// Starts it on ports of localhost that are free, below the site's directory.
    pub fn start(site: &Site) -> Self {
        let mut dev = Self { site: site.clone(), base_port: free_base_port(), child: None };
        dev.start_again();
        dev
    }

    pub fn start_again(&mut self) {
        let output = File::options().create(true).append(true).open(self.site.path("dev.log")).expect("a log file");
        let child = Command::new(node_binary())
            .args(["dev", "--base-port", &self.base_port.to_string(), "--data-dir", "data"])
            .current_dir(self.site.dir())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file handle can be copied"))
            .stderr(output)
            .spawn();
        self.child = Some(child.expect("kv-node starts"));
    }

    /// Everything it and its nodes printed.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.site.path("dev.log")).unwrap_or_default()
    }

    pub fn url(&self, index: u16) -> String {
        format!("http://127.0.0.1:{}", self.base_port + index)
    }

    /// The status of a GET; 0: no answer.
    pub async fn get(&self, index: u16, path: &str) -> (u16, String) {
        let Ok(answer) = self.site.client().get(format!("{}{path}", self.url(index))).send().await else {
            return (0, String::new());
        };
        (answer.status().as_u16(), answer.text().await.unwrap_or_default())
    }

    pub async fn put(&self, index: u16, key: &str, body: &'static str) -> u16 {
        let sent = self.site.client().put(format!("{}/key/{key}", self.url(index))).body(body).send().await;
        sent.map_or(0, |answer| answer.status().as_u16())
    }

    pub async fn wait_ready(&self, nodes: u16) {
        crate::wait::wait_until("all nodes of the local cluster are ready", START_SECONDS, || async {
            for index in 0..nodes {
                if self.get(index, "/readyz").await.0 != 200 {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// The processes that it started and that still run.
    pub fn node_pids(&self) -> Vec<i32> {
        let Some(child) = &self.child else { return Vec::new() };
        let path = format!("/proc/{0}/task/{0}/children", child.id());
        let children = std::fs::read_to_string(path).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Sends SIGINT to it alone, waits for its end, and sees that no node is left.
    pub async fn interrupt(&mut self) -> ExitStatus {
        let nodes = self.node_pids();
        let mut child = self.child.take().expect("it was started");
        signal(i32::try_from(child.id()).expect("a pid fits"), Signal::INT);
        let status = wait_for("kv-node dev ends", START_SECONDS, || {
            let ended = child.try_wait().expect("our own child can be waited for");
            async move { ended }
        })
        .await;
        for pid in nodes {
            assert!(test_kill_process(to_pid(pid)).is_err(), "the node with pid {pid} still runs");
        }
        status
    }
}

/// SIGKILL to a printed pid.
pub fn kill_pid(pid: i32) {
    signal(pid, Signal::KILL);
}

fn to_pid(pid: i32) -> Pid {
    Pid::from_raw(pid).expect("a pid is not 0")
}

fn signal(pid: i32, signal: Signal) {
    kill_process(to_pid(pid), signal).expect("a signal reaches our own child");
}

/// A port on localhost with room for three nodes and their peers' ports. No two tests get the same: what
/// is free now another may be about to take.
fn free_base_port() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + u16::try_from(std::process::id() % 1000).expect("bounded") * 10;
    let mut bases = std::iter::from_fn(|| Some(start + 5 * TAKEN.fetch_add(1, Ordering::Relaxed))).take(200);
    let free =
        |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("0.0.0.0", port)).is_ok();
    bases
        .find(|base| (0..3).all(|index| free(base + index) && free(base + index + PEER_PORT_OFFSET)))
        .expect("six free ports")
}

impl Drop for Dev {
    fn drop(&mut self) {
        let nodes = self.node_pids();
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
        for pid in nodes {
            kill_process(to_pid(pid), Signal::KILL).ok();
        }
        if std::thread::panicking() {
            eprintln!("--- output of kv-node dev:\n{}", crate::log_lines::tail(&self.output(), 80));
        }
    }
}
