//! `kv-sim --mutants`: the table of which seed catches which broken rule, and by which promise.

use std::process::ExitCode;
use std::time::Instant;

use kv_core::mutant::Mutant;
use kv_tests::sim::{Hunt, Options, hunt, hunt_all, recorded};

/// Of a promise's text, in the table.
const PROMISE_CHARS: usize = 150;

/// Tries the recorded seed, then searches from the first on. `only`: a part of a mutant's name.
pub(crate) fn mutants(first: u64, seeds: u64, only: Option<&str>, options: &Options, threads: usize) -> ExitCode {
    let begun = Instant::now();
    let wanted = |mutant: &Mutant| only.is_none_or(|only| mutant.name().contains(only));
    let mutants: Vec<Mutant> = Mutant::ALL.iter().copied().filter(wanted).collect();
    println!("{:<34} {:>6} {:>5} {:>7} {:>8}  caught by", "rule broken", "seed", "seeds", "steps", "times");
    let recorded = recorded();
    let search = |mutant: Mutant| {
        let known = recorded.get(mutant.name()).copied();
        hunt(mutant, known.into_iter().chain(first..first + seeds), options)
    };
    let hunts = hunt_all(&mutants, threads, search, print);
    let survivors: Vec<&Hunt> = hunts.iter().filter(|hunt| hunt.caught.is_none()).collect();
    println!("{} of {} caught in {:.0} s", hunts.len() - survivors.len(), hunts.len(), begun.elapsed().as_secs_f64());
    for Hunt { mutant, times, .. } in &survivors {
        println!("survives, broken {times} times: {} ({})", mutant.name(), mutant.rule());
    }
    if survivors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(hunt: &Hunt) {
    let Hunt { mutant, seeds, void: _, times, caught } = hunt;
    let name = mutant.name();
    match caught {
        Some(caught) => {
            let promise: String =
                caught.promise.split('\n').next().unwrap_or_default().chars().take(PROMISE_CHARS).collect();
            println!("{name:<34} {:>6} {seeds:>5} {:>7} {times:>8}  {promise}", caught.seed, caught.steps);
        }
        None => println!("{name:<34} {:>6} {seeds:>5} {:>7} {times:>8}  NOBODY", "-", "-"),
    }
}
