//! PUT and GET: one node, three nodes, one client, beside the bare route, Redis and etcd. Everything
//! that is compared runs in turns, and the medians of the rounds are compared.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::client::{Load, Outcome, Pace, Protocol, WriteRequest};
use crate::process::Server;
use crate::table::{Table, Verdict};
use crate::{Plan, disk, requests, servers};

/// Of a bare PUT route.
const PUT_SHARE: f64 = 0.55;
/// Of what one group commit after the other could reach.
const GROUP_COMMIT_SHARE: f64 = 0.7;
/// Of a bare GET route.
const GET_SHARE: f64 = 0.85;
/// Times etcd's throughput.
const ETCD_TIMES: f64 = 5.0;
/// Of etcd's p99.
const ETCD_P99_SHARE: f64 = 0.5;
/// Over one fdatasync, in microseconds.
const ONE_CLIENT_OVERHEAD_US: f64 = 200.0;

/// One server's rounds.
struct Contestant<'a> {
    address: SocketAddr,
    protocol: Protocol,
    write: WriteRequest<'a>,
    rounds: Vec<Outcome>,
}

impl<'a> Contestant<'a> {
    fn new(address: SocketAddr, protocol: Protocol, write: WriteRequest<'a>) -> Self {
        Self { address, protocol, write, rounds: Vec::new() }
    }

    fn round(&mut self, connections: usize, length: Duration) -> anyhow::Result<()> {
        let load = Load { addresses: &[self.address], connections, protocol: self.protocol, write: self.write };
        self.rounds.push(load.run(Pace::Closed(length))?);
        Ok(())
    }

    fn median(&self, of: impl Fn(&Outcome) -> f64) -> f64 {
        median(self.rounds.iter().map(of).collect())
    }

    fn per_second(&self) -> f64 {
        self.median(|o| o.per_second)
    }

    fn show(&self) -> String {
        let (p50, p99) = (self.median(|o| o.percentile_us(50.0)), self.median(|o| o.percentile_us(99.0)));
        let errors: u64 = self.rounds.iter().map(|o| o.errors).sum();
        let failed = if errors > 0 { format!(", {errors} FAILED") } else { String::new() };
        format!("{:.0}/s, p50 {:.2} ms, p99 {:.2} ms{failed}", self.per_second(), p50 / 1e3, p99 / 1e3)
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs all in turns.
fn rounds(plan: &Plan, connections: usize, contestants: &mut [&mut Contestant<'_>]) -> anyhow::Result<()> {
    for _ in 0..plan.rounds {
        for contestant in &mut *contestants {
            contestant.round(connections, plan.round_length)?;
        }
    }
    Ok(())
}

pub(crate) fn put(plan: &Plan, dir: &Path, table: &mut Table) -> anyhow::Result<()> {
    let bare = servers::bare(dir)?;
    let node = servers::node(dir, &dir.join("put"), &[])?;
    let redis = servers::redis_program().map(|program| servers::redis(&program, dir)).transpose()?;
    let (bare_put, kv_put) =
        (requests::kv_put(bare.address, requests::KEYS), requests::kv_put(node.address, requests::KEYS));
    let mut bare = Contestant::new(bare.address, Protocol::Http, &bare_put);
    let mut kv = Contestant::new(node.address, Protocol::Http, &kv_put);
    let mut rival = redis.as_ref().map(|r| Contestant::new(r.address, Protocol::Resp, &requests::redis_set));
    let mut syncs = Vec::new();
    for _ in 0..plan.rounds {
        syncs.push(disk::fdatasync_median(dir, plan.round_length / 5)?.as_secs_f64());
        let mut all: Vec<&mut Contestant<'_>> = vec![&mut bare, &mut kv];
        all.extend(rival.as_mut());
        rounds(&Plan { rounds: 1, ..*plan }, plan.connections, &mut all)?;
    }
    let (f, bare_rate) = (median(syncs), bare.per_second());
    let connections = plan.connections as f64;
    let group_commit = GROUP_COMMIT_SHARE * connections / (f + connections / bare_rate);
    let target = (PUT_SHARE * bare_rate).min(group_commit);
    table.information("f: one fdatasync, median", format!("{:.3} ms", f * 1e3));
    table.information("bare axum PUT", bare.show());
    table.row(
        "PUT, one node",
        format!("{} = {:.2} x bare", kv.show(), kv.per_second() / bare_rate),
        format!(
            ">= {target:.0}/s (0.55 x bare = {:.0}, 0.7 x 64/(f + 64/bare) = {group_commit:.0})",
            PUT_SHARE * bare_rate
        ),
        Verdict::of(kv.per_second() >= target),
    );
    match rival {
        Some(rival) => table.information("Redis SET, appendfsync always", rival.show()),
        None => table.not_measured("Redis SET, appendfsync always", "no redis-server on the path (REDIS_BIN)"),
    }
    Ok(())
}

pub(crate) fn get(plan: &Plan, dir: &Path, table: &mut Table) -> anyhow::Result<()> {
    let bare = servers::bare(dir)?;
    let node = servers::node(dir, &dir.join("get"), &[])?;
    fill(&node, requests::KEYS, 16, requests::KEYS)?;
    let redis = servers::redis_program().map(|program| servers::redis(&program, dir)).transpose()?;
    let (bare_get, kv_get) =
        (requests::kv_get(bare.address, requests::KEYS), requests::kv_get(node.address, requests::KEYS));
    let mut bare = Contestant::new(bare.address, Protocol::Http, &bare_get);
    let mut kv = Contestant::new(node.address, Protocol::Http, &kv_get);
    let mut rival = redis.as_ref().map(|r| Contestant::new(r.address, Protocol::Resp, &requests::redis_get));
    let mut all: Vec<&mut Contestant<'_>> = vec![&mut bare, &mut kv];
    all.extend(rival.as_mut());
    rounds(plan, plan.connections, &mut all)?;
    let target = GET_SHARE * bare.per_second();
    table.information("bare axum GET", bare.show());
    table.row(
        "GET, one node",
        format!("{} = {:.2} x bare", kv.show(), kv.per_second() / bare.per_second()),
        format!(">= {target:.0}/s (0.85 x bare)"),
        Verdict::of(kv.per_second() >= target),
    );
    if let Some(rival) = rival {
        table.information("Redis GET", rival.show());
    }
    Ok(())
}

pub(crate) fn one_client(plan: &Plan, dir: &Path, table: &mut Table) -> anyhow::Result<()> {
    let node = servers::node(dir, &dir.join("one"), &[])?;
    let kv_put = requests::kv_put(node.address, requests::KEYS);
    let mut kv = Contestant::new(node.address, Protocol::Http, &kv_put);
    let mut syncs = Vec::new();
    for _ in 0..plan.rounds {
        syncs.push(disk::fdatasync_median(dir, plan.round_length)?.as_secs_f64() * 1e6);
        kv.round(1, plan.round_length)?;
    }
    let (f, took) = (median(syncs), kv.median(|o| o.percentile_us(50.0)));
    table.row(
        "PUT, one node, one client",
        format!("median {:.3} ms, f {:.3} ms", took / 1e3, f / 1e3),
        format!("<= {:.3} ms (f + 0.2 ms)", (f + ONE_CLIENT_OVERHEAD_US) / 1e3),
        Verdict::of(took <= f + ONE_CLIENT_OVERHEAD_US),
    );
    Ok(())
}

pub(crate) fn three(plan: &Plan, dir: &Path, table: &mut Table) -> anyhow::Result<()> {
    let nodes = servers::three_nodes(dir)?;
    let rivals = servers::etcd_program().map(|program| servers::three_etcds(&program, dir)).transpose()?;
    let leader = nodes[0].address;
    let kv_put = requests::kv_put(leader, requests::KEYS);
    let mut kv = Contestant::new(leader, Protocol::Http, &kv_put);
    let rival_put = requests::etcd_put(leader);
    let mut rival = rivals.as_ref().map(|members| Contestant::new(members[0].address, Protocol::Http, &rival_put));
    let mut all: Vec<&mut Contestant<'_>> = vec![&mut kv];
    all.extend(rival.as_mut());
    rounds(plan, plan.connections, &mut all)?;
    let what = "PUT, three nodes, majority";
    let Some(rival) = rival else {
        table.information(what, kv.show());
        table.not_measured("etcd, three members, JSON gateway", "no etcd on the path (ETCD_BIN)");
        table.not_measured("PUT, three nodes against etcd", "etcd is absent");
        return Ok(());
    };
    table.information("etcd, three members, JSON gateway", rival.show());
    let times = kv.per_second() / rival.per_second();
    let target = format!(">= {:.0}/s (5 x etcd)", ETCD_TIMES * rival.per_second());
    table.row(what, format!("{} = {times:.1} x etcd", kv.show()), target, Verdict::of(times >= ETCD_TIMES));
    let (p99, theirs) = (kv.median(|o| o.percentile_us(99.0)), rival.median(|o| o.percentile_us(99.0)));
    table.row(
        "PUT, three nodes, p99",
        format!("{:.2} ms", p99 / 1e3),
        format!("< {:.2} ms (half of etcd's)", ETCD_P99_SHARE * theirs / 1e3),
        Verdict::of(p99 < ETCD_P99_SHARE * theirs),
    );
    Ok(())
}

/// Connections that fill a store: as many as are measured with, since each costs memory.
const FILL_CONNECTIONS: usize = 64;

/// Writes `count` values of this size, over the keys in turn.
pub(crate) fn fill(node: &Server, keys: u64, value_bytes: usize, count: u64) -> anyhow::Result<()> {
    let write = requests::kv_fill(node.address, keys, value_bytes);
    let load =
        Load { addresses: &[node.address], connections: FILL_CONNECTIONS, protocol: Protocol::Http, write: &write };
    let outcome = load.run(Pace::Operations(count))?;
    anyhow::ensure!(outcome.errors == 0, "{} writes failed while filling", outcome.errors);
    Ok(())
}
