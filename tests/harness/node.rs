//! One `kv-node serve` process: started, asked, stopped, killed, started again. Ends with its value,
//! and fails the test when its log holds a WARN or ERROR that the test did not allow.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::answer::Answer;
use crate::binary::node_binary;
use crate::log_lines;
use crate::raw::RawClient;
use crate::site::Site;
use crate::wait::{START_SECONDS, wait_for, wait_until};

const FIRST_CLIENT_PORT: u16 = 8000;
const FIRST_PEER_PORT: u16 = 9000;

/// Lines of a failed test's node that are shown.
const LOG_TAIL_LINES: usize = 60;

/// How a process ended, and what it had logged in its whole life.
pub struct Exit {
    pub status: ExitStatus,
    pub log: String,
}

/// A node before its start: where it lives and what it is told.
#[derive(Clone)]
pub struct NodeSpec {
    site: Site,
    pub name: String,
    pub client_port: u16,
    pub peer_port: u16,
    peer_gate: Option<u16>,
    pub data_dir: PathBuf,
    log_path: PathBuf,
    args: Vec<String>,
    envs: Vec<(String, String)>,
}

impl NodeSpec {
    pub(crate) fn new(site: Site, name: &str, index: u16) -> Self {
        let data_dir = site.path(name);
        let log_path = site.path(&format!("{name}.log"));
        Self {
            site,
            name: name.to_owned(),
            client_port: FIRST_CLIENT_PORT + index,
            peer_port: FIRST_PEER_PORT + index,
            peer_gate: None,
            data_dir,
            log_path,
            args: Vec::new(),
            envs: Vec::new(),
        }
    }

    /// A flag with its value; `--flag` alone when the value is empty.
    #[must_use]
    pub fn arg(mut self, flag: &str, value: impl ToString) -> Self {
        self.args.push(flag.to_owned());
        let value = value.to_string();
        if !value.is_empty() {
            self.args.push(value);
        }
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.envs.push((name.to_owned(), value.to_string()));
        self
    }

    #[must_use]
    pub fn data_dir(mut self, data_dir: PathBuf) -> Self {
        self.data_dir = data_dir;
        self
    }

    /// Fast heartbeats: a peer is down after a second.
    #[must_use]
    pub fn fast(self) -> Self {
        self.arg("--heartbeat-interval", "0.1").arg("--heartbeat-timeout", "1")
    }

    pub fn url(&self) -> String {
        format!("http://{}:{}", self.site.host(), self.client_port)
    }

    /// Where peers reach it.
    pub fn peer_url(&self) -> String {
        let port = self.peer_gate.unwrap_or(self.peer_port);
        format!("http://{}:{port}", self.site.host())
    }

    /// Peers are told this port, behind which somebody passes on to the node's own.
    #[must_use]
    pub fn behind(mut self, peer_gate: u16) -> Self {
        self.peer_gate = Some(peer_gate);
        let peer_url = self.peer_url();
        self.arg("--peer-url", peer_url)
    }

    /// Starts the process and does not wait for anything.
    pub fn spawn(self) -> Node {
        let child = self.command();
        Node { spec: self, child: Some(child), allowed: Vec::new() }
    }

    /// Starts the process and waits until it is ready.
    pub async fn start(self) -> Node {
        let mut node = self.spawn();
        node.wait_ready().await;
        node
    }

    /// Starts a process that is expected to refuse, and returns how.
    pub async fn refused(self) -> Exit {
        let mut node = self.spawn();
        node.allow("");
        node.wait_exit().await
    }

    fn command(&self) -> Child {
        let log = File::options().create(true).append(true).open(&self.log_path).expect("the log can be written");
        let host = self.site.host();
        let mut command = Command::new(node_binary());
        command
            .arg("serve")
            .args(["--id", &self.name])
            .args(["--listen", &format!("{host}:{}", self.client_port)])
            .args(["--peer-listen", &format!("{host}:{}", self.peer_port)])
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(&self.args)
            .current_dir(self.site.dir())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("RUST_BACKTRACE", "1")
            .envs(self.envs.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle can be copied"))
            .stderr(log);
        command.spawn().expect("kv-node starts")
    }
}

/// A process, running or stopped.
pub struct Node {
    pub spec: NodeSpec,
    child: Option<Child>,
    allowed: Vec<String>,
}

impl Node {
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub fn url(&self) -> String {
        self.spec.url()
    }

    pub fn site(&self) -> &Site {
        &self.spec.site
    }

    /// Lines that contain this text may be WARN or ERROR; an empty text allows all.
    pub fn allow(&mut self, text: &str) {
        self.allowed.push(text.to_owned());
    }

    pub fn log(&self) -> String {
        std::fs::read(&self.spec.log_path).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// The WARN and ERROR lines so far that were not allowed.
    pub fn unexpected_lines(&self) -> Vec<String> {
        log_lines::unexpected(&self.log(), &self.allowed).into_iter().map(str::to_owned).collect()
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The process has ended by itself, and nobody has waited for it yet.
    pub fn has_ended(&self) -> bool {
        let Some(pid) = self.pid() else { return true };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    }

    pub async fn wait_ready(&mut self) {
        let deadline = std::time::Instant::now() + Duration::from_secs(START_SECONDS);
        loop {
            assert!(self.is_running(), "{} ended before it was ready", self.name());
            if self.is_ready().await {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{} is not ready in {START_SECONDS} s", self.name());
            crate::wait::back_off().await;
        }
    }

    pub async fn is_ready(&self) -> bool {
        self.try_get("/readyz").await.is_some_and(|a| a.status == 200)
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the node is running");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid fits")).expect("a pid is not 0");
        kill_process(pid, signal).expect("a signal reaches our own child");
    }

    /// SIGKILL, and the process is gone when this returns.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child can be killed");
            child.wait().expect("our own child can be waited for");
        }
    }

    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) -> Exit {
        self.terminate();
        self.wait_exit().await
    }

    /// Waits until the process ends by itself.
    pub async fn wait_exit(&mut self) -> Exit {
        let mut child = self.child.take().expect("the node was started");
        let what = format!("{} ends", self.spec.name);
        let status = wait_for(&what, START_SECONDS, || {
            let ended = child.try_wait().expect("our own child can be waited for");
            async move { ended }
        })
        .await;
        Exit { status, log: self.log() }
    }

    /// Starts the same node again on the same directory; it must not be running.
    pub fn spawn_again(&mut self) {
        assert!(self.child.is_none(), "{} is still running", self.name());
        self.child = Some(self.spec.command());
    }

    pub async fn start_again(&mut self) {
        self.spawn_again();
        self.wait_ready().await;
    }

    /// A request; None: no answer (refused, reset or timed out).
    pub async fn try_request(&self, request: reqwest::RequestBuilder) -> Option<Answer> {
        Answer::read(request.send().await.ok()?).await.ok()
    }

    async fn answer(&self, what: &str, request: reqwest::RequestBuilder) -> Answer {
        let sent = request.send().await;
        let response = sent.unwrap_or_else(|error| panic!("{} does not answer {what}: {error:?}", self.name()));
        Answer::read(response).await.unwrap_or_else(|error| panic!("{} breaks off {what}: {error:?}", self.name()))
    }

    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method is a token");
        self.spec.site.client().request(method, format!("{}{path}", self.url()))
    }

    /// Any request with headers; panics when there is no answer.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = self.request(method, path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_empty() {
            request = request.header("content-type", "application/json").body(body.to_owned());
        }
        self.answer(&format!("{method} {path}"), request).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub async fn try_get(&self, path: &str) -> Option<Answer> {
        self.try_request(self.request("GET", path)).await
    }

    /// PUT with this body as it stands.
    pub async fn put_body(&self, path: &str, body: &str) -> Answer {
        self.send("PUT", path, &[], body).await
    }

    /// PUT of a value (JSON text) under a key that needs no encoding.
    pub async fn put(&self, key: &str, value: &str) -> Answer {
        self.put_body(&format!("/key/{key}"), &format!("{{\"value\":{value}}}")).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &str) -> Answer {
        self.send("POST", path, &[], body).await
    }

    /// The `/status` document.
    pub async fn status(&self) -> Value {
        self.get("/status").await.json()
    }

    pub async fn try_status(&self) -> Option<Value> {
        let answer = self.try_get("/status").await.filter(|answer| answer.status == 200)?;
        serde_json::from_slice(&answer.body).ok()
    }

    pub async fn applied_id(&self) -> u64 {
        self.status().await["applied_id"].as_u64().expect("applied_id is a number")
    }

    pub async fn wait_applied(&self, id: u64) {
        wait_until(&format!("{} applies {id}", self.name()), START_SECONDS, || async {
            self.try_status().await.is_some_and(|s| s["applied_id"].as_u64() >= Some(id))
        })
        .await;
    }

    pub async fn wait_role(&self, role: &str) {
        wait_until(&format!("{} becomes {role}", self.name()), START_SECONDS, || async {
            self.try_status().await.is_some_and(|s| s["role"] == role)
        })
        .await;
    }

    /// The ids that directives name, as this node has them now.
    pub async fn target(&self) -> Value {
        target_of(&self.status().await)
    }

    /// POST of a directive with this node's present ids in its body.
    pub async fn direct(&self, path: &str, members: Value) -> Answer {
        self.send_directive("POST", path, members).await
    }

    pub async fn send_directive(&self, method: &str, path: &str, members: Value) -> Answer {
        let mut body = self.target().await;
        for (name, value) in members.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        self.send(method, path, &[], &body.to_string()).await
    }

    /// A raw connection to the client port.
    pub async fn raw(&self) -> RawClient {
        RawClient::connect(self.spec.site.host(), self.spec.client_port).await
    }

    pub async fn raw_peer(&self) -> RawClient {
        RawClient::connect(self.spec.site.host(), self.spec.peer_port).await
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.name(), log_lines::tail(&log, LOG_TAIL_LINES));
            return;
        }
        let unexpected = log_lines::unexpected(&log, &self.allowed);
        assert!(
            unexpected.is_empty(),
            "{} logged what the test did not expect:\n{}",
            self.name(),
            unexpected.join("\n")
        );
    }
}

/// The ids that directives name: cluster, member, configuration.
pub fn target_of(status: &Value) -> Value {
    serde_json::json!({
        "cluster_id": status["cluster_id"],
        "target_member_id": status["member_id"],
        "if_config_id": status["config_id"],
    })
}
