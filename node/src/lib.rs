//! A node of kvcluster.

pub mod bootstrap;
pub mod compactor;
pub mod config;
pub mod dev;
pub mod driver;
pub mod http;
pub mod metrics;
pub mod shutdown;
pub mod telemetry;
pub mod transport;
pub mod wal;
