//! How a driver ends: asked to, or because going on would break a promise. `serve` waits for it and
//! takes the exit code from it.

use tokio::sync::watch;

/// Why the driver has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// [`super::Handle::stop`] was called.
    Requested,
    /// The log cannot be written or synced any more.
    Storage(String),
    /// The replica found its own rules broken, or an entry that this release does not know.
    Rules(String),
}

impl Stopped {
    /// As sysexits.h has them: EX_IOERR and EX_SOFTWARE.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Requested => 0,
            Self::Storage(_) => 74,
            Self::Rules(_) => 70,
        }
    }
}

/// Both directions of ending: the request to the driver, and its last word.
#[derive(Debug)]
pub(crate) struct Stop {
    requested: watch::Sender<bool>,
    stopped: watch::Sender<Option<Stopped>>,
}

impl Default for Stop {
    fn default() -> Self {
        Self { requested: watch::Sender::new(false), stopped: watch::Sender::new(None) }
    }
}

impl Stop {
    pub(crate) fn request(&self) {
        self.requested.send_replace(true);
    }

    pub(crate) fn requests(&self) -> watch::Receiver<bool> {
        self.requested.subscribe()
    }

    pub(crate) fn has_stopped(&self) -> bool {
        self.stopped.borrow().is_some()
    }

    pub(crate) fn announce(&self, why: Stopped) {
        self.stopped.send_replace(Some(why));
    }

    pub(crate) async fn stopped(&self) -> Stopped {
        let mut stopped = self.stopped.subscribe();
        let last_word = stopped.wait_for(Option::is_some).await.expect("the sender lives as long as self");
        last_word.clone().expect("waited for")
    }
}
