//! stub

pub mod import;
pub mod restore;
#[expect(dead_code, reason = "its writer lands with the reader of the log")]
pub mod snapshot;
pub mod verify;
