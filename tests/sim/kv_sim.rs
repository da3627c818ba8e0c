//! `kv-sim`: runs the simulation, many seeds or one, and names each seed that broke a promise. Run it with
//! `cargo run --release -p kv-tests --bin kv-sim -- --seeds 1000`; `--seed 7 --trace` plays one again.

mod mutants;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use kv_tests::sim::{Next, Options, Outcome, Profile, Total, run, run_many};

/// A run of so many seeds has reached every fault and rare path, or it proves less than it seems to.
const REACH_ALL_SEEDS_MIN: u64 = 200;

#[derive(Parser)]
#[command(
    about = "Simulates clusters of kvcluster under faults; the exit status is 1 when a promise breaks, or when 200 seeds and more have not come to every fault, or left too many histories undecided"
)]
struct Arguments {
    /// Seeds to run
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Run this one alone, and print the hash of its trace
    #[arg(long)]
    seed: Option<u64>,
    /// Print what happens in a seed as it happens
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Steps of each seed while things go wrong: of replicas, and calls to disks
    #[arg(long, default_value_t = Options::default().steps)]
    steps: u64,
    /// Run seed after seed for this long instead of a number of seeds
    #[arg(long)]
    minutes: Option<f64>,
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    threads: usize,
    /// Break one rule after the other, and print which seed notices; the exit status is 1 when one survives
    #[arg(long)]
    mutants: bool,
    /// Also small windows, bits that flip in the active segment, names that others ask for
    #[arg(long)]
    tight: bool,
    /// Only mutants with this in their names
    #[arg(long, requires = "mutants")]
    only: Option<String>,
    /// Print how often everything was reached
    #[arg(long)]
    coverage: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let profile = if arguments.tight || arguments.mutants { Profile::Tight } else { Profile::Usual };
    let options = Options { steps: arguments.steps, tells: arguments.trace, profile };
    if arguments.mutants {
        let Arguments { first, seeds, ref only, threads, .. } = arguments;
        return mutants::mutants(first, seeds, only.as_deref(), &options, threads);
    }
    match arguments.seed {
        Some(seed) => one(seed, &options),
        None => many(&arguments, &options),
    }
}

fn one(seed: u64, options: &Options) -> ExitCode {
    let begun = Instant::now();
    let outcome = run(seed, options);
    let seconds = begun.elapsed().as_secs_f64();
    println!("seed {seed}: {} steps in {seconds:.2} s, trace {:016x}", outcome.steps, outcome.trace_hash);
    verdict(std::slice::from_ref(&outcome))
}

fn many(arguments: &Arguments, options: &Options) -> ExitCode {
    let begun = Instant::now();
    let patience = arguments.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let end = patience.map_or(arguments.first + arguments.seeds, |_| u64::MAX);
    let total = run_many(arguments.first..end, options, arguments.threads, |outcome| {
        if let Some(broken) = &outcome.broken {
            println!("seed {}: {broken}", outcome.seed);
        }
        if patience.is_some_and(|patience| begun.elapsed() >= patience) { Next::Stop } else { Next::GoOn }
    });
    report(&total, begun.elapsed(), arguments.coverage);
    let never = total.coverage.never_in(options.profile);
    never.iter().for_each(|reached| println!("never reached: {reached}"));
    let undecided = total.coverage.too_many_undecided();
    undecided.iter().for_each(|undecided| println!("{undecided}"));
    if total.seeds >= REACH_ALL_SEEDS_MIN && !(never.is_empty() && undecided.is_none()) {
        return ExitCode::FAILURE;
    }
    verdict(&total.broken)
}

fn report(total: &Total, took: Duration, with_coverage: bool) {
    let per_minute = |n: u64| n as f64 * 60.0 / took.as_secs_f64();
    if with_coverage {
        print!("{}", total.coverage);
    }
    println!(
        "{} seeds, {} steps in {:.1} s: {:.0} seeds a minute, {:.0} steps a minute; {} broke a promise",
        total.seeds,
        total.steps,
        took.as_secs_f64(),
        per_minute(total.seeds),
        per_minute(total.steps),
        total.broken.len()
    );
}

fn verdict(outcomes: &[Outcome]) -> ExitCode {
    let broken: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.broken.is_some()).collect();
    for Outcome { seed, broken, .. } in &broken {
        println!("seed {seed} broke a promise: {}", broken.as_deref().unwrap_or_default());
    }
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
