//! The servers that are measured, each a process of its own that ends with its value.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How long a server may take until it listens or is ready.
const START: Duration = Duration::from_secs(120);

const POLL: Duration = Duration::from_millis(1);

pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    name: String,
    log: PathBuf,
}

impl Server {
    /// Starts a command; what it prints goes to a file beside its data.
    pub(crate) fn start(name: &str, mut command: Command, dir: &Path, address: SocketAddr) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, address, name: name.to_owned(), log })
    }

    /// Waits until its port accepts connections.
    pub(crate) fn wait_listening(&mut self) -> anyhow::Result<()> {
        self.wait("listens", |address| TcpStream::connect(address).is_ok())
    }

    /// Waits until `GET /readyz` is 200.
    pub(crate) fn wait_ready(&mut self) -> anyhow::Result<()> {
        self.wait("is ready", |address| matches!(get(address, "/readyz"), Ok((200, _))))
    }

    fn wait(&mut self, what: &str, holds: impl Fn(SocketAddr) -> bool) -> anyhow::Result<()> {
        let begin = Instant::now();
        while !holds(self.address) {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}); see {}", self.name, self.log.display());
            }
            if begin.elapsed() > START {
                bail!("{} never {what}; see {}", self.name, self.log.display());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Resident memory.
    pub(crate) fn rss_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    }

    /// SIGTERM, and waits for a clean end.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id())?).context("a pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// One request on a connection of its own, for set-up and waiting; never measured.
pub(crate) fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(START))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.get(9..12).context("no status")?.parse()?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok((status, body))
}

pub(crate) fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    ask(address, "GET", path, "")
}
