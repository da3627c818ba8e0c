//! What each scenario does, grouped by what it disturbs. Each gets the suite and its own name, panics when
//! something is not as it should be, and returns what was measured.

pub(crate) mod changes;
pub(crate) mod copies;
pub(crate) mod hosts;
pub(crate) mod lasting;
pub(crate) mod leader;
pub(crate) mod operators;
pub(crate) mod options;
pub(crate) mod quickstart;
pub(crate) mod specs;
pub(crate) mod strangers;
pub(crate) mod volumes;
