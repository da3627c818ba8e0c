//! The replica: role dispatch.
pub struct Replica {}
