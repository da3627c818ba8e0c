//! The client of the API server: its requests are counted, and none is waited for without end. A connection may
//! fall silent without being closed, and would hold up a reconcile, or a watch, until somebody notices. Called
//! by the program alone; decides nothing about what is asked.

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
    config.read_timeout = Some(SILENCE_MAX);
    let builder = ClientBuilder::try_from(config)?;
    Ok(builder.with_layer(&TimeoutLayer::new(answer_max)).with_layer(&metrics.counts_requests()).build())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use k8s_openapi::api::core::v1::Pod;
    use kube::Api;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_falls_silent_is_given_up() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = Config::new(format!("http://{}", silent.local_addr().unwrap()).parse().unwrap());
        let client = patient(config, &Metrics::default(), Duration::from_millis(50)).unwrap();
        let pods: Api<Pod> = Api::namespaced(client, "apps");
        let asked = tokio::time::timeout(Duration::from_secs(20), pods.get("demo-0"));
        assert!(asked.await.expect("it is given up").is_err());
    }
}
