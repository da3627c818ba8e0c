//! `kv-chaos`: real `kv-node serve` processes under kill -9, SIGSTOP, a bad network, full disks, lost
//! volumes, membership changes and restarts, with clients whose every answer is checked afterwards.
//! `kv-chaos --seconds 60 --seed 7` prints what it did and the verdict; exit status 1 when a promise
//! broke, and then the data directories, the logs and the history are kept.
//!
//! Reading order: `run`, `faults`, `client`, `verdict`; `group`, `director` and `dice` serve them.

mod client;
mod dice;
mod director;
mod faults;
mod group;
mod run;
mod verdict;

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use kv_tests::history::{Operation, read_json_lines, write_json_lines};

use crate::client::Field;
use crate::faults::Plan;
use crate::run::Report;

#[derive(Parser)]
#[command(about = "Tries to break a group of real kv-node processes, and checks all that clients saw")]
struct Arguments {
    /// How long faults are made
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Make each fault that takes little time once, instead of faults for a time
    #[arg(long)]
    quick: bool,
    /// Chooses the faults and what clients do, and every fourth one manual failover; drawn from the clock when absent
    #[arg(long)]
    seed: Option<u64>,
    /// Only judge this history again, as an earlier run kept it
    #[arg(long)]
    history: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(path) = &arguments.history {
        return judge_again(path);
    }
    let seed = arguments.seed.unwrap_or_else(from_clock);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let plan = if arguments.quick { Plan::EachQuick } else { Plan::For(Duration::from_secs(arguments.seconds)) };
    runtime.block_on(chaos(seed, plan))
}

fn from_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn judge_again(path: &Path) -> ExitCode {
    let file = File::open(path).expect("the history can be read");
    let operations = read_json_lines(std::io::BufReader::new(file)).expect("the history is JSON lines");
    let wrong = judged(&operations);
    wrong.iter().for_each(|what| println!("WRONG: {what}"));
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn chaos(seed: u64, plan: Plan) -> ExitCode {
    println!("seed {seed}, {plan:?}");
    let group = run::start(seed).await;
    let dir = group.cluster.site.dir().to_path_buf();
    let field = Arc::new(run::field(&group));
    // A task of its own: what panics there is a verdict, too.
    let ended = tokio::spawn(run::run(group, Arc::clone(&field), seed, plan)).await;
    let mut wrong = match ended {
        Ok(report) => summarise(report),
        Err(error) => vec![format!("the group did not get on: {error}")],
    };
    let operations = field.caller.recorder.operations();
    println!("calls: {:?}", verdict::outcomes(&operations));
    wrong.extend(judged(&operations));
    if wrong.is_empty() {
        println!("seed {seed}: every promise held");
        std::fs::remove_dir_all(&dir).ok();
        return ExitCode::SUCCESS;
    }
    wrong.iter().for_each(|what| println!("WRONG: {what}"));
    keep(&dir, &field);
    println!("seed {seed}: {} found; data, logs and history are in {}", wrong.len(), dir.display());
    ExitCode::FAILURE
}

fn summarise(report: Report) -> Vec<String> {
    let Report { voters, failover, disk, faults, writers_acknowledged, wrong } = report;
    println!("{voters} voters, {failover} failover; full disks by {disk}");
    println!("faults: {faults:?}");
    println!("writes of keys of their own, acknowledged and found on every node: {writers_acknowledged}");
    wrong
}

fn judged(operations: &[Operation]) -> Vec<String> {
    match verdict::judge(operations) {
        Ok(checked) => {
            println!("history: {checked:?}");
            Vec::new()
        }
        Err(failure) => vec![failure.to_string()],
    }
}

fn keep(dir: &Path, field: &Field) {
    let file = File::create(dir.join("history.jsonl")).expect("the site is writable");
    write_json_lines(&field.caller.recorder.operations(), BufWriter::new(file)).expect("the site is writable");
}
