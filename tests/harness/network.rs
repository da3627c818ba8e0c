//! The network between the nodes of one test, as links that can be told to misbehave. Each node's peers
//! are told the port of a gate here, which passes every connection on to the node; who dials is read
//! from the handshake's first words, so that each pair has rules of its own, each way. Never changes a
//! byte: what a link loses, it loses with the connection.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::wait::{START_SECONDS, pass, wait_for};

/// Gates are this far above the ports that they stand for.
const GATE_OFFSET: u16 = 1000;
/// Longest first words of a dialer; they hold its name.
const INTRODUCTION_BYTES_MAX: usize = 20_000;
const CHUNK_BYTES: usize = 64 * 1024;

/// How a link treats what is sent along it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rule {
    #[default]
    Open,
    /// Everything arrives this much later.
    Delay(Duration),
    /// Nothing arrives until the rule ends; then all of it does.
    Stall,
    /// Nothing arrives; when the rule ends, connections that it met end, too.
    Cut,
}

/// One direction of a pair: from this node to that one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Link {
    from: String,
    to: String,
}

#[derive(Debug, Default)]
struct Rules {
    links: BTreeMap<Link, Rule>,
    /// Raised to end the connections that exist.
    drops: BTreeMap<Link, u64>,
}

/// The gates of all nodes, open until the value ends.
pub struct Network {
    rules: watch::Sender<Rules>,
    gates: Mutex<BTreeMap<String, Gate>>,
}

struct Gate {
    host: Ipv4Addr,
    port: u16,
    /// None: closed, as if no process listened.
    open: Option<AbortHandle>,
}

impl Network {
    #[expect(clippy::new_without_default, reason = "it opens sockets later and is no plain value")]
    pub fn new() -> Self {
        Self { rules: watch::Sender::default(), gates: Mutex::default() }
    }

    /// The port of the gate for the node of this name; the gate is closed.
    pub fn gate(&self, name: &str, host: Ipv4Addr, peer_port: u16) -> u16 {
        self.gates().insert(name.to_owned(), Gate { host, port: peer_port, open: None });
        peer_port + GATE_OFFSET
    }

    /// The node's process listens.
    pub async fn open(&self, name: &str) {
        let (host, port) = {
            let gates = self.gates();
            let gate = &gates[name];
            if gate.open.is_some() {
                return;
            }
            (gate.host, gate.port)
        };
        // A gate that was just closed gives its port back a little later.
        let bind = || async { TcpListener::bind((host, port + GATE_OFFSET)).await.ok() };
        let listener = wait_for("the gate's port is free", START_SECONDS, bind).await;
        let serving = tokio::spawn(serve(listener, name.to_owned(), (host, port), self.rules.clone()));
        self.gates().get_mut(name).expect("just seen").open = Some(serving.abort_handle());
    }

    /// The node's process is dead: attempts are refused.
    pub fn close(&self, name: &str) {
        if let Some(serving) = self.gates().get_mut(name).and_then(|gate| gate.open.take()) {
            serving.abort();
        }
    }

    pub fn rule(&self, from: &str, to: &str, rule: Rule) {
        let link = Link { from: from.to_owned(), to: to.to_owned() };
        self.rules.send_modify(|rules| _ = rules.links.insert(link, rule));
    }

    /// All links are open again.
    pub fn heal(&self) {
        self.rules.send_modify(|rules| rules.links.clear());
    }

    /// Ends what connects the two now.
    pub fn drop_connections(&self, one: &str, other: &str) {
        self.rules.send_modify(|rules| {
            for (from, to) in [(one, other), (other, one)] {
                *rules.drops.entry(Link { from: from.to_owned(), to: to.to_owned() }).or_default() += 1;
            }
        });
    }

    fn gates(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Gate>> {
        self.gates.lock().expect("no gate panics")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for gate in self.gates().values_mut() {
            if let Some(serving) = gate.open.take() {
                serving.abort();
            }
        }
    }
}

/// Connections end with this task.
async fn serve(listener: TcpListener, to: String, target: (Ipv4Addr, u16), rules: watch::Sender<Rules>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((dialer, _)) = accepted else { continue };
                connections.spawn(connect(dialer, to.clone(), target, rules.subscribe()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(mut dialer: TcpStream, to: String, target: (Ipv4Addr, u16), rules: watch::Receiver<Rules>) {
    dialer.set_nodelay(true).ok();
    let Some((from, words)) = introduction(&mut dialer).await else { return };
    let Ok(node) = TcpStream::connect(target).await else { return };
    node.set_nodelay(true).ok();
    let (dialer_read, dialer_write) = dialer.into_split();
    let (node_read, node_write) = node.into_split();
    let there = Pump { link: Link { from: from.clone(), to: to.clone() }, rules: rules.clone() };
    let back = Pump { link: Link { from: to, to: from }, rules };
    // What ends one way ends the connection.
    tokio::select! {
        _ = there.run(words, dialer_read, node_write) => {}
        _ = back.run(Vec::new(), node_read, dialer_write) => {}
    }
}

/// The dialer's name, and all that it sent so far.
async fn introduction(dialer: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    const NAME: &[u8] = b"\"hello\":{\"name\":\"";
    let mut words = Vec::new();
    while words.len() < INTRODUCTION_BYTES_MAX {
        if dialer.read_buf(&mut words).await.ok()? == 0 {
            return None;
        }
        let Some(at) = words.windows(NAME.len()).position(|part| part == NAME) else { continue };
        let rest = &words[at + NAME.len()..];
        if let Some(end) = rest.iter().position(|byte| *byte == b'"') {
            return Some((String::from_utf8_lossy(&rest[..end]).into_owned(), words));
        }
    }
    None
}

/// One direction of one connection.
struct Pump {
    link: Link,
    rules: watch::Receiver<Rules>,
}

impl Pump {
    /// None: the connection ends.
    async fn run(mut self, first: Vec<u8>, mut read: OwnedReadHalf, mut write: OwnedWriteHalf) -> Option<()> {
        let drops = self.now().1;
        let mut bytes = first;
        loop {
            if !bytes.is_empty() {
                self.pass_through(drops).await?;
                write.write_all(&bytes).await.ok()?;
            }
            bytes = self.read(drops, &mut read).await?;
        }
    }

    fn now(&self) -> (Rule, u64) {
        let rules = self.rules.borrow();
        let rule = rules.links.get(&self.link).copied().unwrap_or_default();
        (rule, rules.drops.get(&self.link).copied().unwrap_or_default())
    }

    /// Waits as long as the rules hold bytes back.
    async fn pass_through(&mut self, drops: u64) -> Option<()> {
        let mut was_cut = false;
        loop {
            let (rule, drops_now) = self.now();
            if drops_now != drops || (was_cut && rule != Rule::Cut) {
                return None;
            }
            match rule {
                Rule::Open => return Some(()),
                Rule::Delay(delay) => {
                    pass(delay).await;
                    return Some(());
                }
                Rule::Stall | Rule::Cut => {
                    was_cut |= rule == Rule::Cut;
                    self.rules.changed().await.ok()?;
                }
            }
        }
    }

    async fn read(&mut self, drops: u64, read: &mut OwnedReadHalf) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(CHUNK_BYTES);
        loop {
            tokio::select! {
                got = read.read_buf(&mut bytes) => return (got.ok()? > 0).then_some(bytes),
                changed = self.rules.changed() => {
                    changed.ok()?;
                    if self.now().1 != drops {
                        return None;
                    }
                }
            }
        }
    }
}
