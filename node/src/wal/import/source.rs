//! Reads a data directory of the original, and only reads it: which files it has, and their lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::line::{Checked, parse};
use super::replay::Lines;
use super::{ImportError, ImportReport, OnDamage, SkippedLine};

/// The one log file of v1.0 and v1.1.
const SINGLE_LOG: &str = "wal.log";
const SEGMENT_PREFIX: &str = "wal.log.segment.";
/// Longest line read: the largest value, each of its bytes written as `\u00XX`, and room for the rest.
const LINE_BYTES_MAX: u64 = 6 * 8 * 1024 * 1024 + (64 << 10);

/// The log files in their order: the single log, then the segments by number.
pub(super) fn log_files(source: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let unreadable = |error| ImportError::Read { path: source.to_owned(), error };
    let mut files = Vec::new();
    for item in std::fs::read_dir(source).map_err(unreadable)? {
        let name = item.map_err(unreadable)?.file_name();
        let number = match name.to_str() {
            Some(SINGLE_LOG) => Some(0),
            Some(name) => name.strip_prefix(SEGMENT_PREFIX).and_then(|n| n.parse::<u64>().ok()),
            None => None,
        };
        files.extend(number.map(|n| (n, source.join(&name))));
    }
    if files.is_empty() {
        return Err(ImportError::NothingToImport(source.to_owned()));
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// Adds the lines of one file. A line that cannot be imported ends it, or is noted and left out.
pub(super) fn read_file(
    path: &Path,
    on_damage: OnDamage,
    lines: &mut Lines,
    report: &mut ImportReport,
) -> Result<(), ImportError> {
    let unreadable = |error| ImportError::Read { path: path.to_owned(), error };
    let mut reader = BufReader::new(File::open(path).map_err(unreadable)?);
    let mut text = Vec::new();
    for number in 1.. {
        if next_line(&mut reader, &mut text).map_err(unreadable)? == 0 {
            break;
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let added = parse(&text).and_then(|line| {
            let checked = line.checked;
            lines.add(line).map(|()| checked)
        });
        match added {
            Ok(Checked::ByCrc) => report.lines_verified += 1,
            Ok(Checked::NotAtAll) => report.lines_without_crc += 1,
            Err(reason) => {
                let bad = SkippedLine { path: path.to_owned(), line: number, reason };
                if on_damage == OnDamage::Stop {
                    return Err(ImportError::BadLine(bad));
                }
                report.skipped.push(bad);
            }
        }
    }
    Ok(())
}

/// Reads up to and with the newline; what is longer than any line of the original is an error.
fn next_line(reader: &mut BufReader<File>, text: &mut Vec<u8>) -> io::Result<usize> {
    text.clear();
    let read = reader.take(LINE_BYTES_MAX).read_until(b'\n', text)?;
    if read as u64 == LINE_BYTES_MAX && !text.ends_with(b"\n") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a line is longer than {LINE_BYTES_MAX} bytes"),
        ));
    }
    Ok(read)
}
