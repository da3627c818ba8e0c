//! A node of kvcluster. The life of a PUT, in reading order:
//!
//! 1. [`http`] accepts the connection, bounds it, and parses the spans of `value` and `version`.
//! 2. [`driver`] queues the request and steps the replica (`kv-core`), which orders the entry.
//! 3. [`wal`] makes it durable: one write and one fdatasync for all that gathered meanwhile.
//! 4. [`transport`] carries the same bytes to the followers, which do the same and acknowledge.
//! 5. The driver learns that a majority has it, the replica applies it, http answers.
//!
//! Around it: [`serve`] wires one node and ends it in order ([`shutdown`]), [`bootstrap`] makes its
//! volume a member of a group, [`compactor`] decides when the log is compacted, [`config`] is the only
//! reader of flags, environment and files, [`dev`] runs a whole local cluster.

pub mod auth_token;
pub mod bootstrap;
pub mod compactor;
pub mod config;
pub mod dev;
pub mod driver;
#[doc(hidden)]
pub mod fuzz;
pub mod http;
mod http_client;
pub mod metrics;
pub mod reset_identity;
pub mod serve;
pub mod shutdown;
pub mod telemetry;
pub mod transport;
pub mod wal;
