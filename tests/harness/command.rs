//! The offline commands of `kv-node`: run to their end, with what they printed.

use std::ffi::OsStr;
use std::process::Command;

use crate::binary::node_binary;
use crate::site::Site;

/// How a command ended.
pub struct Ended {
    pub success: bool,
    /// Standard output, then standard error.
    pub text: String,
}

/// Runs `kv-node` with these arguments in the site's directory.
pub fn kv_node<S: AsRef<OsStr>>(site: &Site, arguments: &[S]) -> Ended {
    let output =
        Command::new(node_binary()).args(arguments).current_dir(site.dir()).env_clear().output().expect("kv-node runs");
    let text = [output.stdout, output.stderr].concat();
    Ended { success: output.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
}
