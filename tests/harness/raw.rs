//! A bare TCP connection, for what no HTTP client would send: halves of requests, garbage, silence.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The longest wait for bytes that are expected.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

pub struct RawClient {
    stream: TcpStream,
}

impl RawClient {
    pub(crate) async fn connect(host: Ipv4Addr, port: u16) -> Self {
        let stream = TcpStream::connect((host, port)).await.expect("the port is open");
        stream.set_nodelay(true).expect("a TCP option");
        Self { stream }
    }

    /// Sends what it can; a connection that the node closed meanwhile is no error here.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.ok();
    }

    /// Closes the sending half.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.ok();
    }

    /// Reads until the node closes the connection; panics when it does not.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let read = tokio::time::timeout(READ_TIMEOUT, self.stream.read_to_end(&mut out)).await;
        assert!(read.is_ok(), "the node keeps the connection open; so far: {}", String::from_utf8_lossy(&out));
        out
    }

    /// Reads until `count` answers with their bodies have come; fewer when the node closes.
    pub async fn read_answers(&mut self, count: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut part = [0; 4096];
        while heads(&out) < count || !ends_whole(&out) {
            match tokio::time::timeout(READ_TIMEOUT, self.stream.read(&mut part)).await {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(n)) => out.extend_from_slice(&part[..n]),
                Err(_) => panic!("{count} answers did not come; so far: {}", String::from_utf8_lossy(&out)),
            }
        }
        out
    }
}

/// How many answers begin in these bytes.
pub fn heads(bytes: &[u8]) -> usize {
    bytes.windows(9).filter(|w| *w == b"HTTP/1.1 ").count()
}

/// Whether the last answer is whole, by its content-length.
fn ends_whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some(last) = text.rfind("HTTP/1.1 ").map(|at| &text[at..]) else { return false };
    let Some((head, body)) = last.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_none_or(|length| body.len() >= length)
}
