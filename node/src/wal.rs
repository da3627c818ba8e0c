//! stub

pub mod import;
pub mod restore;
pub mod verify;
