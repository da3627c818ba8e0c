//! The operator: it makes a KvCluster a running group of nodes, and keeps it one. It has no authority
//! over the data: it proposes, and a majority of the nodes decides.
//!
//! The life of a reconcile, in reading order:
//!
//! 1. [`controller`] is woken by a watch or a timer, and runs the five verbs.
//! 2. [`observe`] reads, from the caches of `watches`, children, pods and each node's status into an [`observed::Observed`].
//! 3. [`validate`] makes the spec a `Desired`, or says what is wrong with it.
//! 4. [`plan`], a pure function of the two, says what is to be written and which one directive is due;
//!    [`resources`] builds the children, [`group`] reads the nodes' answers.
//! 5. [`apply`] carries the plan out: the only writer, in a fixed order.
//! 6. [`report`] folds all of it into the status, and writes that only when it has changed.

pub mod api_server;
pub mod apply;
pub mod check;
pub mod controller;
#[allow(unreachable_pub, reason = "the schema derive repeats the structs where nobody can reach them")]
pub mod crd;
pub mod error;
mod events;
#[cfg(test)]
mod fake;
pub mod group;
pub mod lease;
pub mod metrics;
pub mod names;
pub mod node_client;
pub mod observe;
pub mod observed;
pub mod plan;
pub mod reference;
pub mod report;
pub mod resources;
pub mod server;
mod units;
pub mod validate;
mod watches;
