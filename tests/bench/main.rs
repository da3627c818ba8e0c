//! `kv-bench`: measures the whole node and prints one table: PUT, GET, three nodes, recovery, memory and
//! compaction, beside a bare axum route, Redis and etcd in the same run. Build and run it with
//! `cargo run --release -p kv-tests --bin kv-bench -- [--only put,get] [--seconds 5] [--dir DIR]`.
//! Servers are processes of their own on loopback addresses; data is written below `--dir`, on a disk.

mod bare;
mod client;
mod disk;
mod process;
mod requests;
mod servers;
mod speed;
mod table;
mod volume;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::table::Table;

#[derive(Parser)]
#[command(about = "Measures kv-node beside a bare route, Redis and etcd, and prints one table")]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Sections to measure; all when absent
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Section>,
    /// Seconds of one round of one server
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Rounds; what is compared takes turns, and medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Client connections
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Keys of the recovery and memory section
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Versions of each of the 1000 keys of the history section (1 KiB each)
    #[arg(long, default_value_t = volume::VERSIONS)]
    versions: u64,
    /// Where data is written: on a disk
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
}

#[derive(Subcommand)]
enum Role {
    /// Serves the bare route (started by the benchmark itself)
    Bare {
        #[arg(long)]
        listen: SocketAddr,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    Put,
    Three,
    Get,
    One,
    /// Recovery and memory with a million keys
    Keys,
    /// Recovery, memory and compaction with a gigabyte of versions
    History,
}

const SECTIONS: [Section; 6] =
    [Section::Put, Section::Three, Section::Get, Section::One, Section::Keys, Section::History];

/// How much is measured.
#[derive(Clone, Copy)]
struct Plan {
    rounds: usize,
    round_length: Duration,
    connections: usize,
    million: u64,
    versions: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(Role::Bare { listen }) = arguments.role {
        return tokio::runtime::Runtime::new()?.block_on(bare::serve(listen));
    }
    std::fs::create_dir_all(&arguments.dir)?;
    disk::refuse_memory(&arguments.dir)?;
    let plan = Plan {
        rounds: arguments.rounds.max(1),
        round_length: Duration::from_secs_f64(arguments.seconds),
        connections: arguments.connections,
        million: arguments.keys,
        versions: arguments.versions,
    };
    let mut table = Table::default();
    describe(&arguments, &mut table);
    for section in SECTIONS {
        if arguments.only.is_empty() || arguments.only.contains(&section) {
            let dir = tempfile::Builder::new().prefix("run-").tempdir_in(&arguments.dir)?;
            measure(section, &plan, dir.path(), &mut table)?;
        }
    }
    println!("{table}");
    Ok(())
}

fn measure(section: Section, plan: &Plan, dir: &Path, table: &mut Table) -> anyhow::Result<()> {
    match section {
        Section::Put => speed::put(plan, dir, table),
        Section::Three => speed::three(plan, dir, table),
        Section::Get => speed::get(plan, dir, table),
        Section::One => speed::one_client(plan, dir, table),
        Section::Keys => volume::million_keys(plan, dir, table),
        Section::History => volume::history(plan, dir, table),
    }
}

/// What the numbers were measured with.
fn describe(arguments: &Arguments, table: &mut Table) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    table.note(format!(
        "{cores} cores, {} connections, {} rounds of {} s, medians; data in {}",
        arguments.connections,
        arguments.rounds,
        arguments.seconds,
        arguments.dir.display()
    ));
    if cfg!(debug_assertions) {
        table.note("A DEBUG BUILD: these numbers say nothing".to_owned());
    }
    for (name, program) in [("redis", servers::redis_program()), ("etcd", servers::etcd_program())] {
        let version = program.map_or_else(|| "absent".to_owned(), |p| servers::version(&p));
        table.note(format!("{name}: {version}"));
    }
    table.note(String::new());
}
