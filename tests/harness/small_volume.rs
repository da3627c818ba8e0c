//! A small file system in memory, for nodes whose disk is to be full. Needs root; unmounted with its
//! value.

use std::path::{Path, PathBuf};
use std::process::Command;

pub struct SmallVolume(PathBuf);

impl SmallVolume {
    /// Creates the directory and mounts a volume of this size on it. None: this process may not mount.
    pub fn mount(path: PathBuf, megabytes: u32) -> Option<Self> {
        std::fs::create_dir(&path).expect("the site is writable");
        let options = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path).output();
        mounted.is_ok_and(|o| o.status.success()).then_some(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn grow(&self, megabytes: u32) {
        self.remount(&format!("size={megabytes}m"));
    }

    /// With other options: `ro`, `rw`.
    pub fn remount(&self, options: &str) {
        let done = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0).status();
        assert!(done.is_ok_and(|status| status.success()), "what was mounted can be mounted again");
    }
}

impl Drop for SmallVolume {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}
