//! The `kv-operator` program: arguments, log, run. The only place with exit codes.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use futures::FutureExt;
use kube::Client;
use kv_operator::check::{self, Check};
use kv_operator::controller::{self, Options};
use kv_operator::lease::{Claimant, Turns};
use kv_operator::metrics::Metrics;
use kv_operator::plan::Defaults;
use kv_operator::{api_server, crd, reference, server};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Makes KvCluster resources running groups of kv-node.
#[derive(Parser)]
#[command(name = "kv-operator", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Works until it is stopped.
    Run(RunFlags),
    /// Makes a cluster, writes and reads through it, and removes it: a test of the installation.
    Check(Check),
    /// Prints the CustomResourceDefinition.
    Crd,
    /// Prints docs/reference.md.
    Reference,
}

#[derive(clap::Args)]
struct RunFlags {
    /// The namespaces to watch, with commas between them; all when it is not set or empty.
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',')]
    watch_namespaces: Vec<String>,
    /// The image of nodes of a cluster that names none.
    #[arg(long, env = "NODE_IMAGE", default_value = concat!("kvcluster/kv-node:", env!("CARGO_PKG_VERSION")))]
    node_image: String,
    /// Secrets with which the image of a cluster that names none is pulled, with commas between them.
    #[arg(long, env = "NODE_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    node_image_pull_secrets: Vec<String>,
    /// Where metrics and probes are served.
    #[arg(long, env = "LISTEN_ADDR", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// The namespace of the Lease; the operator's own in a pod.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    lease_namespace: String,
    /// The name of this operator among several; its pod's.
    #[arg(long, env = "POD_NAME", default_value_t = format!("pid-{}", std::process::id()))]
    name: String,
    /// The ServiceAccount that the Lease goes with; a pod's own. None: it stays.
    #[arg(long, env = "POD_SERVICE_ACCOUNT")]
    service_account: Option<String>,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Crd => print(&crd::definition()),
        Command::Reference => print(&reference::reference()),
        Command::Run(flags) => until(run(flags)),
        Command::Check(check) => until(async { Ok(check::run(Client::try_default().await?, &check).await?) }),
    }
}

fn print(text: &str) -> ExitCode {
    print!("{text}");
    ExitCode::SUCCESS
}

fn until(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    log();
    let runtime = tokio::runtime::Runtime::new().expect("the system has threads and epoll");
    match runtime.block_on(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kv-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Text on a terminal, JSON elsewhere.
fn log() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.init();
    } else {
        builder.json().flatten_event(true).init();
    }
}

/// Whoever waits for the Lease watches nothing else: it costs the API server next to nothing. It ends at the first
/// signal, too, or it would take the Lease from an operator that is to stay, and hold it until it is killed.
async fn run(flags: RunFlags) -> anyhow::Result<()> {
    let RunFlags {
        watch_namespaces,
        node_image,
        node_image_pull_secrets,
        listen,
        lease_namespace,
        name,
        service_account,
    } = flags;
    let asked_to_end = asked_to_end()?.shared();
    let metrics = Arc::new(Metrics::default());
    let client = api_server::client(kube::Config::infer().await?, &metrics)?;
    let defaults = Defaults { image: node_image, pull_secrets: names(node_image_pull_secrets) };
    let options = Options { namespaces: names(watch_namespaces), defaults };
    let watched = controller::watched(&client, &options);
    let clusters = watched.iter().map(|watched| watched.clusters.clone()).collect();
    let mut turns = Turns::new(client.clone(), &lease_namespace, Claimant { name, service_account });
    let work = async {
        tokio::select! {
            () = turns.acquire() => {}
            () = asked_to_end.clone() => return Ok(()),
        }
        tracing::info!("this operator works from now on");
        metrics.hold_lease();
        tokio::select! {
            () = controller::run(&client, watched, &metrics, &options, asked_to_end.clone()) => Ok(()),
            () = turns.hold() => Err(anyhow::anyhow!("the Lease was lost")),
        }
    };
    let ended = tokio::select! {
        ended = work => ended,
        served = server::serve(listen, Arc::clone(&metrics), clusters) => served.map_err(anyhow::Error::from),
    };
    turns.release().await;
    ended
}

/// Ends when the process is asked to end; a signal that comes after this call is not missed.
fn asked_to_end() -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// A list as people write it: with spaces, twice the same, or nothing between two commas.
fn names(list: Vec<String>) -> Vec<String> {
    let names = list.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).map(str::to_owned);
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespaces(arguments: &[&str]) -> Vec<String> {
        let arguments = ["kv-operator", "run"].iter().chain(arguments);
        let Command::Run(flags) = Cli::try_parse_from(arguments).unwrap().command else { panic!() };
        names(flags.watch_namespaces)
    }

    #[test]
    fn namespaces_are_a_list_and_none_means_all() {
        assert_eq!(namespaces(&["--watch-namespaces", "b, a,,b"]), ["a", "b"]);
        assert_eq!(namespaces(&["--watch-namespaces", ""]), [""; 0]);
        assert_eq!(namespaces(&[]), [""; 0]);
    }
}
