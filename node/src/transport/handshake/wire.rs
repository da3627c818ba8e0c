//! The words of a handshake on a socket: JSON behind a length, small, and read exactly, so that what
//! follows the handshake (frames, or a raw snapshot) is left untouched in the socket.

use std::time::Duration;

use kv_core::entry::Epoch;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::preamble::{PREAMBLE_BYTES, Preamble};
use super::{HandshakeError, Introduction, Refusal};

/// Longest word, in bytes; a hello with the longest names and URLs is far below.
const WORD_BYTES_MAX: usize = 16 << 10;
/// How long a refused connection is held open for the other side to read why.
const LINGER: Duration = Duration::from_millis(500);
/// Most that is read, and thrown away, meanwhile.
const LINGER_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    Introduce(Introduction),
    Proof {
        /// Hexadecimal; absent without a secret.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hmac: Option<String>,
    },
    /// The dialer is not the one to open, and is done.
    Ready {
        last_connection: u64,
    },
    /// From the smaller member id: messages may follow.
    Open {
        connection: u64,
    },
    /// The rest of the connection is a snapshot.
    Snapshot {
        epoch: Epoch,
    },
    Refused(Refusal),
}

pub(crate) fn encode(word: &Word) -> Vec<u8> {
    serde_json::to_vec(word).expect("words are plain data")
}

/// A word as it stands on the wire.
pub(crate) fn raw(word: &[u8]) -> Vec<u8> {
    let length = u32::try_from(word.len()).expect("words are short");
    [&length.to_be_bytes(), word].concat()
}

pub(crate) async fn say(stream: &mut TcpStream, word: &Word) -> Result<(), HandshakeError> {
    say_raw(stream, &[&raw(&encode(word))]).await
}

/// In one write, so that it leaves in one segment.
pub(super) async fn say_raw(stream: &mut TcpStream, parts: &[&[u8]]) -> Result<(), HandshakeError> {
    stream.write_all(&parts.concat()).await.map_err(HandshakeError::Io)
}

pub(super) async fn listen_for_preamble(stream: &mut TcpStream) -> Result<Preamble, HandshakeError> {
    let mut bytes = [0; PREAMBLE_BYTES];
    stream.read_exact(&mut bytes).await?;
    Preamble::decode(bytes).ok_or(HandshakeError::Garbage("not the preamble of a peer"))
}

pub(super) async fn listen(stream: &mut TcpStream) -> Result<Word, HandshakeError> {
    listen_raw(stream).await.map(|(_, word)| word)
}

/// A word together with its bytes.
pub(super) async fn listen_raw(stream: &mut TcpStream) -> Result<(Vec<u8>, Word), HandshakeError> {
    let length = stream.read_u32().await? as usize;
    if length > WORD_BYTES_MAX {
        return Err(HandshakeError::Garbage("a word of the handshake is too long"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    let word = serde_json::from_slice(&bytes).map_err(|_| HandshakeError::Garbage("not a word of the handshake"))?;
    Ok((bytes, word))
}

/// Ends a connection without a reset, which could overtake what was said last.
pub(super) async fn close(stream: &mut TcpStream) {
    let _ = stream.shutdown().await;
    let mut rest = stream.take(LINGER_BYTES_MAX);
    let mut nowhere = tokio::io::sink();
    let _ = tokio::time::timeout(LINGER, tokio::io::copy(&mut rest, &mut nowhere)).await;
}
