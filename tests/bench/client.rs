//! The load: many connections in one thread over epoll, requests written by hand, answers parsed no
//! further than to their end. It costs a few microseconds for each request, so that two cores are left
//! to the server. Closed loop (each connection asks again when it is answered) or at a given rate.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::event::Timespec;
use rustix::event::epoll;

/// Read in one go; answers are far smaller.
const READ_BYTES: usize = 64 * 1024;

/// Without any answer for this long, the run has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a protocol's answers look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    /// Redis.
    Resp,
}

/// Writes the request for the n-th operation.
pub(crate) type WriteRequest<'a> = &'a dyn Fn(u64, &mut Vec<u8>);

/// How long, and how fast.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// Each connection asks again at once, for this long; what comes in the first fifth is not counted.
    Closed(Duration),
    /// Closed, until this many operations were answered.
    Operations(u64),
    /// This many each second, for this long; latencies count from when a request was due.
    Rate(f64, Duration),
}

/// Where, how many, in which words.
#[derive(Clone, Copy)]
pub(crate) struct Load<'a> {
    pub(crate) addresses: &'a [SocketAddr],
    pub(crate) connections: usize,
    pub(crate) protocol: Protocol,
    pub(crate) write: WriteRequest<'a>,
}

/// What was measured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) per_second: f64,
    pub(crate) errors: u64,
    /// Sorted, in microseconds.
    latencies_us: Vec<u32>,
}

impl Outcome {
    pub(crate) fn percentile_us(&self, percent: f64) -> f64 {
        let Some(last) = self.latencies_us.len().checked_sub(1) else { return f64::NAN };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index within the list")]
        let index = (last as f64 * percent / 100.0).round() as usize;
        f64::from(self.latencies_us[index])
    }

    pub(crate) fn count(&self) -> usize {
        self.latencies_us.len()
    }
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    out: Vec<u8>,
    /// When the request under way was due; None: idle.
    asked: Option<Instant>,
}

struct Run<'a> {
    load: Load<'a>,
    pace: Pace,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    begin: Instant,
    next: u64,
    answered: u64,
    counted_from: Instant,
    outcome: Outcome,
}

impl Load<'_> {
    /// Runs on the calling thread until the pace says that it is enough.
    pub(crate) fn run(&self, pace: Pace) -> anyhow::Result<Outcome> {
        Run::new(*self, pace)?.drive()
    }
}

impl Pace {
    fn warm_up(self) -> Duration {
        match self {
            Self::Closed(length) => length / 5,
            Self::Operations(_) | Self::Rate(..) => Duration::ZERO,
        }
    }
}

impl<'a> Run<'a> {
    fn new(load: Load<'a>, pace: Pace) -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll")?;
        let mut connections = Vec::with_capacity(load.connections);
        for index in 0..load.connections {
            let address = load.addresses[index % load.addresses.len()];
            let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            epoll::add(&epoll, &stream, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
            connections.push(Connection { stream, buffer: Vec::new(), out: Vec::new(), asked: None });
        }
        let begin = Instant::now();
        let counted_from = begin + pace.warm_up();
        let outcome = Outcome::default();
        Ok(Self { load, pace, epoll, connections, begin, next: 0, answered: 0, counted_from, outcome })
    }

    fn drive(mut self) -> anyhow::Result<Outcome> {
        let mut events = Vec::with_capacity(1024);
        let mut last_answer = Instant::now();
        let mut read = vec![0; READ_BYTES];
        while !self.is_over() {
            self.ask_where_due()?;
            events.clear();
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&self.longest_wait()))?;
            for event in &events {
                let index = usize::try_from(event.data.u64()).expect("an index that we gave");
                if self.read_answer(index, &mut read)? {
                    last_answer = Instant::now();
                    if !matches!(self.pace, Pace::Rate(..)) {
                        self.ask(index, last_answer)?;
                    }
                }
            }
            ensure!(last_answer.elapsed() < PATIENCE, "no answer for {} s", PATIENCE.as_secs());
        }
        let seconds = self.counted_from.elapsed().as_secs_f64();
        self.outcome.latencies_us.sort_unstable();
        self.outcome.per_second = self.outcome.count() as f64 / seconds;
        Ok(self.outcome)
    }

    fn is_over(&self) -> bool {
        match self.pace {
            Pace::Closed(length) | Pace::Rate(_, length) => self.begin.elapsed() >= length,
            Pace::Operations(count) => self.answered >= count,
        }
    }

    fn longest_wait(&self) -> Timespec {
        let nanoseconds = if matches!(self.pace, Pace::Rate(..)) { 500_000 } else { 100_000_000 };
        Timespec { tv_sec: 0, tv_nsec: nanoseconds }
    }

    /// At a rate: gives what is due to idle connections. Otherwise: starts connections that never asked.
    fn ask_where_due(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let Pace::Rate(per_second, _) = self.pace else {
            for index in 0..self.connections.len() {
                if self.connections[index].asked.is_none() {
                    self.ask(index, now)?;
                }
            }
            return Ok(());
        };
        for index in 0..self.connections.len() {
            let due = self.begin + Duration::from_secs_f64(self.next as f64 / per_second);
            if due > now {
                break;
            }
            if self.connections[index].asked.is_none() {
                self.ask(index, due)?;
            }
        }
        Ok(())
    }

    fn ask(&mut self, index: usize, due: Instant) -> anyhow::Result<()> {
        let connection = &mut self.connections[index];
        connection.out.clear();
        (self.load.write)(self.next, &mut connection.out);
        self.next += 1;
        connection.asked = Some(due);
        let written = connection.stream.write(&connection.out)?;
        ensure!(written == connection.out.len(), "a small request did not fit the socket's buffer");
        Ok(())
    }

    /// Reads what has come; true: the answer is whole.
    fn read_answer(&mut self, index: usize, read: &mut [u8]) -> anyhow::Result<bool> {
        let connection = &mut self.connections[index];
        match connection.stream.read(read) {
            Ok(0) => bail!("the server closed a connection; so far: {}", String::from_utf8_lossy(&connection.buffer)),
            Ok(n) => connection.buffer.extend_from_slice(&read[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let Some(good) = whole_answer(self.load.protocol, &connection.buffer) else { return Ok(false) };
        if !good && self.outcome.errors == 0 {
            eprintln!("first failed answer: {}", String::from_utf8_lossy(&connection.buffer));
        }
        connection.buffer.clear();
        let now = Instant::now();
        let Some(asked) = connection.asked.take() else { bail!("an answer that nobody asked for") };
        self.answered += 1;
        if !good {
            self.outcome.errors += 1;
        } else if now >= self.counted_from {
            let took = now.saturating_duration_since(asked).as_micros();
            self.outcome.latencies_us.push(u32::try_from(took).unwrap_or(u32::MAX));
        }
        Ok(true)
    }
}

/// Some when the answer is whole: whether it was a success.
fn whole_answer(protocol: Protocol, bytes: &[u8]) -> Option<bool> {
    match protocol {
        Protocol::Http => whole_http(bytes),
        Protocol::Resp => whole_resp(bytes),
    }
}

fn whole_http(bytes: &[u8]) -> Option<bool> {
    let head_end = find(bytes, b"\r\n\r\n")? + 4;
    let good = bytes.starts_with(b"HTTP/1.1 200");
    let head = &bytes[..head_end];
    if let Some(length) = content_length(head) {
        return (bytes.len() >= head_end + length).then_some(good);
    }
    // Without a length the body is chunked (etcd's gateway) or absent.
    let chunked = find(head, b"chunked").is_some();
    (!chunked || bytes.ends_with(b"0\r\n\r\n")).then_some(good)
}

fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length: ";
    let at = head.windows(NAME.len()).position(|w| w.eq_ignore_ascii_case(NAME))? + NAME.len();
    let digits = head[at..].iter().take_while(|b| b.is_ascii_digit());
    Some(digits.fold(0, |n, b| n * 10 + usize::from(b - b'0')))
}

fn whole_resp(bytes: &[u8]) -> Option<bool> {
    let line_end = find(bytes, b"\r\n")? + 2;
    if bytes[0] != b'$' || bytes.starts_with(b"$-1") {
        return Some(bytes[0] != b'-');
    }
    let length: usize = std::str::from_utf8(&bytes[1..line_end - 2]).ok()?.parse().ok()?;
    (bytes.len() >= line_end + length + 2).then_some(true)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}
