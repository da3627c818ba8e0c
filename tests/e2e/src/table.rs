//! The one table at the end, and the lines below it. Prints; decides nothing.

use std::time::Duration;

use crate::scenario::Report;

/// How a scenario ended.
pub(crate) enum Ended {
    Passed(Report),
    Failed(String),
    /// The cluster cannot do what it needs.
    NotPossible(&'static str),
}

pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) seconds: u64,
    pub(crate) ended: Ended,
}

const HEADS: [&str; 8] =
    ["scenario", "result", "write pause", "worst worker", "errors", "acknowledged", "lost", "seconds"];

pub(crate) fn print(rows: &[Row], took: Duration) {
    println!("\n| {} |", HEADS.join(" | "));
    println!("|{}", "---|".repeat(HEADS.len()));
    for row in rows {
        println!("| {} |", cells(row).join(" | "));
    }
    println!("\n{} scenarios in {} s\n", rows.len(), took.as_secs());
    for row in rows {
        match &row.ended {
            Ended::Passed(report) => println!("{}: {}", row.name, told(report)),
            Ended::Failed(why) => println!("{}: FAILED: {why}", row.name),
            Ended::NotPossible(why) => println!("{}: not tried: {why}", row.name),
        }
    }
}

fn cells(row: &Row) -> [String; 8] {
    let empty = || "-".to_owned();
    let [name, seconds] = [row.name.to_owned(), row.seconds.to_string()];
    match &row.ended {
        Ended::Failed(_) => [name, "FAILED".into(), empty(), empty(), empty(), empty(), empty(), seconds],
        Ended::NotPossible(_) => [name, "not possible".into(), empty(), empty(), empty(), empty(), empty(), seconds],
        Ended::Passed(report) => {
            let over = if report.over_target { "over target" } else { "passed" };
            let pause = report.pause_ms.map_or_else(empty, |pause| format!("{pause} ms"));
            let worst = report.pause_ms.map_or_else(empty, |_| format!("{} ms", report.worst_worker_ms));
            let errors: u64 = report.failures.values().sum();
            let [acknowledged, lost] = [report.acknowledged, report.lost].map(|count| count.to_string());
            [name, over.into(), pause, worst, errors.to_string(), acknowledged, lost, seconds]
        }
    }
}

fn told(report: &Report) -> String {
    let failures: Vec<String> = report.failures.iter().map(|(failure, count)| format!("{count} x {failure}")).collect();
    let mut told = report.notes.clone();
    if !failures.is_empty() {
        told.push(format!("errors: {}", failures.join(", ")));
    }
    if report.unhidden > 0 {
        told.push(format!("{} operations not answered within 0.5 s of their first failure", report.unhidden));
    }
    told.join("; ")
}
