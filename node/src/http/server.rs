//! The client port: accepts connections, bounds them in number and time, and hands each request to a
//! service. Knows HTTP/1.1 and nothing of routes. Heads that are no request, hyper answers by itself (400, 414, 431,
//! without a body); it has no place where another answer could be given. Called by [`super::serve`] and by the benchmark's
//! bare route, so that both stand behind the same connection handling.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

/// Most client connections at once; later ones wait in the kernel's backlog until one ends.
pub const CONNECTIONS_MAX: usize = 4096;

/// The read buffer of a connection: a head of this length is taken. hyper looks at the limit before it reads more, so that
/// some that are longer, up to twice this, are taken, too.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// After a failed accept (no file descriptors left, most likely) nothing is accepted for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a client may take over the parts of a request.
#[derive(Debug, Clone, Copy)]
pub struct ClientTimeouts {
    /// From the end of one request (or the connection's start) to the end of the next head: the
    /// keep-alive time-out, too.
    pub head: Duration,
    /// From the head to the end of the body.
    pub body: Duration,
    /// What connections have to finish in after the stop.
    pub drain: Duration,
}

impl Default for ClientTimeouts {
    fn default() -> Self {
        Self { head: Duration::from_secs(30), body: Duration::from_secs(30), drain: Duration::from_secs(10) }
    }
}

/// Accepts until `stop` is cancelled, then lets the requests in flight finish, bounded by
/// [`ClientTimeouts::drain`]. Dropping the future leaves the open connections running.
pub async fn run<S>(listener: TcpListener, service: S, timeouts: ClientTimeouts, stop: CancellationToken)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    while let Some((stream, permit)) = next_connection(&listener, &room, &stop).await {
        let (service, stop) = (service.clone(), stop.clone());
        connections.spawn(async move {
            serve_connection(stream, service, timeouts, stop).await;
            drop(permit);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(timeouts.drain, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "client connections did not finish in time and are cut off");
    }
}

/// The next connection, once there is room for it; None: stopped.
async fn next_connection(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let accept = async {
        let permit = Arc::clone(room).acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return (stream, permit),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        accepted = accept => Some(accepted),
    }
}

async fn serve_connection<S>(stream: TcpStream, service: S, timeouts: ClientTimeouts, stop: CancellationToken)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    tune(&stream, timeouts);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut service = service.clone();
        service.call(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.head)
        .max_buf_size(HEAD_BYTES_MAX)
        .half_close(true) // and not pipeline_flush, which buffers a streamed body without bound
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client connection ended early");
    }
}

/// An answer is one write, and waiting for more would only delay it. A client that takes nothing of
/// an answer, or whose machine is gone, is cut off by the kernel. Failing to set any of it harms nobody else.
fn tune(stream: &TcpStream, timeouts: ClientTimeouts) {
    stream.set_nodelay(true).ok();
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new().with_time(timeouts.head);
    socket.set_tcp_keepalive(&keepalive).ok();
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(timeouts.body)).ok();
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;

    const SHORT: ClientTimeouts = ClientTimeouts {
        head: Duration::from_millis(50),
        body: Duration::from_millis(50),
        drain: Duration::from_secs(5),
    };

    async fn start(timeouts: ClientTimeouts, stop: CancellationToken) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let echo = |path: axum::http::Uri| async move { path.path().to_owned() };
        let router = axum::Router::new().fallback(echo);
        (address, tokio::spawn(run(listener, router, timeouts, stop)))
    }

    /// Sends, then reads until the server closes the connection.
    async fn converse(address: SocketAddr, sent: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut received = String::new();
        stream.read_to_string(&mut received).await.unwrap();
        received
    }

    #[tokio::test]
    async fn pipelined_requests_are_answered_in_order() {
        let (address, _server) = start(ClientTimeouts::default(), CancellationToken::new()).await;
        let requests = "GET /1 HTTP/1.1\r\nhost: x\r\n\r\nGET /2 HTTP/1.1\r\nhost: x\r\n\r\n\
            GET /3 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let received = converse(address, requests).await;
        let at = |body: &str| received.find(body).unwrap();
        assert_eq!(received.matches("200 OK").count(), 3);
        assert!(at("\r\n\r\n/1") < at("\r\n\r\n/2") && at("\r\n\r\n/2") < at("\r\n\r\n/3"));
    }

    #[tokio::test]
    async fn a_client_that_never_ends_its_request_is_cut_off() {
        let (address, _server) = start(SHORT, CancellationToken::new()).await;
        for begun in ["", "GET / HT", "GET / HTTP/1.1\r\nhost:"] {
            let received = converse(address, begun).await;
            assert!(received.is_empty() || received.starts_with("HTTP/1.1 408"), "{received}");
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_client_that_takes_nothing_of_its_answer_is_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let dropped = CancellationToken::new();
        let held = Arc::new(dropped.clone().drop_guard());
        let endless = move || {
            let held = Arc::clone(&held);
            let chunk = move || {
                let _held = &held;
                Ok::<_, std::io::Error>(axum::body::Bytes::from_static(&[b'x'; 65536]))
            };
            std::future::ready(Body::from_stream(futures::stream::repeat_with(chunk)))
        };
        let router = axum::Router::new().fallback(endless);
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            serve_connection(stream, router, SHORT, CancellationToken::new()).await;
        });
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        tokio::time::timeout(Duration::from_secs(20), server).await.expect("cut off").unwrap();
        assert!(dropped.is_cancelled());
    }

    #[tokio::test]
    async fn the_stop_closes_idle_connections_and_ends_the_server() {
        let stop = CancellationToken::new();
        let (address, server) = start(ClientTimeouts::default(), stop.clone()).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        idle.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(4), server).await.unwrap().unwrap();
        let mut rest = Vec::new();
        idle.read_to_end(&mut rest).await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
