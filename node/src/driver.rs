//! The driver: one task that owns the replica. Everybody else asks through the [`Handle`].
#![expect(dead_code, reason = "the loop lands when the replica has")]

mod applied;
mod clock;
mod commits;
mod handle;
mod published;
mod replies;
mod snapshots;
mod stop;

pub use clock::Clock;
pub use handle::{CallError, Handle};
pub use published::NodeReport;
pub use stop::Stopped;
