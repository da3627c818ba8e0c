//! What grows with the data: recovery, memory, and compaction while writes go on.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::client::{Load, Outcome, Pace, Protocol};
use crate::process::{Server, ask};
use crate::table::{Table, Verdict};
use crate::{Plan, requests, servers, speed};

const RECOVERY_LINES_PER_SECOND: f64 = 600_000.0;
const RECOVERY_MB_PER_SECOND: f64 = 200.0;
const MILLION_KEYS_MB: f64 = 300.0;
const HISTORY_MB: f64 = 100.0;
const COMPACTION_MB_PER_SECOND: f64 = 30.0;
const P99_TIMES: f64 = 2.0;

/// Of the store whose memory must not grow with its history.
const HISTORY_KEYS: u64 = 1000;
const HISTORY_VERSIONS: u64 = 1000;
const HISTORY_VALUE_BYTES: usize = 1024;

/// Writes each second while a compaction runs: load, but not so much that the two cores are full
/// without the compaction.
const PACED_WRITES_PER_SECOND: f64 = 2000.0;

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn disk_bytes(dir: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("wal.log") {
            sum += entry.metadata()?.len();
        }
    }
    Ok(sum)
}

/// Starts the node on a filled directory again and again; the median time until it is ready, and its memory.
fn recover(plan: &Plan, dir: &Path, data_dir: &Path, args: &[&str]) -> anyhow::Result<(f64, u64)> {
    let (mut times, mut memory) = (Vec::new(), 0);
    for _ in 0..plan.rounds {
        let begin = Instant::now();
        let mut node = servers::node_starting(dir, data_dir, args)?;
        node.wait_ready()?;
        times.push(begin.elapsed().as_secs_f64());
        memory = memory.max(node.rss_bytes()?);
        node.stop()?;
    }
    Ok((speed::median(times), memory))
}

pub(crate) fn million_keys(plan: &Plan, dir: &Path, table: &mut Table) -> anyhow::Result<()> {
    let data_dir = dir.join("million");
    let keys = plan.million;
    let node = servers::node(dir, &data_dir, &[])?;
    speed::fill(&node, keys, 16, keys)?;
    let filled = node.rss_bytes()?;
    node.stop()?;
    let (seconds, memory) = recover(plan, dir, &data_dir, &[])?;
    let rate = keys as f64 / seconds;
    table.row(
        &format!("recovery, {keys} keys, 16-byte values"),
        format!("{rate:.0} lines/s ({seconds:.2} s from start to ready)"),
        ">= 600000 lines/s".to_owned(),
        Verdict::of(rate >= RECOVERY_LINES_PER_SECOND),
    );
    let worst = mb(filled.max(memory));
    table.row(
        &format!("memory, {keys} keys, 16-byte values"),
        format!("{:.0} MB after recovery, {:.0} MB after writing", mb(memory), mb(filled)),
        "<= 300 MB".to_owned(),
        Verdict::of(worst <= MILLION_KEYS_MB),
    );
    Ok(())
}

pub(crate) fn history(plan: &Plan, dir: &Path, table: &mut Table) -> anyhow::Result<()> {
    let data_dir = dir.join("history");
    let args = ["--history-limit", "1000"];
    let node = servers::node(dir, &data_dir, &args)?;
    speed::fill(&node, HISTORY_KEYS, HISTORY_VALUE_BYTES, HISTORY_KEYS * plan.versions)?;
    let filled = node.rss_bytes()?;
    node.stop()?;
    let bytes = disk_bytes(&data_dir)?;
    let (seconds, memory) = recover(plan, dir, &data_dir, &args)?;
    let rate = mb(bytes) / seconds;
    table.row(
        &format!("recovery, {:.0} MB, 1 KiB values", mb(bytes)),
        format!("{rate:.0} MB/s ({seconds:.2} s from start to ready)"),
        ">= 200 MB/s".to_owned(),
        Verdict::of(rate >= RECOVERY_MB_PER_SECOND),
    );
    let worst = mb(filled.max(memory));
    table.row(
        &format!("memory, 1000 keys x {} versions x 1 KiB", plan.versions),
        format!("{:.0} MB after recovery, {:.0} MB after writing", mb(memory), mb(filled)),
        "< 100 MB".to_owned(),
        Verdict::of(worst < HISTORY_MB),
    );
    compaction(plan, dir, &data_dir, &args, bytes, table)
}

/// Compacts what the history section wrote, with paced writes on all connections before and during.
fn compaction(
    plan: &Plan,
    dir: &Path,
    data_dir: &Path,
    args: &[&str],
    bytes: u64,
    table: &mut Table,
) -> anyhow::Result<()> {
    let node = servers::node(dir, data_dir, args)?;
    let before = paced(plan, &node, Duration::from_secs(8))?;
    let (during, seconds) = std::thread::scope(|scope| {
        let compacting = scope.spawn(|| compact(&node));
        let mut during = Vec::new();
        while !compacting.is_finished() {
            during.push(paced(plan, &node, Duration::from_secs(2))?);
        }
        let seconds = compacting.join().expect("the thread does not panic")?;
        anyhow::Ok((during, seconds))
    })?;
    let rate = mb(bytes) / seconds;
    table.row(
        &format!("compaction of {:.0} MB while writes go on", mb(bytes)),
        format!("{rate:.0} MB/s ({seconds:.1} s)"),
        ">= 30 MB/s".to_owned(),
        Verdict::of(rate >= COMPACTION_MB_PER_SECOND),
    );
    let (calm, busy) =
        (before.percentile_us(99.0) / 1e3, speed::median(during.iter().map(|o| o.percentile_us(99.0)).collect()) / 1e3);
    table.row(
        &format!("PUT p99 at {PACED_WRITES_PER_SECOND:.0}/s, compacting"),
        format!("{busy:.2} ms, {calm:.2} ms before"),
        format!("<= {:.2} ms (2 x)", P99_TIMES * calm),
        Verdict::of(busy <= P99_TIMES * calm),
    );
    Ok(())
}

fn paced(plan: &Plan, node: &Server, length: Duration) -> anyhow::Result<Outcome> {
    let write = requests::kv_put(node.address, requests::KEYS);
    let load =
        Load { addresses: &[node.address], connections: plan.connections, protocol: Protocol::Http, write: &write };
    let outcome = load.run(Pace::Rate(PACED_WRITES_PER_SECOND, length))?;
    ensure!(outcome.errors == 0, "{} writes failed", outcome.errors);
    Ok(outcome)
}

/// Runs a compaction to its end; seconds.
fn compact(node: &Server) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let (status, body) = ask(node.address, "POST", "/compaction/run?force=true", "")?;
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(status == 200 && body.contains("success"), "compaction answered {status} {body}");
    let (_, status) = ask(node.address, "GET", "/compaction/status", "")?;
    let status: serde_json::Value = serde_json::from_str(&status).context("/compaction/status")?;
    let reported = status["compaction_history"][0]["duration_seconds"].as_f64().unwrap_or_default();
    Ok(seconds.max(reported))
}

pub(crate) const VERSIONS: u64 = HISTORY_VERSIONS;
