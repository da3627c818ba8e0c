//! The only place where state changes.
#[derive(Debug)]
pub struct StateMachine {}
