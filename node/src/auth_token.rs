//! The secret of a group, from its file: shown and asked for by HTTP and by peers. A mounted Secret changes
//! under a running process, so the file is read again now and then; connections that are open stay. What
//! cannot be read or is empty changes nothing. Read by the HTTP layer, the transport and the bootstrap.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

/// How often the file is read again. Between the first and the last node that has read a new one, new connections
/// may be refused; they are tried again.
const READ_AGAIN: Duration = Duration::from_secs(5);

/// The token in force. Clones are the same.
#[derive(Clone)]
pub struct AuthToken {
    in_force: Arc<ArcSwap<Vec<u8>>>,
    path: PathBuf,
}

impl fmt::Debug for AuthToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AuthToken").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Why a file is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("{0}")]
    Unreadable(#[from] std::io::Error),
    #[error("it is empty")]
    Empty,
}

impl AuthToken {
    pub fn read(path: PathBuf) -> Result<Self, TokenError> {
        Ok(Self { in_force: Arc::new(ArcSwap::from_pointee(read(&path)?)), path })
    }

    /// One that never changes.
    #[cfg(test)]
    pub(crate) fn fixed(token: &[u8]) -> Self {
        Self { in_force: Arc::new(ArcSwap::from_pointee(token.to_vec())), path: PathBuf::new() }
    }

    pub(crate) fn load(&self) -> Arc<Vec<u8>> {
        self.in_force.load_full()
    }

    /// Follows the file for as long as the node lives. May be cancelled.
    pub(crate) async fn follow(self) {
        loop {
            tokio::time::sleep(READ_AGAIN).await;
            self.read_again();
        }
    }

    /// A few dozen bytes, mostly from memory: it blocks nobody.
    fn read_again(&self) {
        match read(&self.path) {
            Ok(token) if token == *self.load() => {}
            Ok(token) => {
                self.in_force.store(Arc::new(token));
                tracing::info!("the token has changed: new connections are made with it");
            }
            Err(error) => tracing::debug!(%error, "the file holds no token: the one in force stays"),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TokenError> {
    let text = std::fs::read(path)?;
    let token = text.trim_ascii();
    if token.is_empty() { Err(TokenError::Empty) } else { Ok(token.to_vec()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_is_taken_up_and_one_that_is_empty_or_gone_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        std::fs::write(&path, "first\n").expect("written");
        let token = AuthToken::read(path.clone()).expect("a token");
        let in_force = |token: &AuthToken| String::from_utf8(token.load().to_vec()).expect("text");
        for (text, expected) in [("second", "second"), (" \n", "second"), ("third", "third")] {
            std::fs::write(&path, text).expect("written");
            token.read_again();
            assert_eq!(in_force(&token), expected);
        }
        std::fs::remove_file(&path).expect("removed");
        token.read_again();
        assert_eq!(in_force(&token), "third");
        assert!(AuthToken::read(path).is_err());
    }
}
