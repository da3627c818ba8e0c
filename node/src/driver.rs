//! stub

/// Placeholder until the driver lands.
#[derive(Clone)]
pub struct Handle;
