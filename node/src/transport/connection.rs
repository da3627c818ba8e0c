//! One open connection: a task that writes its outbox, many frames to a write, and a task that reads,
//! verifies and passes on. It knows neither addresses nor back-off; the peer task owns it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use kv_core::group::MemberId;
use kv_core::message::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Duration, timeout};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec, LengthDelimitedCodecError};
use tokio_util::task::AbortOnDropHandle;

use super::frame::{self, FrameError, LENGTH_BYTES};
use super::outbox::Outbox;
use super::{Counters, TransportEvent};

/// A write buffer that a long line has grown beyond this is given back.
const WRITE_BUFFER_BYTES_KEPT: usize = 2 << 20;
/// What one read from the socket takes at most, unless a longer frame has begun.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// How long a connection that is closed on purpose may take to write what is queued.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("closed by the other side")]
    Closed,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// Closed on this side.
    #[error("closed here")]
    Here,
}

/// The writing half with its queue, and the reading half once it was started.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) outbox: Arc<Outbox>,
    writer: AbortOnDropHandle<End>,
    reading: Reading,
}

#[derive(Debug)]
enum Reading {
    NotYet(Option<OwnedReadHalf>),
    Task(AbortOnDropHandle<End>),
}

impl Connection {
    /// Starts to write: `greeting` first, then the outbox.
    pub(crate) fn open(stream: TcpStream, greeting: Vec<u8>, counters: Arc<Counters>) -> Self {
        let (read_half, write_half) = stream.into_split();
        let outbox = Arc::new(Outbox::default());
        let writer = Writer { half: write_half, outbox: outbox.clone(), counters };
        let writer = AbortOnDropHandle::new(tokio::spawn(writer.run(greeting)));
        Self { outbox, writer, reading: Reading::NotYet(Some(read_half)) }
    }

    /// Starts to pass on what arrives; after the driver was told of the connection.
    pub(crate) fn start_reading(
        &mut self,
        from: MemberId,
        events: mpsc::Sender<TransportEvent>,
        counters: Arc<Counters>,
    ) {
        if let Reading::NotYet(half) = &mut self.reading {
            let half = half.take().expect("taken only here, and then replaced");
            let reader = Reader {
                frames: FramedRead::with_capacity(half, frame::codec(), READ_BUFFER_BYTES),
                from,
                events,
                counters,
            };
            self.reading = Reading::Task(AbortOnDropHandle::new(tokio::spawn(reader.run())));
        }
    }

    /// Waits for either half to end. May be cancelled.
    pub(crate) async fn ended(&mut self) -> End {
        let reader = async {
            match &mut self.reading {
                Reading::NotYet(_) => std::future::pending().await,
                Reading::Task(task) => task.await,
            }
        };
        // A reader that has ended knows more than a writer that failed for the same reason.
        tokio::select! {
            biased;
            end = reader => end.unwrap_or(End::Here),
            end = &mut self.writer => end.unwrap_or(End::Here),
        }
    }

    /// Stops at once; when it returns, no more is passed on.
    pub(crate) async fn abort(self) {
        drop(self.writer);
        match self.reading {
            Reading::Task(task) if !task.is_finished() => {
                task.abort();
                let _ = task.await;
            }
            Reading::Task(_) | Reading::NotYet(_) => {}
        }
    }

    /// Writes what is queued, within a bound, then stops.
    pub(crate) async fn drain(mut self) {
        self.outbox.close();
        let _ = timeout(DRAIN_TIMEOUT, &mut self.writer).await;
        self.abort().await;
    }
}

struct Writer {
    half: OwnedWriteHalf,
    outbox: Arc<Outbox>,
    counters: Arc<Counters>,
}

impl Writer {
    async fn run(mut self, greeting: Vec<u8>) -> End {
        match self.write(BytesMut::from(&greeting[..])).await {
            Ok(()) => End::Here,
            Err(error) => End::Io(error),
        }
    }

    async fn write(&mut self, mut buffer: BytesMut) -> std::io::Result<()> {
        let mut batch = Vec::new();
        loop {
            if !buffer.is_empty() {
                self.half.write_all(&buffer).await?;
                Counters::add(&self.counters.bytes_sent, buffer.len() as u64);
                buffer.clear();
            }
            if buffer.capacity() > WRITE_BUFFER_BYTES_KEPT {
                buffer = BytesMut::new();
            }
            if !self.outbox.next_batch(&mut batch).await {
                return self.half.shutdown().await;
            }
            for message in batch.drain(..) {
                self.encode(&message, &mut buffer);
            }
        }
    }

    fn encode(&self, message: &Message, buffer: &mut BytesMut) {
        match frame::encode(message, buffer) {
            Ok(frames) => Counters::add(&self.counters.frames_sent, frames),
            Err(error) => {
                // Nothing that the configuration allows is so long: it would never be replicated.
                Counters::add(&self.counters.dropped_bulk, 1);
                tracing::error!(%error, "a message that cannot be sent");
            }
        }
    }
}

struct Reader {
    frames: FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
    from: MemberId,
    events: mpsc::Sender<TransportEvent>,
    counters: Arc<Counters>,
}

impl Reader {
    async fn run(mut self) -> End {
        while let Some(frame) = self.frames.next().await {
            let message = match frame.map_err(End::from_codec).and_then(|frame| self.decode(&frame)) {
                Ok(message) => message,
                Err(end) => return self.explain(end).await,
            };
            let event = TransportEvent::Received { from: self.from, message };
            if self.events.send(event).await.is_err() {
                return End::Here;
            }
        }
        End::Closed
    }

    /// The lines of a message may be kept for long: they must hold their own frame in memory, and not
    /// a read buffer that was mostly heartbeats.
    fn decode(&self, payload: &[u8]) -> Result<Message, End> {
        Counters::add(&self.counters.frames_received, 1);
        Counters::add(&self.counters.bytes_received, (payload.len() + LENGTH_BYTES) as u64);
        frame::decode(Bytes::copy_from_slice(payload)).map_err(End::Frame)
    }

    /// Counts what was wrong with a frame, and tells the driver of a line that this release cannot know.
    async fn explain(&self, end: End) -> End {
        match &end {
            End::Frame(FrameError::Line { error, .. }) if error.is_damage() => {
                Counters::add(&self.counters.invalid_lines, 1);
            }
            End::Frame(FrameError::Line { error, .. }) => {
                let event = TransportEvent::UnknownLine { from: self.from, reason: error.to_string() };
                let _ = self.events.send(event).await;
            }
            End::Frame(_) => Counters::add(&self.counters.invalid_frames, 1),
            End::Closed | End::Io(_) | End::Here => {}
        }
        end
    }
}

impl End {
    /// The codec's only error of its own is a length over the limit.
    fn from_codec(error: std::io::Error) -> Self {
        match error.get_ref().is_some_and(|inner| inner.is::<LengthDelimitedCodecError>()) {
            true => Self::Frame(FrameError::TooLarge),
            false => Self::Io(error),
        }
    }
}
