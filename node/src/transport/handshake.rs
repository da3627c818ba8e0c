//! How two processes introduce themselves before anything else: version, hello, proof of the shared
//! secret, and the word of the smaller member id that opens the connection. Speaks on one socket and
//! decides nothing about other connections; time-outs are the caller's. The wire: `docs/protocol.md`.
//!
//! ```text
//!   dialer                                acceptor
//!   preamble, introduce  ──────────────▶
//!                        ◀──────────────  preamble, introduce
//!   proof                ──────────────▶
//!                        ◀──────────────  proof
//!   ready | open | snapshot  ──────────▶
//!                        ◀──────────────  open             (after ready)
//! ```
//! Instead of any of these: `refused`, with the reason, and the end.

use std::sync::Arc;

use arc_swap::ArcSwap;
use hmac::{Hmac, KeyInit, Mac};
use kv_core::entry::Epoch;
use kv_core::group::MemberId;
use kv_core::message::Hello;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::net::TcpStream;
use tokio::time::Duration;

use preamble::{PREAMBLE_BYTES, Preamble, Purpose};
use wire::{Word, listen, listen_for_preamble, raw, say, say_raw};

use crate::auth_token::AuthToken;

pub(crate) mod preamble;
mod wire;

/// Bounds a handshake, on either side, from the connected socket to `open`.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Random bytes that make each proof good for one connection only.
const NONCE_BYTES: usize = 32;

/// What a node brings to each handshake.
pub(crate) struct Credentials {
    pub(crate) hello: Arc<ArcSwap<Hello>>,
    pub(crate) secret: Option<AuthToken>,
}

/// Why one side does not want a connection; travels in `refused`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) kind: RefusalKind,
    /// For a person.
    pub(crate) reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RefusalKind {
    /// No protocol version in common.
    Version,
    /// Both are initialised, in different clusters.
    Cluster,
    /// The same member id on both sides, or not the member that was dialed.
    Member,
    /// The shared secret was not proved.
    Proof,
    /// The pair has a connection; nothing is wrong.
    Duplicate,
    /// A limit is reached; try again later.
    Busy,
    /// A kind that a newer release knows.
    #[serde(other)]
    Other,
}

impl Refusal {
    pub(crate) fn new(kind: RefusalKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }
}

/// How a handshake can fail.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Not a peer at all, or one that breaks the protocol.
    #[error("{0}")]
    Garbage(&'static str),
    /// This side refuses, and has said so.
    #[error("refused here: {}", .0.reason)]
    Here(Refusal),
    /// The other side refuses.
    #[error("refused by the other side: {}", .0.reason)]
    There(Refusal),
    #[error("the handshake took too long")]
    TimedOut,
}

/// A peer connection whose other side is known, before its opening is settled on this side.
#[derive(Debug)]
pub(crate) struct Proven {
    pub(crate) stream: TcpStream,
    pub(crate) hello: Hello,
    pub(crate) arbiter: Arbiter,
}

/// Who decides which connection of a pair lives: always the smaller member id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arbiter {
    /// This side: it numbers the connection and says `open`, or refuses it. `seen`: the last number
    /// that the other side, when it dialed, had seen of this process.
    Here { seen: Option<u64> },
    /// The other side has opened it under this number; numbers rise while its process lives.
    There { connection: u64 },
}

/// What an accepted socket turned out to be.
#[derive(Debug)]
pub(crate) enum Accepted {
    Peer(Proven),
    Snapshot { stream: TcpStream, hello: Hello, epoch: Epoch },
}

/// Dials as a peer: `expected` must answer; `seen` gives the last connection number seen of a process.
pub(crate) async fn dial_peer(
    mut stream: TcpStream,
    credentials: &Credentials,
    expected: MemberId,
    seen: impl FnOnce(&Hello) -> u64,
) -> Result<Proven, HandshakeError> {
    let (own, hello) = introduce_as_dialer(&mut stream, credentials, Purpose::Peer, expected).await?;
    if own < hello.member_id {
        return Ok(Proven { stream, hello, arbiter: Arbiter::Here { seen: None } });
    }
    say(&mut stream, &Word::Ready { last_connection: seen(&hello) }).await?;
    let connection = hear_open(&mut stream).await?;
    Ok(Proven { stream, hello, arbiter: Arbiter::There { connection } })
}

/// Dials to send a snapshot; what follows on the stream is raw.
pub(crate) async fn dial_snapshot(
    mut stream: TcpStream,
    credentials: &Credentials,
    expected: MemberId,
    epoch: Epoch,
) -> Result<TcpStream, HandshakeError> {
    introduce_as_dialer(&mut stream, credentials, Purpose::Snapshot, expected).await?;
    say(&mut stream, &Word::Snapshot { epoch }).await?;
    Ok(stream)
}

/// Answers whoever dialed.
pub(crate) async fn accept(mut stream: TcpStream, credentials: &Credentials) -> Result<Accepted, HandshakeError> {
    let (purpose, own, hello) = introduce_as_acceptor(&mut stream, credentials).await?;
    match (purpose, listen(&mut stream).await?) {
        (Purpose::Snapshot, Word::Snapshot { epoch }) => Ok(Accepted::Snapshot { stream, hello, epoch }),
        (Purpose::Peer, Word::Ready { last_connection }) if own < hello.member_id => {
            Ok(Accepted::Peer(Proven { stream, hello, arbiter: Arbiter::Here { seen: Some(last_connection) } }))
        }
        (Purpose::Peer, Word::Open { connection }) if own > hello.member_id => {
            Ok(Accepted::Peer(Proven { stream, hello, arbiter: Arbiter::There { connection } }))
        }
        (_, word) => Err(unexpected(word)),
    }
}

async fn introduce_as_dialer(
    stream: &mut TcpStream,
    credentials: &Credentials,
    purpose: Purpose,
    expected: MemberId,
) -> Result<(MemberId, Hello), HandshakeError> {
    let own = Introduction::of(&credentials.hello.load())?;
    let dialer = Said { preamble: Preamble::own(purpose).encode(), introduction: own.encode() };
    say_raw(stream, &[&dialer.preamble, &raw(&dialer.introduction)]).await?;

    let answered = listen_for_preamble(stream).await?;
    agree_on_version(stream, answered).await?;
    let (introduction, theirs) = hear_introduction(stream).await?;
    let acceptor = Said { preamble: answered.encode(), introduction };
    check(stream, &own.hello, &theirs.hello, Some(expected)).await?;

    let transcript = Transcript { dialer, acceptor };
    let secret = credentials.secret.as_ref().map(AuthToken::load);
    let secret = secret.as_ref().map(|secret| secret.as_slice());
    say(stream, &Word::Proof { hmac: secret.map(|s| transcript.proof(s, Side::Dialer)) }).await?;
    check_proof(stream, &transcript, secret, Side::Acceptor).await?;
    Ok((own.hello.member_id, theirs.hello))
}

async fn introduce_as_acceptor(
    stream: &mut TcpStream,
    credentials: &Credentials,
) -> Result<(Purpose, MemberId, Hello), HandshakeError> {
    let asked = listen_for_preamble(stream).await?;
    let preamble = Preamble::own(asked.purpose).encode();
    if let Err(error) = asked.agree() {
        say_raw(stream, &[&preamble]).await?;
        return Err(refuse(stream, RefusalKind::Version, error).await);
    }
    let (introduction, theirs) = hear_introduction(stream).await?;
    let dialer = Said { preamble: asked.encode(), introduction };
    let own = Introduction::of(&credentials.hello.load())?;
    let acceptor = Said { preamble, introduction: own.encode() };
    say_raw(stream, &[&acceptor.preamble, &raw(&acceptor.introduction)]).await?;
    check(stream, &own.hello, &theirs.hello, None).await?;

    let transcript = Transcript { dialer, acceptor };
    let secret = credentials.secret.as_ref().map(AuthToken::load);
    let secret = secret.as_ref().map(|secret| secret.as_slice());
    check_proof(stream, &transcript, secret, Side::Dialer).await?;
    say(stream, &Word::Proof { hmac: secret.map(|s| transcript.proof(s, Side::Acceptor)) }).await?;
    Ok((asked.purpose, own.hello.member_id, theirs.hello))
}

async fn agree_on_version(stream: &mut TcpStream, answered: Preamble) -> Result<(), HandshakeError> {
    match answered.agree() {
        Ok(_version) => Ok(()),
        Err(reason) => Err(refuse(stream, RefusalKind::Version, reason).await),
    }
}

async fn hear_introduction(stream: &mut TcpStream) -> Result<(Vec<u8>, Introduction), HandshakeError> {
    let (bytes, word) = wire::listen_raw(stream).await?;
    match word {
        Word::Introduce(introduction) => Ok((bytes, introduction)),
        word => Err(unexpected(word)),
    }
}

async fn hear_open(stream: &mut TcpStream) -> Result<u64, HandshakeError> {
    match listen(stream).await? {
        Word::Open { connection } => Ok(connection),
        word => Err(unexpected(word)),
    }
}

fn unexpected(word: Word) -> HandshakeError {
    match word {
        Word::Refused(refusal) => HandshakeError::There(refusal),
        _ => HandshakeError::Garbage("a word of the handshake out of its place"),
    }
}

/// Says why, and gives the same back as an error. Best effort: the other side may be gone.
async fn refuse(stream: &mut TcpStream, kind: RefusalKind, reason: impl Into<String>) -> HandshakeError {
    let refusal = Refusal::new(kind, reason);
    let _ = say(stream, &Word::Refused(refusal.clone())).await;
    wire::close(stream).await;
    HandshakeError::Here(refusal)
}

/// What the smaller member id says to open a connection; messages may follow at once.
pub(crate) fn open(connection: u64) -> Vec<u8> {
    raw(&wire::encode(&Word::Open { connection }))
}

/// Refuses a connection after its handshake, without an answer to wait for.
pub(crate) async fn refuse_proven(mut stream: TcpStream, refusal: Refusal) {
    let _ = say(&mut stream, &Word::Refused(refusal)).await;
    wire::close(&mut stream).await;
}

/// Whether two members may talk: not the same one, the one that was dialed, no two clusters.
async fn check(
    stream: &mut TcpStream,
    own: &Hello,
    theirs: &Hello,
    expected: Option<MemberId>,
) -> Result<(), HandshakeError> {
    match judge(own, theirs, expected) {
        None => Ok(()),
        Some(Refusal { kind, reason }) => Err(refuse(stream, kind, reason).await),
    }
}

fn judge(own: &Hello, theirs: &Hello, expected: Option<MemberId>) -> Option<Refusal> {
    let (name, member_id) = (&theirs.name, theirs.member_id);
    if member_id == own.member_id {
        let what = if theirs.start_id == own.start_id { "this very process" } else { "another process" };
        let reason = format!("{name} has the same member id {member_id}, and is {what}");
        return Some(Refusal::new(RefusalKind::Member, reason));
    }
    if let Some(expected) = expected.filter(|expected| *expected != member_id) {
        let reason = format!("{} looked for member {expected}, but {name} is member {member_id}", own.name);
        return Some(Refusal::new(RefusalKind::Member, reason));
    }
    match (&own.cluster_id, &theirs.cluster_id) {
        (Some(ours), Some(other)) if ours != other => {
            let reason = format!("{} is of cluster {ours}, {name} is of cluster {other}", own.name);
            Some(Refusal::new(RefusalKind::Cluster, reason))
        }
        _ => None,
    }
}

async fn check_proof(
    stream: &mut TcpStream,
    transcript: &Transcript,
    secret: Option<&[u8]>,
    by: Side,
) -> Result<(), HandshakeError> {
    let proof = match listen(stream).await? {
        Word::Proof { hmac } => hmac,
        word => return Err(unexpected(word)),
    };
    match (secret, proof) {
        // Whoever has a secret checks it; a node without one has nothing to check with.
        (None, _) => Ok(()),
        (Some(secret), Some(proof)) if transcript.is_proved(secret, by, &proof) => Ok(()),
        (Some(_), Some(_)) => Err(refuse(stream, RefusalKind::Proof, "the two nodes have different secrets").await),
        (Some(_), None) => {
            Err(refuse(stream, RefusalKind::Proof, "one node has a secret (auth token file), the other has none").await)
        }
    }
}

/// The first word of each side.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Introduction {
    /// Hexadecimal.
    nonce: String,
    hello: Hello,
}

impl Introduction {
    fn of(hello: &Hello) -> Result<Self, HandshakeError> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(std::io::Error::other)?;
        Ok(Self { nonce: hex(&nonce), hello: hello.clone() })
    }

    fn encode(&self) -> Vec<u8> {
        wire::encode(&Word::Introduce(self.clone()))
    }
}

/// What one side said before the proofs, byte by byte.
struct Said {
    preamble: [u8; PREAMBLE_BYTES],
    introduction: Vec<u8>,
}

/// What both sides said: a proof covers all of it, so that neither hello nor version can be replaced.
struct Transcript {
    dialer: Said,
    acceptor: Said,
}

/// Whose proof it is; a proof sent back to its maker proves nothing.
#[derive(Debug, Clone, Copy)]
enum Side {
    Dialer,
    Acceptor,
}

impl Transcript {
    fn mac(&self, secret: &[u8], side: Side) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(secret).expect("HMAC takes keys of any length");
        mac.update(match side {
            Side::Dialer => b"kvcluster peer dialer\0",
            Side::Acceptor => b"kvcluster peer acceptor\0",
        });
        for Said { preamble, introduction } in [&self.dialer, &self.acceptor] {
            mac.update(preamble);
            mac.update(&(introduction.len() as u64).to_be_bytes());
            mac.update(introduction);
        }
        mac
    }

    fn proof(&self, secret: &[u8], side: Side) -> String {
        hex(&self.mac(secret, side).finalize().into_bytes())
    }

    fn is_proved(&self, secret: &[u8], side: Side, proof: &str) -> bool {
        unhex(proof).is_some_and(|proof| self.mac(secret, side).verify_slice(&proof).is_ok())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests;
