//! The client of the API server: its requests are counted, and none is waited for without end. A connection may
//! fall silent without being closed, and would hold up a reconcile, or a watch, until somebody notices. What is
//! refused is not asked again here: an eviction has no room (429) until the next reconcile has made some. Called by
//! the program alone; decides nothing about what is asked.

use std::time::Duration;

use kube::client::ClientBuilder;
use kube::{Client, Config};
use tower::timeout::TimeoutLayer;

use crate::metrics::Metrics;

/// From a request to the head of its answer; a watch has its head at once, too.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Between two pieces of an answer: a watch without news is ended by the API server after 290 s, and begun anew.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// For all that the operator asks.
pub fn client(config: Config, metrics: &Metrics) -> kube::Result<Client> {
    patient(config, metrics, ANSWER_MAX)
}

fn patient(mut config: Config, metrics: &Metrics, answer_max: Duration) -> kube::Result<Client> {
    (config.read_timeout, config.default_retry) = (Some(SILENCE_MAX), false);
    let builder = ClientBuilder::try_from(config)?;
    Ok(builder.with_layer(&TimeoutLayer::new(answer_max)).with_layer(&metrics.counts_requests()).build())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use k8s_openapi::api::core::v1::Pod;
    use kube::Api;
    use kube::api::EvictParams;

    use super::*;

    fn pods_at(server: &TcpListener, answer_max: Duration) -> Api<Pod> {
        let config = Config::new(format!("http://{}", server.local_addr().unwrap()).parse().unwrap());
        Api::namespaced(patient(config, &Metrics::default(), answer_max).unwrap(), "apps")
    }

    #[tokio::test]
    async fn a_connection_that_falls_silent_is_given_up() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let pods = pods_at(&silent, Duration::from_millis(50));
        let asked = tokio::time::timeout(Duration::from_secs(20), pods.get("demo-0"));
        assert!(asked.await.expect("it is given up").is_err());
    }

    #[tokio::test]
    async fn an_eviction_that_has_no_room_is_not_tried_again_within_the_same_reconcile() {
        let full = TcpListener::bind("127.0.0.1:0").unwrap();
        let pods = pods_at(&full, Duration::from_secs(20));
        let refused_once = std::thread::spawn(move || {
            let (mut connection, _) = full.accept().unwrap();
            let mut head = [0; 4096];
            assert!(connection.read(&mut head).unwrap() > 0);
            let status = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","code":429,"message":"no room"}"#;
            let (length, retry) = (status.len(), "retry-after: 0\r\nconnection: close");
            let head = format!("HTTP/1.1 429 Too Many Requests\r\n{retry}\r\ncontent-length: {length}\r\n\r\n");
            connection.write_all((head + status).as_bytes()).unwrap();
        });
        let evicted = pods.evict("demo-0", &EvictParams::default()).await;
        refused_once.join().unwrap();
        // A second attempt would find nobody there.
        assert!(matches!(evicted, Err(kube::Error::Api(status)) if status.code == 429));
    }
}
