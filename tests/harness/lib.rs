//! What the black-box tests stand on: real `kv-node` processes on a loopback address of their own, a
//! client that keeps every header, a raw socket for requests that no client would send, waiting for
//! conditions, a load that remembers what was acknowledged, and a history of what clients saw with the
//! checker that judges it. Knows the HTTP contract and the command line, and nothing of the node's
//! inside. Used by the test binaries beside it alone.
//!
//! Reading order: [`Site`] (address, directory, client), [`Node`] (one process), [`Cluster`] (three of
//! them), [`Answer`], then [`Load`]; for itself: [`history`], [`linearizability`].

mod answer;
mod binary;
mod caller;
mod cluster;
mod command;
mod damage;
mod dev;
pub mod history;
pub mod linearizability;
mod load;
mod log_lines;
mod network;
mod node;
pub mod random;
mod raw;
pub mod sim;
mod site;
mod small_volume;
mod wait;

pub use answer::Answer;
pub use binary::node_binary;
pub use caller::{Answered, Caller};
pub use cluster::{Cluster, ClusterSpec, member_name};
pub use command::{Ended, kv_node};
pub use damage::{flip_byte, sealed_files};
pub use dev::{Dev, kill_pid};
pub use load::{Acknowledged, Load, LoadReport};
pub use network::{Network, Rule};
pub use node::{Exit, Node, NodeSpec, target_of};
pub use raw::{RawClient, heads};
pub use site::Site;
pub use small_volume::SmallVolume;
pub use wait::{START_SECONDS, pass, wait_for, wait_until};
