//! A test's own place: a loopback address nobody else uses, a temporary directory and a client.
//! Tests run in parallel, as do test processes, and each needs ports that peers know beforehand.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::node::NodeSpec;

/// Held open for as long as the address is in use; nodes use the ports from 8000 on.
const RESERVATION_PORT: u16 = 7999;

/// The hosts of 127.16.0.0 to 127.239.255.255, spread so that processes rarely try the same one.
const HOSTS: u32 = 224 << 16;

/// The longest wait for one answer; over every time-out of a node.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

static NEXT_HOST: AtomicU32 = AtomicU32::new(0);

/// Where the nodes of one test live. Cheap to clone; ends with its last clone.
#[derive(Clone)]
pub struct Site(Arc<Inner>);

struct Inner {
    host: Ipv4Addr,
    _reservation: TcpListener,
    dir: tempfile::TempDir,
    client: reqwest::Client,
}

impl Site {
    #[expect(clippy::new_without_default, reason = "it takes an address and a directory")]
    pub fn new() -> Self {
        Self::in_dir(tempfile::Builder::new().prefix("kv-").tempdir())
    }

    /// A site whose directory stays when it ends; who asked for it removes it.
    pub fn kept() -> Self {
        Self::in_dir(tempfile::Builder::new().prefix("kv-").disable_cleanup(true).tempdir())
    }

    fn in_dir(dir: std::io::Result<tempfile::TempDir>) -> Self {
        let (host, reservation) = reserve();
        let dir = dir.expect("a temporary directory");
        let client = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("a client without special needs");
        Self(Arc::new(Inner { host, _reservation: reservation, dir, client }))
    }

    pub fn host(&self) -> Ipv4Addr {
        self.0.host
    }

    pub fn dir(&self) -> &Path {
        self.0.dir.path()
    }

    pub fn client(&self) -> &reqwest::Client {
        &self.0.client
    }

    /// A file or directory of this test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// A node that was not started yet; `index` chooses its ports.
    pub fn node(&self, name: &str, index: u16) -> NodeSpec {
        NodeSpec::new(self.clone(), name, index)
    }
}

/// An address on which the reservation port is free: no other test or process holds it.
fn reserve() -> (Ipv4Addr, TcpListener) {
    for _ in 0..10_000 {
        let counter = NEXT_HOST.fetch_add(1, Ordering::Relaxed);
        let n = std::process::id().wrapping_mul(2_654_435_761).wrapping_add(counter) % HOSTS + (16 << 16);
        let host = Ipv4Addr::from((127 << 24) | n);
        if host.octets()[3] == 0 || host.octets()[3] == 255 {
            continue;
        }
        if let Ok(reservation) = TcpListener::bind((host, RESERVATION_PORT)) {
            return (host, reservation);
        }
    }
    panic!("no loopback address is free");
}
