//! The driver: one task that owns the replica. Everybody else asks through the [`Handle`].
#![expect(dead_code, reason = "the loop lands when the log has")]

mod applied;
mod clock;
mod handle;
mod published;
mod stop;

pub use clock::Clock;
pub use handle::{CallError, Handle};
pub use stop::Stopped;
