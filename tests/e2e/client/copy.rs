//! Makes a directory a copy of another one, as a snapshot of a volume and its restoration do. What was there
//! before goes.

use std::io;
use std::path::Path;
use std::process::ExitCode;

pub(crate) fn copy(from: &Path, to: &Path) -> ExitCode {
    match emptied(to).and_then(|()| filled(from, to)) {
        Ok(files) if files > 0 => {
            println!("{files} files of {} are in {}", from.display(), to.display());
            ExitCode::SUCCESS
        }
        Ok(_) => failed(from, "it holds no file"),
        Err(error) => failed(from, &error.to_string()),
    }
}

fn failed(from: &Path, why: &str) -> ExitCode {
    println!("{} could not be copied: {why}", from.display());
    ExitCode::FAILURE
}

fn emptied(dir: &Path) -> io::Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    std::fs::create_dir(dir)
}

/// How many files were copied.
fn filled(from: &Path, to: &Path) -> io::Result<u64> {
    let mut files = 0;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target)?;
            files += filled(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
            files += 1;
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_holds_what_its_original_holds_and_nothing_that_was_there_before() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("inner")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("inner/new"), "new").unwrap();
        std::fs::write(to.join("old"), "old").unwrap();
        assert_eq!(copy(&from, &to), ExitCode::SUCCESS);
        assert_eq!(std::fs::read_to_string(to.join("inner/new")).unwrap(), "new");
        assert!(!to.join("old").exists());
        assert_eq!(copy(&dir.path().join("nowhere"), &to), ExitCode::FAILURE);
    }
}
