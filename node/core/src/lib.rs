//! The replica of kvcluster as a pure state machine.
//!
//! ```text
//!   Input ──▶ Replica::step(now, input) ──▶ Effect, Effect, …   (Replica::take_effects)
//!             no I/O · no clock · no randomness · no waiting
//! ```
//!
//! The driver of `kv-node`, the simulator and the transcript tests all run this same code: they feed
//! [`Input`]s and carry out [`Effect`]s. What must be durable is an [`Effect::Persist`] with a sequence
//! number; the replica says nothing that depends on it before [`Input::Persisted`] names that number.
//! Carrying out the effects in their order, and persisting in the order of the numbers, is all that
//! the surroundings owe.
//!
//! Reading order: [`entry`] (the line), [`message`], this file (the contract), [`replica`], then
//! [`state_machine`].

pub mod command;
pub mod contract;
pub mod entry;
pub mod group;
pub mod heartbeat;
pub mod keyspace;
pub mod message;
pub mod mutant;
pub mod quorum;
pub mod replica;
pub mod sessions;
pub mod state_machine;
pub mod status;

pub use contract::{Boot, Effect, HardState, Input, Now, Persist, Refusal, Reply, Request, Token};
pub use replica::Replica;
