//! The two ends of a snapshot connection, after its handshake: raw bytes one way, then one line of
//! JSON back. The end of the stream proves nothing (a dying process ends it, too); the snapshot's own
//! trailer does, and the receiver's answer says so.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use kv_core::entry::LogPosition;
use kv_core::group::MemberId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

/// How long the sender waits for the receiver's answer: it verifies and syncs the whole snapshot.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest answer read, in bytes.
const ANSWER_BYTES_MAX: u64 = 16 << 10;
/// How long a receiver that has failed goes on reading, so that its answer is not lost to a reset.
const LINGER: Duration = Duration::from_secs(2);

/// Why a snapshot could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("no address is known for member {0}")]
    UnknownMember(MemberId),
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("the receiver failed: {0}")]
    Receiver(String),
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
}

/// The receiver's last word.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Staged(LogPosition),
    Error(String),
}

/// The sending end: write the snapshot, then [`finish`](Self::finish).
#[derive(Debug)]
pub struct SnapshotSender {
    stream: TcpStream,
}

impl SnapshotSender {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream }
    }

    /// Ends the stream and waits, bounded, for what the receiver made of it. Call it after a failed
    /// write, too: the receiver's reason may be waiting.
    pub async fn finish(mut self) -> Result<LogPosition, SnapshotError> {
        // A receiver that failed has closed its side; its answer is still to be read.
        let ended = self.stream.shutdown().await;
        match tokio::time::timeout(ANSWER_TIMEOUT, read_answer(&mut self.stream)).await {
            Ok(Ok(Answer::Staged(position))) => ended.map(|()| position).map_err(SnapshotError::Io),
            Ok(Ok(Answer::Error(reason))) => Err(SnapshotError::Receiver(reason)),
            Ok(Err(error)) => Err(SnapshotError::Io(error)),
            Err(_) => Err(SnapshotError::Io(io::ErrorKind::TimedOut.into())),
        }
    }
}

async fn read_answer(stream: &mut TcpStream) -> io::Result<Answer> {
    let mut line = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut line).await?;
    serde_json::from_slice(&line).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "no answer from the receiver"))
}

/// The receiving end: read the snapshot to its end, then [`answer`](Self::answer).
#[derive(Debug)]
pub struct SnapshotReceiver {
    stream: TcpStream,
    /// Its place among the snapshots that are being received.
    _permit: Option<OwnedSemaphorePermit>,
}

impl SnapshotReceiver {
    pub(crate) fn new(stream: TcpStream, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { stream, _permit: permit }
    }

    /// Tells the sender that the snapshot is staged at this position, or why it is not.
    pub async fn answer(mut self, result: Result<LogPosition, String>) -> io::Result<()> {
        let answer = match result {
            Ok(position) => Answer::Staged(position),
            Err(reason) => Answer::Error(reason),
        };
        let mut line = serde_json::to_vec(&answer).expect("an answer is plain data");
        line.push(b'\n');
        self.stream.write_all(&line).await?;
        self.stream.shutdown().await?;
        // Closing with bytes unread would reset the connection, and the answer with it.
        let mut rest = tokio::io::sink();
        let _ = tokio::time::timeout(LINGER, tokio::io::copy(&mut self.stream, &mut rest)).await;
        Ok(())
    }
}

impl AsyncRead for SnapshotReceiver {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for SnapshotSender {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
