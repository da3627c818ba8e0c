//! The disk that is measured on: never tmpfs, and how long one fdatasync takes there.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// `f_type` of tmpfs and ramfs, where an fsync costs nothing.
const MEMORY_FILESYSTEMS: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// A line of the log with a 16-byte value.
const LINE_BYTES: usize = 110;

pub(crate) fn refuse_memory(dir: &Path) -> anyhow::Result<()> {
    let kind = rustix::fs::statfs(dir).context("statfs")?.f_type;
    let is_memory = MEMORY_FILESYSTEMS.contains(&(kind as i64));
    ensure!(!is_memory, "{} is in memory: measure on a disk (--dir)", dir.display());
    Ok(())
}

/// The median time of one fdatasync after a line was appended, as the log does it.
pub(crate) fn fdatasync_median(dir: &Path, length: Duration) -> anyhow::Result<Duration> {
    let path = dir.join("fdatasync");
    let mut file = File::create(&path)?;
    let line = [b'x'; LINE_BYTES];
    let mut times = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < length || times.len() < 16 {
        file.write_all(&line)?;
        let start = Instant::now();
        file.sync_data()?;
        times.push(start.elapsed());
    }
    std::fs::remove_file(path)?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
