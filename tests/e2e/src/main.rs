//! `kv-e2e`: the end-to-end suite, against the cluster whose kubeconfig it is given. It installs the chart as
//! the README says, runs scenarios one after the other, each with a KvCluster, a namespace and a client pod of
//! its own, and prints one table. `tests/e2e/run` builds the images, picks the cluster and calls it.
//!
//! Reading order: `scenario` (what is tried), `scenarios` (how), `trial` (a cluster under load), `store` and
//! `load` (its two halves), `faults` (what breaks), `copies` (of volumes), `kept` (keys of the suite's own), `guard`
//! (whose cluster it is), `kube` (how all of it is reached), `table`.

mod copies;
mod extremes;
mod faults;
mod guard;
mod kept;
mod kube;
mod load;
mod operator;
mod scenario;
mod scenarios;
mod store;
mod suite;
mod table;
mod trial;
mod waiting;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::faults::Machine;
use crate::scenario::Set;

#[derive(Parser)]
#[command(about = "Tries a KvCluster on a real Kubernetes, under load; see tests/e2e/run")]
pub(crate) struct Arguments {
    /// Its current context is the cluster to use
    #[arg(long)]
    kubeconfig: PathBuf,
    /// What the cluster runs on: decides how its nodes are broken
    #[arg(long, value_enum)]
    machine: Machine,
    /// With `bare`: the tool that breaks nodes; with `kind`: the name of the cluster
    #[arg(long, default_value = "")]
    tool: String,
    /// The version under which the images were loaded a second time
    #[arg(long)]
    next_version: String,
    #[arg(long, value_enum, default_value = "ci")]
    set: Set,
    /// Where the evidence of what failed is kept
    #[arg(long)]
    evidence: PathBuf,
    /// Print the names of all scenarios
    #[arg(long)]
    list: bool,
    /// Only these, of any set
    scenarios: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        scenario::all().iter().for_each(|scenario| println!("{:<24} {}", scenario.name, scenario.about));
        return ExitCode::SUCCESS;
    }
    // A scenario fails by a panic: what and where is all that is wanted of it.
    std::panic::set_hook(Box::new(|info| eprintln!("  {info}")));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(suite::run(arguments))
}
