//! Earlier versions: the keyspace knows where they are, the log has them. Blocking reads go to the
//! blocking pool in batches; a long history is streamed, so that memory holds one batch of it.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::Request;
use axum::http::request::Parts;
use axum::response::Response;
use futures::{StreamExt, stream};
use kv_core::entry::Body as EntryBody;
use kv_core::keyspace::{Locator, Read, Versions};
use tokio::time::{Instant, timeout_at};

use super::App;
use super::answer::{self, JsonWriter};
use super::error::Failure;
use super::keys::{self, Shown};
use super::query::Query;
use super::reads::{self, Admitted, Freshness};
use crate::driver::Handle;
use crate::wal::ReadError;

/// Bytes of earlier values read at a time.
const BATCH_BYTES: usize = 256 * 1024;
/// A history up to this size is read whole before it is answered, so that it can be begun anew when
/// compaction has just dropped a version that was trimmed meanwhile.
const WHOLE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How often a read is begun anew; each time the key must have been written a whole history further.
const ATTEMPTS_MAX: usize = 5;
/// How long a read waits for the repair of a damaged file: a hand-over and a repair.
const REPAIR_PATIENCE: Duration = Duration::from_secs(3);

/// The value of one version, current or earlier.
pub(crate) async fn read_version(handle: &Handle, key: &str, version: u64) -> Result<Shown, Failure> {
    for _ in 0..ATTEMPTS_MAX {
        let Read { at, found } = handle.keyspace().versions(key);
        let absent = || not_available(version).at(at);
        let Versions { current, earlier } = found.ok_or_else(absent)?;
        if current.version == version {
            let body = answer::value_body(key, &current.value, version);
            return Ok(Shown { at, id: current.id, body });
        }
        let locator = *earlier.iter().find(|locator| locator.version == version).ok_or_else(absent)?;
        let values = read_values(handle, vec![locator]).await?;
        if let Some(value) = values.into_iter().next().flatten() {
            let body = answer::value_body(key, &value, version);
            return Ok(Shown { at, id: locator.id, body });
        }
    }
    Err(gone(key))
}

fn not_available(version: u64) -> Failure {
    Failure::new(super::error::Code::NotFound, format!("Key not found or version {version} not available"))
}

/// The log does not have what the keyspace says that it has.
fn gone(key: &str) -> Failure {
    tracing::error!(key, "an earlier version is missing from the log");
    Failure::internal("An earlier version could not be read")
}

/// The values at `locators`, as far as they are held; stops after [`BATCH_BYTES`]. A damaged file is waited
/// for: reading it has it repaired, which takes moments while there is a leader.
async fn read_values(handle: &Handle, locators: Vec<Locator>) -> Result<Vec<Option<Bytes>>, Failure> {
    let mut repairs = handle.repairs();
    let until = Instant::now() + REPAIR_PATIENCE;
    loop {
        match try_to_read(handle, locators.clone()).await? {
            Ok(values) => return Ok(values),
            Err(error) => tracing::info!(%error, "an earlier version is read again when its file is repaired"),
        }
        if timeout_at(until, repairs.changed()).await.is_err() {
            return Err(Failure::not_ready("An earlier version is damaged on this node and not repaired yet"));
        }
    }
}

async fn try_to_read(
    handle: &Handle,
    locators: Vec<Locator>,
) -> Result<Result<Vec<Option<Bytes>>, ReadError>, Failure> {
    let reader = handle.reader().clone();
    let read = tokio::task::spawn_blocking(move || {
        let mut values = Vec::with_capacity(locators.len());
        let mut bytes = 0;
        for locator in locators {
            let entry = reader.read_entry(locator.id)?;
            let value = entry.and_then(|entry| match entry.body {
                EntryBody::Set { value, version, .. } if version == locator.version => {
                    Some(Bytes::copy_from_slice(value.as_bytes()))
                }
                _ => None,
            });
            bytes += value.as_ref().map_or(0, Bytes::len);
            values.push(value);
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        Ok::<_, ReadError>(values)
    });
    read.await.map_err(|_| Failure::internal("The log could not be read"))
}

#[utoipa::path(get, path = "/key/{key}/history", tag = "keys", summary = "All versions held, with their values",
    params(super::openapi::KeyParam, super::openapi::FreshnessParams),
    responses((status = 200, body = super::openapi::HistoryDocument), super::openapi::ReadErrors))]
pub(crate) async fn history(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let (parts, _) = request.into_parts();
    let Asked { key, handle, admitted } = admit(&app, &parts).await?;
    if let Admitted::Relayed(response) = admitted {
        return Ok(response);
    }
    for _ in 0..ATTEMPTS_MAX {
        let Read { at, found } = handle.keyspace().versions(&key);
        let versions = found.ok_or_else(|| Failure::key_not_found().at(at))?;
        let story = Story::new(handle.clone(), &key, versions);
        if let Some(body) = story.tell().await? {
            return Ok(answer::at(answer::json(body), at));
        }
    }
    Err(gone(&key))
}

/// A question about a key's versions, and where it is answered.
struct Asked<'a> {
    key: Cow<'a, str>,
    handle: &'a Handle,
    admitted: Admitted,
}

async fn admit<'a>(app: &'a App, parts: &'a Parts) -> Result<Asked<'a>, Failure> {
    let key = keys::key_of(&parts.uri)?;
    let query = Query::parse(parts.uri.query(), &reads::FRESHNESS)?;
    let handle = app.handle()?;
    let admitted = reads::admit(app, handle, parts, Freshness::of(&query)?).await?;
    Ok(Asked { key, handle, admitted })
}

/// A history on its way to a client.
struct Story {
    handle: Handle,
    key: Box<str>,
    versions: Versions,
    /// How many of the earlier versions are written.
    told: usize,
}

/// A version is not held any more.
struct Missing;

impl Story {
    fn new(handle: Handle, key: &str, versions: Versions) -> Self {
        Self { handle, key: key.into(), versions, told: 0 }
    }

    /// None: begin anew. The body is whole when it is short, and a stream when it is long.
    async fn tell(mut self) -> Result<Option<Body>, Failure> {
        let mut whole = self.opening();
        while let Some(batch) = self.next_batch().await? {
            let Ok(batch) = batch else { return Ok(None) };
            whole.extend_from_slice(&batch);
            if whole.len() >= WHOLE_BYTES_MAX {
                return Ok(Some(self.stream_after(whole)));
            }
        }
        whole.extend_from_slice(&self.closing());
        Ok(Some(whole.into()))
    }

    /// The rest in batches, each read when the client has taken the one before. What goes wrong now
    /// can only cut the body off, which the client notices.
    fn stream_after(self, begun: Vec<u8>) -> Body {
        let rest = stream::unfold(Some(self), |story| async move {
            let mut story = story?;
            match story.next_batch().await {
                Ok(Some(Ok(batch))) => Some((Ok(Bytes::from(batch)), Some(story))),
                Ok(None) => Some((Ok(Bytes::from(story.closing())), None)),
                Ok(Some(Err(Missing))) | Err(_) => Some((Err("an earlier version could not be read"), None)),
            }
        });
        let begun = stream::once(async move { Ok(Bytes::from(begun)) });
        Body::from_stream(begun.chain(rest))
    }

    fn opening(&self) -> Vec<u8> {
        let mut w = versions_opening(&self.key, &self.versions);
        w.raw(b",\"history\":[");
        w.take()
    }

    async fn next_batch(&mut self) -> Result<Option<Result<Vec<u8>, Missing>>, Failure> {
        let left = &self.versions.earlier[self.told..];
        if left.is_empty() {
            return Ok(None);
        }
        let values = read_values(&self.handle, left.to_vec()).await?;
        let mut w = JsonWriter::with_room(values.iter().flatten().map(|value| value.len() + 40).sum());
        for (locator, value) in left.iter().zip(&values) {
            let Some(value) = value else { return Ok(Some(Err(Missing))) };
            version_member(&mut w, locator.version, value).raw(b",");
        }
        self.told += values.len();
        Ok(Some(Ok(w.take())))
    }

    fn closing(&self) -> Vec<u8> {
        let current = &self.versions.current;
        let mut w = JsonWriter::with_room(current.value.len() + 40);
        version_member(&mut w, current.version, &current.value).raw(b"]}");
        w.take()
    }
}

fn version_member<'w>(w: &'w mut JsonWriter, version: u64, value: &[u8]) -> &'w mut JsonWriter {
    w.raw(b"{\"version\":").number(version).raw(b",\"value\":").raw(value).raw(b"}")
}

/// `{"key":...,"versions":[...]`, without the closing brace.
fn versions_opening(key: &str, versions: &Versions) -> JsonWriter {
    let mut w = JsonWriter::with_room(key.len() + versions.earlier.len() * 8 + 40);
    w.raw(b"{\"key\":").text(key).raw(b",\"versions\":[");
    for locator in &versions.earlier {
        w.number(locator.version).raw(b",");
    }
    w.number(versions.current.version).raw(b"]");
    w
}

#[utoipa::path(get, path = "/key/{key}/versions", tag = "keys", summary = "The versions held",
    params(super::openapi::KeyParam, super::openapi::FreshnessParams),
    responses((status = 200, body = super::openapi::VersionsDocument), super::openapi::ReadErrors))]
pub(crate) async fn versions(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let (parts, _) = request.into_parts();
    let Asked { key, handle, admitted } = admit(&app, &parts).await?;
    if let Admitted::Relayed(response) = admitted {
        return Ok(response);
    }
    let Read { at, found } = handle.keyspace().versions(&key);
    let versions = found.ok_or_else(|| Failure::key_not_found().at(at))?;
    let mut w = versions_opening(&key, &versions);
    w.raw(b",\"latest_version\":").number(versions.current.version).raw(b"}");
    Ok(answer::at(answer::json(w.take()), at))
}
