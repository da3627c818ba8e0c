//! `kv-e2e-client`: what the suite runs in pods. `load` is the client of a cluster, steered over HTTP;
//! `signal` sends a signal to the processes of a pod on the same host; `copy` copies a volume. Knows no Kubernetes.
//!
//! Reading order: `worker` (what is asked), `window` (what is counted), `verdict` (what must be true at
//! the end), `server` (how the suite steers it); `signal` and `copy` stand alone.

mod copy;
mod server;
mod signal;
mod verdict;
mod window;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(about = "The part of the end-to-end suite that runs in pods")]
enum Command {
    /// Writes and reads until it is told to finish
    Load {
        /// The Service of the cluster
        #[arg(long)]
        url: String,
        /// How many nodes it leads to when the work begins
        #[arg(long)]
        nodes: usize,
        /// Where the suite steers it
        #[arg(long, default_value = "0.0.0.0:8080")]
        listen: SocketAddr,
        /// Chooses what is asked, and keeps the keys of two clients apart
        #[arg(long)]
        seed: u64,
    },
    /// Sends a signal to every process of a pod on this host that runs this program
    Signal {
        #[arg(long, value_enum)]
        signal: signal::Sent,
        #[arg(long)]
        pod_uid: String,
        #[arg(long)]
        program: String,
        #[arg(long, default_value_t = 0)]
        after_seconds: u64,
    },
    /// Makes a directory a copy of another one
    Copy {
        #[arg(long)]
        from: PathBuf,
        #[arg(long)]
        to: PathBuf,
    },
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Load { url, nodes, listen, seed } => {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
            runtime.block_on(server::serve(listen, url, nodes, seed))
        }
        Command::Signal { signal, pod_uid, program, after_seconds } => {
            signal::send(signal, &pod_uid, &program, std::time::Duration::from_secs(after_seconds))
        }
        Command::Copy { from, to } => copy::copy(&from, &to),
    }
}
