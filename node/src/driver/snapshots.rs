//! Snapshots on their way out and in: tasks of their own, over connections of their own, so that
//! heartbeats and writes never wait for them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kv_core::contract::{Input, Now};
use kv_core::entry::{EntryId, Epoch, LogPosition};
use kv_core::group::MemberId;
use kv_core::message::Hello;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::handle::Handle;
use super::published::Published;
use super::rounds::{Driver, Finished};
use crate::transport::{SnapshotReceiver, SnapshotSender, Transport};
use crate::wal::{FileStorage, LogReader, StagedSnapshot};

/// Snapshots sent at once; more peers wait for their turn.
const SENT_AT_ONCE_MAX: usize = 2;
/// Chunks between the disk and the network.
const CHUNKS_MAX: usize = 4;
/// Bytes taken from the network at once.
const RECEIVE_BYTES_MAX: usize = 256 << 10;
/// A connection that takes or gives no byte for this long is broken.
const STALL: Duration = Duration::from_secs(30);

/// The positions of the snapshots under way: compaction must not pass them, their receivers go on
/// from there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Floors(Arc<Mutex<BTreeMap<EntryId, usize>>>);

/// Holds compaction back until dropped.
#[derive(Debug)]
pub(crate) struct Floor {
    floors: Floors,
    at: EntryId,
}

impl Floors {
    pub(crate) fn hold(&self, at: EntryId) -> Floor {
        *self.lock().entry(at).or_default() += 1;
        Floor { floors: self.clone(), at }
    }

    pub(crate) fn lowest(&self) -> Option<EntryId> {
        self.lock().first_key_value().map(|(at, _)| *at)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<EntryId, usize>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let mut floors = self.floors.lock();
        if let Some(holders) = floors.get_mut(&self.at) {
            *holders -= 1;
            if *holders == 0 {
                floors.remove(&self.at);
            }
        }
    }
}

/// Turns at sending and at receiving.
#[derive(Debug)]
pub(crate) struct Turns {
    sending: Arc<Semaphore>,
    receiving: Arc<Semaphore>,
    /// Held while a snapshot is being installed.
    installing: Option<OwnedSemaphorePermit>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            sending: Arc::new(Semaphore::new(SENT_AT_ONCE_MAX)),
            receiving: Arc::new(Semaphore::new(1)),
            installing: None,
        }
    }
}

impl Driver {
    pub(crate) fn send_snapshot(&self, peer: MemberId, epoch: Epoch) {
        let (transport, published) = (self.transport.clone(), Arc::clone(&self.published));
        let (finished, turns) = (self.finished.clone(), Arc::clone(&self.snapshots.sending));
        tokio::spawn(async move {
            let _turn = turns.acquire_owned().await.expect("never closed");
            // The snapshot is at this id or above it.
            let floor = published.snapshot_floors.hold(published.state().keyspace.applied());
            let result = send(&transport, &published, peer, epoch).await;
            match &result {
                Ok(position) => tracing::info!(%peer, id = %position.id, "sent a snapshot"),
                Err(error) => tracing::info!(%peer, error, "a snapshot did not arrive"),
            }
            let input = Input::SnapshotSent { peer, result };
            let _stopped = finished.send(Finished::SnapshotSent { input, floor }).await;
        });
    }
}

impl Driver {
    /// One at a time: a second sender is told so, and asks again.
    pub(crate) fn receive_snapshot(&self, hello: Hello, epoch: Epoch, stream: SnapshotReceiver) {
        let turn = Arc::clone(&self.snapshots.receiving).try_acquire_owned();
        let (reader, finished) = (self.published.reader.clone(), self.finished.clone());
        let busy = self.published.busy();
        tokio::spawn(async move {
            let _busy = busy;
            let Ok(turn) = turn else {
                let _gone = stream.answer(Err("another snapshot is being received".to_owned())).await;
                return;
            };
            let mut stream = stream;
            let staged = receive(&mut stream, reader).await;
            let from = hello.member_id;
            match &staged {
                Ok(staged) => tracing::info!(%from, id = %staged.position.id, "received a snapshot"),
                Err(error) => tracing::info!(%from, error, "a snapshot did not arrive"),
            }
            let answer = staged.as_ref().map(|staged| staged.position).map_err(Clone::clone);
            // First the replica, then the sender: its next append must not come to a replica that knows
            // nothing of the snapshot yet, and asks for another.
            if let Ok(StagedSnapshot { position, cluster_id, .. }) = staged {
                let input = Input::SnapshotStaged { from, epoch, position, cluster_id };
                let _stopped = finished.send(Finished::SnapshotStaged { input, turn }).await;
            }
            let _gone = stream.answer(answer).await;
        });
    }

    /// The replica decides at once whether it installs what was received; what it does not want goes. No other one
    /// is received before that.
    pub(crate) fn snapshot_staged(&mut self, now: Now, input: Input, turn: OwnedSemaphorePermit) {
        self.replica.step(now, input);
        if self.replica.is_installing() {
            self.snapshots.installing = Some(turn);
            return;
        }
        let reader = self.published.reader.clone();
        tokio::task::spawn_blocking(move || {
            reader.withdraw();
            drop(turn);
        });
    }

    pub(crate) fn snapshot_installed(&mut self) {
        self.snapshots.installing = None;
    }
}

/// Writes the stream to staged files and verifies it whole.
async fn receive(stream: &mut SnapshotReceiver, reader: LogReader<FileStorage>) -> Result<StagedSnapshot, String> {
    let (chunks, mut incoming) = mpsc::channel::<Bytes>(CHUNKS_MAX);
    let staging =
        tokio::task::spawn_blocking(move || stage(&reader, std::iter::from_fn(move || incoming.blocking_recv())));
    let fed = feed(stream, chunks).await;
    match (staging.await, fed) {
        (Ok(Ok(staged)), Ok(())) => Ok(staged),
        (Ok(Err(error)), Ok(())) => Err(error),
        (_, Err(error)) => Err(error.to_string()),
        (Err(panic), _) => Err(panic.to_string()),
    }
}

async fn feed(stream: &mut SnapshotReceiver, chunks: mpsc::Sender<Bytes>) -> io::Result<()> {
    loop {
        let mut chunk = BytesMut::with_capacity(RECEIVE_BYTES_MAX);
        if timeout(STALL, stream.read_buf(&mut chunk)).await?? == 0 || chunks.send(chunk.freeze()).await.is_err() {
            return Ok(()); // the end, or staging has failed and says why
        }
    }
}

async fn send(
    transport: &Transport,
    published: &Arc<Published>,
    peer: MemberId,
    epoch: Epoch,
) -> Result<LogPosition, String> {
    let mut stream = transport.open_snapshot(peer, epoch).await.map_err(|e| e.to_string())?;
    let (_, mut chunks) = read_ahead(Arc::clone(published)).await?;
    let copied = copy(&mut chunks, &mut stream).await;
    // The receiver's reason says more than a broken connection.
    match (stream.finish().await, copied) {
        (Ok(_), Err(error)) => Err(error.to_string()),
        (finished, _) => finished.map_err(|e| e.to_string()),
    }
}

async fn copy(chunks: &mut mpsc::Receiver<io::Result<Bytes>>, stream: &mut SnapshotSender) -> io::Result<()> {
    while let Some(chunk) = chunks.recv().await {
        timeout(STALL, stream.write_all(&chunk?)).await??;
    }
    Ok(())
}

/// A snapshot's chunks as they are read from the disk.
pub(crate) type Chunks = mpsc::Receiver<io::Result<Bytes>>;

impl Handle {
    /// The whole state at the position given, which is applied here now. The error is fit for a client.
    /// May be cancelled; dropping the receiver ends the reading.
    pub async fn snapshot(&self) -> Result<(LogPosition, Chunks), String> {
        read_ahead(Arc::clone(&self.published)).await
    }
}

/// The snapshot's chunks, read on a thread that may block. Dropping the receiver ends the reading.
async fn read_ahead(published: Arc<Published>) -> Result<(LogPosition, Chunks), String> {
    let opened = tokio::task::spawn_blocking(move || {
        let applied = || published.state().keyspace.applied();
        published.reader.snapshot(&applied)
    });
    let source = opened.await.map_err(|panic| panic.to_string())?.map_err(|error| error.to_string())?;
    let position = source.position();
    let (chunks, ahead) = mpsc::channel(CHUNKS_MAX);
    tokio::task::spawn_blocking(move || {
        for chunk in source {
            // Whoever takes it will only know that it is incomplete.
            let failed = chunk.as_ref().inspect_err(|error| tracing::error!(%error, "cannot read the log")).is_err();
            if chunks.blocking_send(chunk).is_err() || failed {
                return;
            }
        }
    });
    Ok((position, ahead))
}

/// Blocks. Of a stream that is not whole nothing is left.
fn stage(reader: &LogReader<FileStorage>, mut chunks: impl Iterator<Item = Bytes>) -> Result<StagedSnapshot, String> {
    let mut receiver = reader.receive_snapshot();
    let fed = chunks.try_for_each(|chunk| receiver.feed(&chunk));
    let received = fed.and_then(|()| receiver.finish()).map_err(|error| error.to_string())?;
    reader.offer(received.staged.clone());
    Ok(received.staged)
}
